"""Every model of network card there is, in guests with Debian's full kernel: its lease, and its gateway through it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.packets import reaches

Console = Callable[[Host, str], Guest]

# What each model's driver is called in Linux.
DRIVERS = {
    "virtio": "virtio_net",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "rtl8139": "8139cp",
    "pcnet": "pcnet32",
    "ne2k_pci": "ne2k-pci",
    "vmxnet3": "vmxnet3",
}
# A network of its own: no other guest's packets are in it.
SUBNET = "10.63.0"
# The full kernel takes its time where several guests boot at once.
PATIENCE = 240


def boot(tiny: images.Tiny) -> list[str]:
    """The options of create that boot the tiny guest."""
    given = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    return [*given, "--memory", "256M", "--vcpus", "1"]


@pytest.mark.usefixtures("leaves_nothing")
def test_seven_cards_of_seven_models_in_one_guest(
    host_a: Host, tiny_full: images.Tiny, console: Console, tmp_path: Path
) -> None:
    made = host_a.kvmctl("net", "create", "models", "--subnet", f"{SUBNET}.0/24", "-o", "json").json()
    # An address that is kept for a card dnsmasq hands out at once; any other it tries for three seconds first.
    wanted = {
        f"52:54:00:63:00:{number:02x}": (model, f"{SUBNET}.{100 + number}") for number, model in enumerate(DRIVERS)
    }
    cards = [f"network:models,model={model},mac={mac},ip={ip}" for mac, (model, ip) in wanted.items()]
    host_a.kvmctl("create", "cards", *boot(tiny_full), *[word for card in cards for word in ("--net", card)])
    rows = host_a.kvmctl("nic", "list", "cards", "-o", "json").json()
    assert {row["mac"]: (row["model"], row["reserved"]) for row in rows} == wanted

    guest = console(host_a, "cards").ready(PATIENCE)
    # A card answers for its own address only, or packets for one card might come in by another.
    guest.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce")
    found = {}
    for mac, (model, ip) in wanted.items():
        nic = guest.wait_for(rf"nic (eth\d) {mac} {DRIVERS[model]}(?!\S)", PATIENCE)[1]
        assert guest.address(nic, PATIENCE) == ip
        found[mac] = nic
    assert len(set(found.values())) == len(DRIVERS)
    leases = host_a.kvmctl("net", "leases", "models", "-o", "json").json()
    assert {(row["mac"], row["ip"], row["vm"]) for row in leases} == {
        (mac, ip, "cards") for mac, (_, ip) in wanted.items()
    }

    # Whose card asked and whose got the answer is seen on the network's bridge.
    capture = tmp_path / "packets"
    watch = host_a.outside(["tcpdump", "-elnn", "--immediate-mode", "-i", made["bridge"], "icmp"])
    with capture.open("wb") as out, subprocess.Popen(watch, stdout=out, stderr=subprocess.PIPE, text=True) as dump:
        try:
            assert dump.stderr is not None
            while "listening on" not in dump.stderr.readline():
                assert dump.poll() is None
            for nic in found.values():
                assert reaches(guest, f"{SUBNET}.1", nic), nic
            both_ways = {(mac, ip) for mac, (_, ip) in wanted.items()}
            wait_until(lambda: asked(capture.read_text()) >= both_ways, "each card's question on the wire")
            wait_until(lambda: answered(capture.read_text()) >= both_ways, "each card's answer on the wire")
            assert asked(capture.read_text()) == answered(capture.read_text()) == both_ways
        finally:
            dump.terminate()
    guest.close()
    host_a.kvmctl("delete", "--yes", "cards")
    host_a.kvmctl("net", "delete", "models")


def asked(packets: str) -> set[tuple[str, str]]:
    """MAC and address of whoever asked for an echo, in tcpdump's lines."""
    return set(re.findall(rf" (\S+) > \S+, ethertype IPv4 .*: (\S+) > {SUBNET}\.1: ICMP echo request", packets))


def answered(packets: str) -> set[tuple[str, str]]:
    """MAC and address of whoever got the gateway's answer."""
    return set(re.findall(rf" > (\S+), ethertype IPv4 .*: {SUBNET}\.1 > (\S+): ICMP echo reply", packets))


@pytest.mark.full
@pytest.mark.parametrize("model", DRIVERS)
def test_every_model_gets_its_lease_and_reaches_its_gateway(
    host_a: Host, tiny_full: images.Tiny, console: Console, model: str
) -> None:
    host_a.start_default_network()
    host_a.kvmctl("create", "model", *boot(tiny_full), "--net", f"nat,model={model}")
    guest = console(host_a, "model").ready(PATIENCE)
    assert guest.address().startswith(f"{host_a.subnet}.")
    assert reaches(guest, f"{host_a.subnet}.1")
    (row,) = host_a.kvmctl("nic", "list", "model", "-o", "json").json()
    assert row["model"] == model
    host_a.kvmctl("delete", "--yes", "model")
