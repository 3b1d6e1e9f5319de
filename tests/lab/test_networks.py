"""Networks of every mode: made, seen in them by packets, refused where they would harm, gone without a trace."""

import ipaddress
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.packets import is_cut_off, reaches

Console = Callable[[Host, str], Guest]


def boot(tiny: images.Tiny, more: str = "") -> list[str]:
    """The options of create that boot the tiny guest."""
    cmdline = f"{tiny.cmdline} {more}"
    given = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", cmdline]
    return [*given, "--memory", "256M", "--vcpus", "1"]


@pytest.mark.usefixtures("leaves_nothing")
def test_a_network_from_its_making_to_its_end(host_a: Host) -> None:
    made = host_a.kvmctl(
        *("net", "create", "lab", "--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"),
        *("--dhcp", "10.50.0.100-10.50.0.200", "--reserve", "52:54:00:50:00:01=10.50.0.9,printer"),
        *("--domain", "lab.example", "-o", "json"),
    ).json()
    assert made["mode"] == "nat" and made["active"] and made["autostart"] and made["persistent"]
    assert made["subnets"] == ["10.50.0.0/24", "fd00:50::/64"]
    assert made["dhcp"] == "10.50.0.100-10.50.0.200"
    (listed,) = [row for row in host_a.kvmctl("net", "list", "-o", "json").json() if row["name"] == "lab"]
    assert listed == made
    info = host_a.kvmctl("net", "info", "lab", "-o", "json").json()
    assert info["domain"] == "lab.example" and info["gateways"] == ["10.50.0.1", "fd00:50::1"]
    assert info["reservations"] == [{"mac": "52:54:00:50:00:01", "ip": "10.50.0.9", "name": "printer"}]
    assert "10.50.0.1/24" in host_a.net.ip("address", "show", made["bridge"]).stdout
    # virsh sees the same.
    assert "localOnly='yes'" in host_a.virsh("net-dumpxml", "lab").stdout
    assert host_a.kvmctl("net", "stop", "lab", "-o", "json").json()["changed"] is True
    assert host_a.kvmctl("net", "stop", "lab", "-o", "json").json()["changed"] is False
    assert host_a.kvmctl("net", "start", "lab", "-o", "json").json()["active"] is True
    assert host_a.kvmctl("net", "delete", "lab", "-o", "json").json()["changed"] is True
    assert host_a.kvmctl("net", "info", "lab", check=False).returncode == 3


