"""macvtap in its four modes, on the wire: who reaches whom, with real guests on one parent device.

``lan0`` of host a is the parent; ``lan-a``, its other end, is a port of the bridge ``lan`` in the wire's
namespace, which stands for a switch (10.78.0.254 is a machine behind it).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab
from tests.lab.packets import is_cut_off, reaches

SWITCH = "10.78.0.254"
ONE, TWO = "10.78.0.21", "10.78.0.22"
MACS = {"mv1": "52:54:00:78:00:01", "mv2": "52:54:00:78:00:02"}


@pytest.fixture(scope="module")
def pair(lab: Lab, tiny: images.Tiny) -> Iterator[tuple[Guest, Guest]]:
    """Two guests on macvtap over lan0, in bridge mode to begin with."""
    host = lab.a
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--memory", "256M", "--vcpus", "1"]
    for name, address in (("mv1", ONE), ("mv2", TWO)):
        cmdline = f"{tiny.cmdline} lab.address={address}/24 lab.nodhcp lab.hostname={name}"
        nic = f"macvtap:lan0:bridge,mac={MACS[name]}"
        told = host.kvmctl("create", name, *boot, "--cmdline", cmdline, "--net", nic)
        assert "cannot reach each other" in told.stderr and "--net nat" in told.stderr
    with Guest(host, "mv1").open() as one, Guest(host, "mv2").open() as two:
        one.address()
        two.address()
        yield one, two
    host.kvmctl("delete", "--yes", "mv1", "mv2")
    assert "macvtap" not in host.net.ip("-d", "link").stdout


def put(host: Host, guest: Guest, place: str) -> None:
    """Give the guest a card at ``place`` in place of the one it has, at the same address and MAC."""
    old = MACS[guest.name]
    address = ONE if guest.name == "mv1" else TWO
    host.kvmctl("nic", "detach", guest.name, old)
    guest.run("until [ ! -e /sys/class/net/eth0 ]; do sleep 0.2; done")
    host.kvmctl("nic", "attach", guest.name, f"{place},mac={old}")
    guest.run(
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done;"
        f"ip link set eth0 up; ip address flush dev eth0; ip address add {address}/24 dev eth0"
    )


def hairpin(lab: Lab, on: bool) -> None:
    """Whether the switch port sends frames back where they came from."""
    lab.wire.run(["bridge", "link", "set", "dev", "lan-a", "hairpin", "on" if on else "off"])


def test_bridge_mode(pair: tuple[Guest, Guest], lab: Lab, host_a: Host) -> None:
    one, two = pair
    assert reaches(one, TWO) and reaches(two, ONE)
    assert reaches(one, SWITCH)
    # The physical side sees an independent machine, with the guest's own MAC.
    assert lab.wire.run(["ping", "-c5", "-W10", ONE]).returncode == 0
    assert MACS["mv1"] in lab.wire.run(["ip", "neigh", "show", ONE]).stdout
    assert MACS["mv1"] in lab.wire.run(["bridge", "fdb", "show", "br", "lan"]).stdout
    # Host and guest do not reach each other, whatever address the host has on the parent device.
    host_a.net.ip("address", "add", "10.78.0.1/24", "dev", "lan0")
    try:
        assert host_a.client(["ping", "-c1", "-W2", SWITCH]).returncode == 0
        assert host_a.client(["ping", "-c1", "-W2", ONE], check=False).returncode != 0
        assert is_cut_off(one, "10.78.0.1")
    finally:
        host_a.net.ip("address", "del", "10.78.0.1/24", "dev", "lan0")
    # No lease and no ARP table of the host's knows its address: the guest's agent does.
    rows: list[dict[str, Any]] = []

    def told() -> bool:
        rows[:] = host_a.kvmctl("nic", "list", "mv1", "-o", "json").json()
        return bool(rows[0]["ips"])

    wait_until(told, "what the agent says")
    assert [(row["mode"], row["source"], row["macvtap_mode"], row["mac"], row["ips"]) for row in rows] == [
        ("macvtap", "lan0", "bridge", MACS["mv1"], [ONE])
    ]
    assert f"mv1  {ONE}  {MACS['mv1']}" in host_a.kvmctl("net", "map").stdout


def test_private_and_vepa_mode(pair: tuple[Guest, Guest], lab: Lab, host_a: Host) -> None:
    one, two = pair
    # By the device's name or by a network over it is the same.
    made = host_a.kvmctl("net", "create", "apart", "--mode", "macvtap", "--dev", "lan0", "--macvtap-mode", "private")
    assert "cannot reach each other" in made.stderr
    put(host_a, one, "macvtap:lan0:private")
    put(host_a, two, "network:apart")
    (card,) = host_a.kvmctl("nic", "list", "mv2", "-o", "json").json()
    assert (card["mode"], card["source"], card["macvtap_mode"]) == ("network", "apart", "private")
    assert reaches(one, SWITCH) and reaches(two, SWITCH)
    assert is_cut_off(one, TWO)
    # Not even where the switch would send it back.
    hairpin(lab, True)
    try:
        assert is_cut_off(one, TWO) and is_cut_off(two, ONE)
        for guest in pair:
            put(host_a, guest, "macvtap:lan0:vepa")
        host_a.kvmctl("net", "delete", "apart")
        assert reaches(one, SWITCH) and reaches(two, SWITCH)
        assert reaches(one, TWO) and reaches(two, ONE)
    finally:
        hairpin(lab, False)
    for guest in pair:
        guest.run("ip neigh flush dev eth0", check=False)
    assert is_cut_off(one, TWO) and is_cut_off(two, ONE)
    assert reaches(one, SWITCH)


def test_passthrough_mode_is_one_guests(pair: tuple[Guest, Guest], lab: Lab, host_a: Host) -> None:
    one, _two = pair
    refused = host_a.kvmctl("nic", "attach", "mv1", "macvtap:lan0:passthrough", "-o", "json", check=False)
    assert refused.returncode == 7 and "mv2" in refused.error()["message"]
    host_a.kvmctl("destroy", "mv2")
    host_a.kvmctl("nic", "detach", "mv2", MACS["mv2"])
    put(host_a, one, "macvtap:lan0:passthrough")
    assert reaches(one, SWITCH)
    assert MACS["mv1"] in host_a.net.ip("link", "show", "lan0").stdout
    for mode in ("passthrough", "bridge"):
        second = host_a.kvmctl("nic", "attach", "mv2", f"macvtap:lan0:{mode}", "-o", "json", check=False)
        assert second.returncode == 7
        assert "in use by mv1 in passthrough mode" in second.error()["message"]
    # Another tool may define such a guest all the same: it is refused before libvirt's "Invalid argument".
    interface = "<interface type='direct'><source dev='lan0' mode='passthrough'/><model type='virtio'/></interface>"
    host_a.run(["sh", "-c", f'echo "{interface}" >/tmp/nic.xml; virsh attach-device mv2 /tmp/nic.xml --config'])
    start = host_a.kvmctl("start", "mv2", "-o", "json", check=False)
    assert start.returncode == 7 and "in use by mv1" in start.error()["message"]
    assert host_a.kvmctl("info", "mv2", "-o", "json").json()["state"] == "shutoff"
    host_a.kvmctl("destroy", "mv1")
    assert MACS["mv1"] not in host_a.net.ip("link", "show", "lan0").stdout
    assert "macvtap" not in host_a.net.ip("-d", "link").stdout
    # Nobody claims the device any more: other tests' guests shall have it.
    for guest in pair:
        for card in host_a.kvmctl("nic", "list", guest.name, "-o", "json").json():
            host_a.kvmctl("nic", "detach", guest.name, card["mac"])


def test_the_device_of_the_default_route_is_not_given_away(host_a: Host, tiny: images.Tiny) -> None:
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--memory", "256M"]
    host_a.net.ip("route", "add", "default", "via", "10.77.0.254", "dev", "lab0")
    try:
        taken = host_a.kvmctl("create", "x", *boot, "--net", "macvtap:lab0:passthrough", "-o", "json", check=False)
        network = host_a.kvmctl(
            "net", "create", "x", "--mode", "macvtap", "--dev", "lab0", "--macvtap-mode", "passthrough", check=False
        )
    finally:
        host_a.net.ip("route", "del", "default")
    assert taken.returncode == 7 and "default route" in taken.error()["message"]
    assert network.returncode == 7 and "default route" in network.stderr
    missing = host_a.kvmctl("create", "x", *boot, "--net", "macvtap:nosuch", "-o", "json", check=False)
    assert missing.returncode == 3 and "nosuch" in missing.error()["message"]
    assert "x" not in host_a.conn.listDefinedDomains()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_pool_of_devices_for_passthrough(lab: Lab, host_a: Host, tiny: images.Tiny) -> None:
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--memory", "256M", "--vcpus", "1"]
    for number in (1, 2):
        host_a.net.ip("link", "add", f"pool{number}", "type", "veth", "peer", "name", f"far{number}")
        host_a.net.ip("link", "set", f"pool{number}", "up")
        host_a.net.ip("link", "set", f"far{number}", "up")
    try:
        create = ["net", "create", "pool", "--mode", "macvtap", "--macvtap-mode", "passthrough"]
        made = host_a.kvmctl(*create, "--dev", "pool1", "--dev", "pool2", "-o", "json").json()
        assert (made["mode"], made["macvtap_mode"], made["devices"]) == ("macvtap", "passthrough", ["pool1", "pool2"])
        for name in ("p1", "p2"):
            host_a.kvmctl("create", name, *boot, "--net", "network:pool")
        links = host_a.net.ip("-d", "link").stdout
        assert "@pool1" in links and "@pool2" in links
        third = host_a.kvmctl("create", "p3", *boot, "--net", "network:pool", "-o", "json", check=False)
        assert third.returncode == 7 and "every device of the network pool is in use" in third.error()["message"]
        busy = host_a.kvmctl("net", "delete", "pool", "-o", "json", check=False)
        assert busy.returncode == 4 and "p1, p2" in busy.error()["message"]
        host_a.kvmctl("delete", "--yes", "p1", "p2")
        host_a.kvmctl("net", "delete", "pool")
        assert "macvtap" not in host_a.net.ip("-d", "link").stdout
    finally:
        for number in (1, 2):
            host_a.net.ip("link", "del", f"pool{number}")


def test_migrating_leaves_no_macvtap_device_behind(lab: Lab, host_a: Host, host_b: Host, tiny: images.Tiny) -> None:
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--memory", "256M", "--vcpus", "1"]
    cmdline = f"{tiny.cmdline} lab.address=10.78.0.23/24 lab.nodhcp"
    host_a.kvmctl("create", "mover", *boot, "--cmdline", cmdline, "--net", "macvtap:lan0:bridge")
    with Guest(host_a, "mover").open() as before:
        before.address()
    assert "macvtap" in host_a.net.ip("-d", "link").stdout
    host_a.kvmctl("migrate", "mover", host_b.tcp_uri)
    assert "macvtap" not in host_a.net.ip("-d", "link").stdout
    with Guest(host_b, "mover").open() as after:
        assert reaches(after, SWITCH)
    host_b.kvmctl("delete", "--yes", "mover")
    assert "macvtap" not in host_b.net.ip("-d", "link").stdout