@pytest.mark.usefixtures("leaves_nothing")
def test_a_subnet_in_use_is_refused_with_the_culprit(host_a: Host) -> None:
    host_a.start_default_network()

    def create(*args: str) -> tuple[int, str]:
        done = host_a.kvmctl("net", "create", "bad", *args, "-o", "json", check=False)
        return done.returncode, done.error()["message"]

    code, told = create("--subnet", f"{host_a.subnet}.128/25")
    assert code == 7 and "the network 'default'" in told
    code, told = create("--subnet", "10.77.0.0/16")
    assert code == 7 and "the host's route over lab0" in told
    host_a.net.ip("route", "add", "172.31.0.0/16", "via", "10.77.0.254")
    code, told = create("--subnet", "172.31.7.0/24", "--mode", "isolated")
    host_a.net.ip("route", "del", "172.31.0.0/16")
    assert code == 7 and "172.31.0.0/16" in told
    for args, reason in (
        (["--subnet", "10.0.0.0/33"], "not a subnet"),
        (["--subnet", "0.0.0.0/0"], "no size"),
        (["--subnet", "10.0.0.5/24"], "behind its prefix"),
        (["--subnet", "10.0.0.0/24", "--dhcp", "10.0.1.1-10.0.1.9"], "outside"),
        (["--bridge", "br0;reboot"], "cannot be the name"),
        (["--bridge", "0123456789abcdef"], "too long"),
        (["--mode", "bridge"], "needs --bridge"),
        (["--mode", "bridge", "--bridge", "lan0"], "is not a bridge"),
        (["--mode", "macvtap"], "needs --dev"),
        (["--mode", "bridge", "--bridge", "br9", "--subnet", "10.0.0.0/24"], "does not go with"),
        (["--domain", "a b"], "not a DNS domain"),
    ):
        code, told = create(*args)
        assert code == 2 and reason in told, args
    assert create("--mode", "bridge", "--bridge", "nosuch")[0] == 3
    assert create("--bridge", "lab0")[0] == 4
    assert host_a.kvmctl("net", "create", "default", check=False).returncode == 4
    assert host_a.kvmctl("net", "create", "../x", check=False).returncode == 2


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("call", ["setAutostart", "create", "XMLDesc", "isActive"])
def test_a_failure_in_the_making_leaves_nothing(host_a: Host, tmp_path: Path, call: str) -> None:
    # libvirt's own chains come with the first network and stay.
    host_a.start_default_network()

    def now() -> tuple[list[str], str, str]:
        rules = re.sub(r"packets \d+ bytes \d+", "", host_a.run(["nft", "list", "ruleset"]).stdout)
        files = host_a.run(["find", "/etc/libvirt/qemu/networks", "/var/lib/libvirt/dnsmasq", "!", "-type", "d"]).stdout
        # Names alone: whether a bridge without guests has a carrier changes by itself.
        links = [line.split()[0] for line in host_a.net.ip("-br", "link").stdout.splitlines()]
        return links, rules, files

    before = now()
    script = tmp_path / "broken.py"
    script.write_text(
        "import runpy, sys, libvirt\n"
        f"real = libvirt.virNetwork.{call}\n"
        "def fail(self, *a):\n"
        "    if self.name() == 'half':\n"
        f"        libvirt.virNetwork.{call} = real\n"
        "        raise OSError(5, 'injected failure')\n"
        "    return real(self, *a)\n"
        f"libvirt.virNetwork.{call} = fail\n"
        "sys.argv = ['kvmctl', 'net', 'create', 'half']\n"
        "runpy.run_module('kvmctl', run_name='__main__')\n"
    )
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr
    assert "half" not in host_a.virsh("net-list", "--all").stdout
    assert now() == before


def test_net_info_tells_what_is_not_in_force(host_a: Host) -> None:
    host_a.start_default_network()

    def problems() -> list[str]:
        found: list[str] = host_a.kvmctl("net", "info", "default", "-o", "json").json()["problems"]
        return found

    def checked(name: str) -> tuple[str, str]:
        found = host_a.kvmctl("host", "check", "-o", "json").json()["checks"]
        return next((check["level"], check["detail"]) for check in found if check["name"] == name)

    assert problems() == []
    assert checked("networks") == ("ok", "1 network running, all in force")
    for break_it, mend_it, reason in (
        ("echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward", "forwarding is off"),
        ("ip address del {ip} dev virbr0", "ip address add {ip} dev virbr0", "has lost"),
        (
            "nft add table ip other;"
            "nft 'add chain ip other forward {{ type filter hook forward priority 0; policy drop; }}'",
            "nft delete table ip other",
            "drops forwarded packets",
        ),
    ):
        host_a.run(["sh", "-c", break_it.format(ip=f"{host_a.subnet}.1/24")])
        found = problems()
        levels = {checked("networks")[0], checked("forwarding")[0]}
        host_a.run(["sh", "-c", mend_it.format(ip=f"{host_a.subnet}.1/24")])
        assert len(found) == 1 and reason in found[0], found
        assert levels == {"ok", "warn"}, reason
    flush_libvirts_rules(host_a)
    (told,) = problems()
    assert "restart libvirtd" in told
    level, detail = checked("networks")
    assert level == "warn" and detail == f"default: {told}"
    host_a.restart_libvirtd()
    assert problems() == []
    over = host_a.kvmctl("-c", host_a.tcp_uri, "net", "info", "default", "-o", "json").json()
    assert over["problems"] is None


def flush_libvirts_rules(host: Host, family: str = "ip") -> None:
    """Take away what lets guests' packets out, in whichever back end libvirt uses there."""
    if host.uses_nftables():
        host.run(["nft", "flush", "chain", family, "libvirt_network", "guest_output"])
    else:
        host.run([f"{family}tables", "-F", "LIBVIRT_FWO"])


def test_net_info_knows_the_rules_of_ipv6(host_a: Host) -> None:
    host_a.kvmctl("net", "create", "only6", "--subnet", "fd00:67::/64")

    def problems() -> list[str]:
        found: list[str] = host_a.kvmctl("net", "info", "only6", "-o", "json").json()["problems"]
        return found

    assert problems() == []
    forwarding = "/proc/sys/net/ipv6/conf/all/forwarding"
    host_a.run(["sh", "-c", f"echo 0 >{forwarding}"])
    off = problems()
    host_a.run(["sh", "-c", f"echo 1 >{forwarding}"])
    assert len(off) == 1 and "IPv6 forwarding is off" in off[0]
    flush_libvirts_rules(host_a, "ip6")
    (told,) = problems()
    assert "restart libvirtd" in told
    host_a.restart_libvirtd()
    assert problems() == []
    host_a.kvmctl("net", "delete", "only6")


def test_the_map_shows_who_is_where(host_a: Host, tiny: images.Tiny) -> None:
    host_a.start_default_network()
    host_a.kvmctl("create", "seen", *boot(tiny), "--net", "nat", "--net", "macvtap:lan0:private", "--no-start")
    host_a.kvmctl("port", "add", "seen", "8080:80", "9000-9002:9000-9002/udp")
    tree = host_a.kvmctl("net", "map").stdout
    lines = [line.strip("│├└─ ") for line in tree.splitlines()]
    network = next(n for n, line in enumerate(lines) if line.startswith("network default  nat  virbr0"))
    assert lines[network + 1].startswith("seen  52:54:00:")
    assert lines[network + 2].startswith("0.0.0.0:8080/tcp → 80  the guest is not running")
    assert lines[network + 3].startswith("0.0.0.0:9000-9002/udp → 9000-9002  ")
    device = next(n for n, line in enumerate(lines) if line.startswith("device lan0"))
    assert lines[device + 1].startswith("seen  ") and "private" in lines[device + 1]
    assert host_a.kvmctl("net", "map", "-o", "dot").stdout.startswith("graph networks {")
    assert "<svg " in host_a.kvmctl("net", "map", "-o", "svg").stdout
    assert host_a.kvmctl("net", "map", "-o", "json").json()["kind"] == "host"
    host_a.kvmctl("delete", "--yes", "seen")


def test_addresses_are_found_by_lease_and_by_arp_alone(
    host_a: Host, host_b: Host, tiny: images.Tiny, console: Console
) -> None:
    host_a.start_default_network()
    own = f"{host_a.subnet}.251"
    host_a.kvmctl("create", "still", *boot(tiny, f"lab.noagent lab.nodhcp lab.address={own}/24"), "--net", "nat")
    host_a.kvmctl("create", "leased", *boot(tiny, "lab.noagent"), "--net", "nat")
    still, leased = console(host_a, "still"), console(host_a, "leased")
    expected = {"leased": [leased.address()], "still": [still.address()]}
    # Whoever has not been spoken to is in nobody's table.
    host_a.client(["ping", "-c5", "-W10", own])

    def listed(host: Host, *options: str) -> dict[str, list[str]]:
        rows = host.kvmctl(*options, "list", "--wide", "-o", "json").json()
        return {row["name"]: row["ips"] for row in rows if row["name"] in expected}

    assert listed(host_a) == expected
    # From another machine libvirt is asked for its table, and does not get it from every kernel.
    assert listed(host_b, "-c", host_a.tcp_uri)["leased"] == expected["leased"]
    for name, ips in expected.items():
        assert host_a.kvmctl("info", name, "-o", "json").json()["ips"] == ips
    host_a.kvmctl("delete", "--yes", *expected)


def test_isolated_networks_do_not_see_each_other(host_a: Host, tiny: images.Tiny, console: Console) -> None:
    for name in ("iso1", "iso2"):
        host_a.kvmctl("net", "create", name, "--mode", "isolated")
    nets = {name: host_a.kvmctl("net", "info", name, "-o", "json").json() for name in ("iso1", "iso2")}
    # One guest with a card in the first and, on the other side, the second network's own guest.
    for name in ("iso1", "iso2"):
        host_a.kvmctl("create", f"in-{name}", *boot(tiny), "--net", f"network:{name}")
    one, two = console(host_a, "in-iso1"), console(host_a, "in-iso2")
    first, second = one.address(), two.address()
    assert reaches(one, nets["iso1"]["gateways"][0])
    # A route that the guest makes itself does not help it either.
    one.run(f"ip route replace default via {nets['iso1']['gateways'][0]}")
    two.run(f"ip route replace default via {nets['iso2']['gateways'][0]}")
    assert is_cut_off(one, second) and is_cut_off(two, first)
    assert is_cut_off(one, "10.77.0.254")
    busy = host_a.kvmctl("net", "stop", "iso1", "-o", "json", check=False)
    assert busy.returncode == 4 and "in-iso1" in busy.error()["message"]
    leases = host_a.kvmctl("net", "leases", "-o", "json").json()
    # Another test's guests on this host may have leases yet.
    assert {(row["network"], row["vm"], row["ip"]) for row in leases if row["network"] in ("iso1", "iso2")} == {
        ("iso1", "in-iso1", first),
        ("iso2", "in-iso2", second),
    }
    assert host_a.kvmctl("net", "delete", "iso1", "--force").returncode == 0


def test_a_routed_network_and_a_bridge(host_a: Host, host_b: Host, tiny: images.Tiny, console: Console) -> None:
    host_a.kvmctl("net", "create", "routed", "--mode", "route", "--subnet", "10.60.0.0/24", "--subnet", "fd00:60::/64")
    host_a.net.bridge("br0", "lan0")
    try:
        host_a.kvmctl("net", "create", "joined", "--mode", "bridge", "--bridge", "br0")
        cards = ["network:routed,mac=52:54:00:60:00:01,ip=10.60.0.50", "network:joined", "bridge:br0"]
        host_a.kvmctl("create", "both", *boot(tiny), *[word for card in cards for word in ("--net", card)])
        guest = console(host_a, "both")
        # The reservation that came with the card.
        assert guest.address() == "10.60.0.50"
        host_b.net.ip("route", "add", "10.60.0.0/24", "via", host_a.address)
        assert host_b.client(["ping", "-c5", "-W10", "10.60.0.50"]).returncode == 0
        # IPv6: the guest makes its own address from what libvirt's dnsmasq announces.
        ready = "ip -6 address show dev eth0 | grep 'fd00:60:.*global' | grep -qv tentative"
        guest.run(f"until {ready}; do sleep 0.5; done")
        assert reaches(guest, "fd00:60::1")
        guest.run("ip address add 10.78.0.33/24 dev eth1")
        assert reaches(guest, "10.78.0.254")
        guest.run("ip address flush dev eth1; ip address add 10.78.0.34/24 dev eth2")
        assert reaches(guest, "10.78.0.254")
        rows = host_a.kvmctl("nic", "list", "both", "-o", "json").json()
        assert [(row["mode"], row["source"], row["reserved"]) for row in rows] == [
            ("network", "routed", "10.60.0.50"),
            ("network", "joined", None),
            ("bridge", "br0", None),
        ]
        warned = host_a.kvmctl("nic", "attach", "both", "bridge:br0,model=rtl8139", "--config")
        assert "rtl8139" in warned.stderr and "virtio" in warned.stderr
        host_a.kvmctl("delete", "--yes", "both")
        reserved = host_a.kvmctl("net", "info", "routed", "-o", "json").json()["reservations"]
        assert reserved == []
    finally:
        host_b.net.ip("route", "flush", "10.60.0.0/24")
        host_a.net.ip("link", "set", "lan0", "nomaster")
        host_a.net.ip("link", "del", "br0")


def test_nat_holds_over_ipv6_too(host_a: Host, host_b: Host, tiny: images.Tiny, console: Console) -> None:
    host_a.kvmctl("net", "create", "six", "--subnet", "10.66.0.0/24", "--subnet", "fd00:66::/64")
    for host, own in ((host_a, "fd00:77::1"), (host_b, "fd00:77::2")):
        host.net.ip("address", "add", f"{own}/64", "dev", "lab0", "nodad")
    host_b.net.ip("route", "add", "fd00:66::/64", "via", "fd00:77::1")
    tells = ["socat", "TCP6-LISTEN:7366,reuseaddr,fork", "SYSTEM:echo from $SOCAT_PEERADDR"]
    try:
        host_a.kvmctl("create", "inside", *boot(tiny), "--net", "nat:six")
        guest = console(host_a, "inside")
        guest.address()
        guest.run("until ip -6 route | grep -q ^default; do sleep 0.5; done")
        ready = "ip -6 address show dev eth0 | grep 'fd00:66:.*global' | grep -v tentative"
        guest.run(f"until {ready} >/dev/null; do sleep 0.5; done")
        address = guest.run(f"{ready} | sed 's/.*inet6 //; s|/.*||'")
        # Out it goes as the host.
        assert reaches(guest, "fd00:77::2")
        with subprocess.Popen(host_b.outside(tells)) as listener:
            wait_until(lambda: ":7366 " in host_b.client(["ss", "-tln"]).stdout, "the listener")
            told = guest.run("nc -w 20 fd00:77::2 7366 </dev/null", check=False)
            listener.terminate()
        assert ipaddress.ip_address(told.removeprefix("from ").strip("[]")) == ipaddress.ip_address("fd00:77::1")
        # In comes nobody but the host itself, though somebody routes the subnet to it.
        page = ["curl", "-sS", "--max-time", "20", f"http://[{address}]/hostname"]
        assert host_a.client(page).stdout.strip() == "tiny"
        assert host_b.client(page, check=False).returncode != 0
        assert host_b.client(["ping", "-c2", "-W2", address], check=False).returncode != 0
        refused = host_a.kvmctl("port", "add", "inside", "[fd00:77::1]:8066:80", "-o", "json", check=False)
        assert refused.returncode == 2 and "IPv4 addresses only" in refused.error()["message"]
    finally:
        host_b.net.ip("route", "del", "fd00:66::/64")
        for host, own in ((host_a, "fd00:77::1"), (host_b, "fd00:77::2")):
            host.net.ip("address", "del", f"{own}/64", "dev", "lab0")


def test_an_open_network_lets_everything_through(
    host_a: Host, host_b: Host, tiny: images.Tiny, console: Console
) -> None:
    options = ["--subnet", "10.62.0.0/24", "--dhcp", "10.62.0.100-10.62.0.109", "--domain", "lab.example"]
    made = host_a.kvmctl("net", "create", "wide", "--mode", "open", *options, "-o", "json").json()
    host_a.kvmctl("create", "inside", *boot(tiny), "--net", "network:wide")
    guest = console(host_a, "inside")
    address = guest.address()
    assert address in [f"10.62.0.{number}" for number in range(100, 110)]
    assert address in guest.run("nslookup tiny.lab.example 10.62.0.1")
    host_b.net.ip("route", "add", "10.62.0.0/24", "via", host_a.address)
    try:
        # In and out, each as it is: nothing is rewritten and nothing refused.
        page = ["curl", "-sS", "--max-time", "20", f"http://{address}/hostname"]
        assert host_b.client(page).stdout.strip() == "tiny"
        assert reaches(guest, host_b.address)
        assert host_b.client(["ping", "-c5", "-W10", address]).returncode == 0
        # libvirt has no rule for it.
        assert made["bridge"] not in host_a.run(["sh", "-c", "iptables-save; nft list ruleset"]).stdout
        # Its guests are behind the host, too: a port may be published for who has no route to them.
        host_a.kvmctl("port", "add", "inside", "8062:80")
        page[-1] = f"http://{host_a.address}:8062/hostname"
        assert host_b.client(page).stdout.strip() == "tiny"
        host_a.kvmctl("delete", "--yes", "inside")
        assert "kvmctl" not in host_a.run(["nft", "list", "ruleset"]).stdout.lower()
    finally:
        host_b.net.ip("route", "flush", "10.62.0.0/24")


def test_cards_of_a_running_guest(host_a: Host, tiny: images.Tiny, console: Console) -> None:
    host_a.start_default_network()
    mac = "52:54:00:61:00:01"
    host_a.kvmctl("create", "cards", *boot(tiny), "--net", "nat")
    guest = console(host_a, "cards")
    guest.address()
    attach = ["nic", "attach", "cards", f"nat,mac={mac},ip={host_a.subnet}.201"]
    made = host_a.kvmctl(*attach, "-o", "json").json()
    assert (made["mac"], made["live"], made["saved"], made["changed"]) == (mac, True, True, True)
    assert guest.address("eth1") == f"{host_a.subnet}.201"
    for which in ((), ("--inactive",)):
        assert mac in host_a.virsh("domiflist", "cards", *which).stdout
    row = next(row for row in host_a.kvmctl("nic", "list", "cards", "-o", "json").json() if row["mac"] == mac)
    assert row["ips"] == [f"{host_a.subnet}.201"] and row["reserved"] == f"{host_a.subnet}.201"
    host_a.kvmctl("nic", "link", "cards", mac, "down")
    guest.run("until [ $(cat /sys/class/net/eth1/carrier) = 0 ]; do sleep 0.2; done")
    again = host_a.kvmctl("nic", "link", "cards", mac, "down", "-o", "json").json()
    assert (again["changed"], again["link_up"]) == (False, False)
    host_a.kvmctl("nic", "link", "cards", mac, "up")
    guest.run("until [ $(cat /sys/class/net/eth1/carrier) = 1 ]; do sleep 0.2; done")
    for wrong, code in (
        (f"nat,mac={mac}", 4),
        ("nat,mac=53:54:00:00:00:01", 2),
        ("nat,mac=52:54:00:00:01", 2),
        ("nat:nosuch", 3),
        ("bridge:nosuch", 3),
        ("bridge:lan0", 2),
        (f"nat,ip={host_a.subnet}.201", 4),
        ("nat,ip=10.1.2.3", 2),
        ("none", 2),
        ("macvtap:lan0:bridg", 2),
    ):
        assert host_a.kvmctl("nic", "attach", "cards", wrong, check=False).returncode == code, wrong
    host_a.kvmctl("nic", "detach", "cards", mac)
    guest.run("until [ ! -e /sys/class/net/eth1 ]; do sleep 0.2; done")
    for which in ((), ("--inactive",)):
        assert mac not in host_a.virsh("domiflist", "cards", *which).stdout
    assert mac not in host_a.virsh("net-dumpxml", "default").stdout
    assert host_a.kvmctl("nic", "detach", "cards", mac, check=False).returncode == 3
    host_a.kvmctl("delete", "--yes", "cards")
