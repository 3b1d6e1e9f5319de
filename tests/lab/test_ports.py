"""Published ports of guests behind NAT: every way in that there is, and none that there should not be."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab
from tests.lab.published import fetch, kernel, published, rules

WEB = "52:54:00:77:00:01"
SIBLING = "52:54:00:77:00:02"


@pytest.fixture(scope="module")
def guests(lab: Lab, tiny: images.Tiny) -> Iterator[tuple[Guest, Guest]]:
    """``web`` with published ports, and a sibling in the same network, both up, on host a."""
    host = lab.a
    host.start_default_network()
    host.kvmctl("create", "web", *kernel(tiny, "lab.hostname=web"), "--net", f"nat,mac={WEB}", "-p", "8080:80")
    host.kvmctl("create", "sibling", *kernel(tiny, "lab.hostname=sibling"), "--net", f"nat,mac={SIBLING}")
    with Guest(host, "web").open() as web, Guest(host, "sibling").open() as sibling:
        web.address()
        sibling.address()
        yield web, sibling
    for name in ("web", "sibling"):
        host.kvmctl("delete", "--yes", name)
    assert rules(host) == ""


def guest_fetch(guest: Guest, address: str, port: int) -> str:
    """Ask by HTTP from within a guest."""
    request = r"printf 'GET /hostname HTTP/1.0\r\n\r\n'"
    return guest.run(f"{request} | nc -w 20 {address} {port} | tail -n 1", check=False)


def reaches(guest: Guest, address: str, port: int, patience: int = 20) -> bool:
    """Whether a TCP connection from within a guest is taken, within ``patience`` seconds."""
    return guest.run(f"nc -w {patience} {address} {port} </dev/null >/dev/null 2>&1 && echo yes", check=False) == "yes"


def test_a_published_port_answers_from_everywhere(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    web, sibling = guests
    assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
    assert fetch(host_a, host_a.address, 8080).stdout.strip() == "web"
    assert fetch(host_a, "127.0.0.1", 8080).stdout.strip() == "web"
    assert guest_fetch(sibling, host_a.address, 8080) == "web"
    assert guest_fetch(sibling, f"{host_a.subnet}.1", 8080) == "web"
    # Who asks from outside is seen as who it is.
    host_a.kvmctl("port", "add", "web", "9900:7")
    try:
        talk = host_b.outside(["socat", "-", f"TCP:{host_a.address}:9900"])
        with subprocess.Popen(talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("who\n")
            process.stdin.flush()
            assert process.stdout.readline() == "who\n"
            assert f"{host_b.address}:" in web.run("netstat -tn")
            process.stdin.close()
    finally:
        host_a.kvmctl("port", "remove", "web", "9900")


def test_nothing_else_of_the_guest_is_reached_from_outside(
    guests: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    web, _sibling = guests
    address = web.address()
    # Even where somebody routes the guests' subnet to the host: not forwarded is not reached.
    host_b.net.ip("route", "add", f"{host_a.subnet}.0/24", "via", host_a.address)
    try:
        for port in (80, 22, 7):
            refused = fetch(host_b, address, port)
            assert refused.returncode != 0 and "web" not in refused.stdout
        assert host_b.client(["ping", "-c1", "-W2", address], check=False).returncode != 0
    finally:
        host_b.net.ip("route", "del", f"{host_a.subnet}.0/24")
    # While the guest reaches out: host b's libvirtd listens on TCP.
    assert reaches(web, host_b.address, 16509)


def answered(host: Host, guest: Guest, port: int) -> bool:
    """Whether the host's loopback answers the guest on ``port``, seen on the bridge."""
    # The echo that the guest asks for afterwards tells that all there was before it has been seen.
    wanted = f"(tcp and src host 127.0.0.1 and src port {port}) or (icmp and src host {host.subnet}.1)"
    watch = host.outside(["tcpdump", "-lnn", "--immediate-mode", "-i", "virbr0", wanted])
    listen = ["socat", "-u", f"TCP-LISTEN:{port},bind=127.0.0.1", "/dev/null"]
    with (
        subprocess.Popen(host.outside(listen)) as listener,
        subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dump,
    ):
        assert dump.stderr is not None and dump.stdout is not None
        while "listening on" not in dump.stderr.readline():
            pass
        wait_until(lambda: f"127.0.0.1:{port} " in host.client(["ss", "-tln"]).stdout, "the listener")
        reaches(guest, "127.0.0.1", port, patience=3)
        guest.run(f"until ping -c 1 -W 5 {host.subnet}.1; do sleep 1; done")
        line = dump.stdout.readline()
        dump.terminate()
        listener.terminate()
        return f"127.0.0.1.{port} >" in line


def test_a_guest_does_not_reach_the_hosts_loopback(guests: tuple[Guest, Guest], host_a: Host) -> None:
    """What lets loopback's packets out to the guests (route_localnet) would let theirs in, but for a guard."""
    _web, sibling = guests
    sibling.run(
        "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet;"
        "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local;"
        f"ip route add 127.0.0.1/32 via {host_a.subnet}.1"
    )
    # A port of its own each time: what is left of the connection that came about is sent again for a while.
    assert not answered(host_a, sibling, 7070)
    host_a.run(["nft", "flush", "chain", "inet", "kvmctl", "guard"])
    assert answered(host_a, sibling, 7071)
    host_a.kvmctl("port", "sync")
    assert not answered(host_a, sibling, 7072)
    sibling.run(
        "ip route del 127.0.0.1/32; ip route add local 127.0.0.0/8 dev lo table local;"
        "ip route add local 127.0.0.1 dev lo table local"
    )


def test_udp_a_chosen_address_and_a_range(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    web, _ = guests
    # Nobody in the guest listens: its kernel counts the datagram and says so to whoever sent it.
    arrived = "awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp"
    before = int(web.run(arrived))
    web.run("for p in 81 82; do httpd -p $p -h /www; done")
    host_a.kvmctl("port", "add", "web", "7000:70/udp", f"{host_a.address}:9000:80", "8181-8182:81-82")
    try:
        asked = host_b.client(["socat", "-t", "30", f"UDP:{host_a.address}:7000", "STDIO"], input="x\n", check=False)
        assert "Connection refused" in asked.stderr
        assert int(web.run(arrived)) == before + 1
        assert fetch(host_b, host_a.address, 9000).stdout.strip() == "web"
        assert fetch(host_a, "127.0.0.1", 9000).returncode == 7
        for port in (8181, 8182):
            assert fetch(host_b, host_a.address, port).stdout.strip() == "web"
        assert ("udp", "0.0.0.0", 7000, 70, True) in published(host_a, "web")
    finally:
        host_a.kvmctl("port", "remove", "web", "7000/udp", f"{host_a.address}:9000:80", "8181-8182")
    assert fetch(host_b, host_a.address, 9000).returncode == 7
    assert published(host_a) == [("tcp", "0.0.0.0", 8080, 80, True)]


def test_an_open_connection_is_not_disturbed(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    host_a.kvmctl("port", "add", "web", "7777:7")
    talk = host_b.outside(["socat", "-t", "30", "-", f"TCP:{host_a.address}:7777"])
    with subprocess.Popen(talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def say(text: str) -> str:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert say("one") == "one"
        host_a.kvmctl("port", "add", "web", "7778:7")
        assert say("two") == "two"
        host_a.kvmctl("port", "sync")
        host_a.kvmctl("port", "remove", "web", "7778")
        assert say("three") == "three"
        process.stdin.close()
        assert process.wait(60) == 0
    host_a.kvmctl("port", "remove", "web", "7777")
    assert fetch(host_b, host_a.address, 7777).returncode == 7


def test_a_port_that_somebody_has_is_refused_with_who(guests: tuple[Guest, Guest], host_a: Host) -> None:
    before = rules(host_a)
    taken = host_a.kvmctl("port", "add", "sibling", "8080:80", "-o", "json", check=False)
    assert taken.returncode == 4 and "leads to web already" in taken.error()["message"]
    there = host_a.kvmctl("port", "add", "sibling", "127.0.0.1:8080:80", "-o", "json", check=False)
    assert there.returncode == 4
    used = host_a.kvmctl("port", "add", "sibling", "16509:80", "-o", "json", check=False)
    assert used.returncode == 4 and "in use by libvirtd" in used.error()["message"]
    nowhere = host_a.kvmctl("port", "add", "sibling", "10.99.9.9:81:80", "-o", "json", check=False)
    assert nowhere.returncode == 2 and "no address" in nowhere.error()["message"]
    again = host_a.kvmctl("port", "add", "web", "8080:80", "-o", "json")
    assert again.json() == []
    missing = host_a.kvmctl("port", "remove", "web", "81", "-o", "json", check=False)
    assert missing.returncode == 3
    for bad in ("0:80", "65536:80", "-1:80", "9-7:9-7", "1:2/sctp", "a;b:80"):
        assert host_a.kvmctl("port", "add", "--", "web", bad, check=False).returncode == 2
    assert rules(host_a) == before


HOSTILE = "a\x1b[2J\x9bb;$(id)\n"


def test_host_names_that_guests_give_themselves_harm_nobody(guests: tuple[Guest, Guest], host_a: Host) -> None:
    _web, sibling = guests
    written = "".join(f"\\{byte:03o}" for byte in HOSTILE.encode("latin-1"))
    sibling.run(f"udhcpc -f -q -n -i eth0 -s /bin/true -x hostname:\"$(printf '{written}')\"")
    # dnsmasq keeps no such name today; what libvirt would make of one is in this file.
    status = "/var/lib/libvirt/dnsmasq/virbr0.status"
    known = host_a.run(["cat", status]).stdout
    entries = json.loads(known)
    entries.append(
        {"ip-address": f"{host_a.subnet}.99", "mac-address": "52:54:00:77:00:99", "hostname": HOSTILE}
        | {"client-id": HOSTILE, "expiry-time": 4102444800}
    )
    host_a.run(["tee", status], input=json.dumps(entries))
    try:
        for output in ("table", "wide", "json", "yaml", "name"):
            told = host_a.kvmctl("net", "leases", "default", "-o", output).stdout
            assert f"{host_a.subnet}.99" in told
            assert not [c for c in told if not (c.isprintable() or c == "\n")], output
        leases = host_a.kvmctl("net", "leases", "default", "-o", "json").json()
        assert next(row["hostname"] for row in leases if row["ip"].endswith(".99")) == HOSTILE
        assert "\x1b" not in host_a.kvmctl("net", "map").stdout
    finally:
        host_a.run(["tee", status], input=known)


def test_over_a_remote_connection_it_says_what_it_cannot(
    guests: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    before = rules(host_a)
    told = host_b.kvmctl("-c", host_a.tcp_uri, "port", "add", "web", "8081:80", "-o", "json", check=False)
    assert told.returncode == 7
    assert "remote" in told.error()["message"] or "cannot be changed" in told.error()["message"]
    assert rules(host_a) == before
    seen = host_b.kvmctl("-c", host_a.tcp_uri, "port", "list", "-o", "json").json()
    assert [(row["host_port"], row["active"]) for row in seen] == [(8080, None)]
    assert "remote" in seen[0]["reason"]


def checked(host: Host, name: str) -> tuple[str, str]:
    """Level and detail of one check of ``host check``."""
    found = host.kvmctl("host", "check", "-o", "json").json()["checks"]
    return next((check["level"], check["detail"]) for check in found if check["name"] == name)


def test_what_is_not_in_force_is_told_and_put_back(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    reserved = host_a.kvmctl("net", "info", "default", "-o", "json").json()["reservations"]
    assert [entry["mac"] for entry in reserved] == [WEB]
    assert checked(host_a, "published-ports") == ("ok", "1 port published, all in force")
    trouble = {
        "nft flush chain inet kvmctl prerouting": "missing from the host's firewall",
        "nft delete table inet kvmctl": "missing from the host's firewall",
    }
    if host_a.uses_nftables():
        chain = "ip libvirt_network guest_input"
        number = f"$(nft -a list chain {chain} | sed -n 's/.*\"kvmctl\" # handle //p')"
        known = host_a.run(["nft", "-a", "list", "chain", *chain.split()]).stdout
        accept = re.search(r'oifname "virbr0" .*(?= counter packets)', known)
        assert accept is not None
        trouble |= {
            f"nft delete rule {chain} handle {number}": "accept is missing",
            f"nft delete rule {chain} handle {number}; nft 'add rule {chain} {accept[0]} counter accept "
            'comment "kvmctl"\'': "behind it",
        }
    else:
        trouble |= {
            "iptables -D FORWARD -j KVMCTL_FWD": "libvirt's own chain rejects it",
            "iptables -F KVMCTL_FWD": "was emptied",
            "iptables -D FORWARD -j KVMCTL_FWD && iptables -A FORWARD -j KVMCTL_FWD": "behind it",
        }
    for break_it, reason in trouble.items():
        host_a.run(["sh", "-c", break_it])
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and reason in row["reason"], break_it
        level, detail = checked(host_a, "published-ports")
        assert level == "warn" and "8080/tcp of web" in detail and reason in detail, break_it
        assert fetch(host_b, host_a.address, 8080).returncode != 0, break_it
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web", break_it
    host_a.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
    (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
    told = [checked(host_a, name) for name in ("published-ports", "forwarding")]
    host_a.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    assert row["active"] is False and "ip_forward" in row["reason"]
    assert [level for level, _ in told] == ["warn", "warn"]


def test_without_nft_it_is_said_before_anything_is_made(host_a: Host, tiny: images.Tiny) -> None:
    """libvirt does with iptables alone, and what Debian 13 installs with it brings no nft."""
    (nft,) = host_a.client(["sh", "-c", "command -v nft"]).stdout.split()
    # What is no program any more is not found.
    host_a.client(["mount", "--bind", "/dev/null", nft])
    try:
        options = [*kernel(tiny), "--net", "nat", "-p", "8097:80"]
        told = host_a.kvmctl("create", "half", *options, "-o", "json", check=False)
        assert told.returncode == 7 and "nft, which is not installed" in told.error()["message"]
        assert "undo" not in told.stderr and "nftables" in (told.error()["hint"] or "")
        assert "half" not in [domain.name() for domain in host_a.conn.listAllDomains(0)]
        level, detail = checked(host_a, "published-ports")
        assert level == "warn" and "needs nft" in detail
        host_a.start_default_network()
        if not host_a.uses_nftables():
            # What needs no published ports works, and libvirt's own rules are seen in iptables.
            assert checked(host_a, "networks")[0] == "ok"
            host_a.run(["iptables", "-F", "LIBVIRT_FWO"])
            level, detail = checked(host_a, "networks")
            assert level == "warn" and "libvirt's own rules" in detail
    finally:
        host_a.client(["umount", nft])
        host_a.restart_libvirtd()
        # No hooks are installed here, and libvirtd has put its own rules in anew.
        host_a.kvmctl("port", "sync")
    assert checked(host_a, "published-ports")[0] == "ok"
    assert checked(host_a, "networks")[0] == "ok"


def test_docker_dropping_in_forward_does_not_stop_it(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    host_a.run(["iptables", "-P", "FORWARD", "DROP"])
    try:
        if host_a.uses_nftables():
            # kvmctl has nothing in iptables until somebody drops there: that is told, and put right when asked.
            (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
            assert row["active"] is False and "FORWARD chain's policy drops it" in row["reason"]
            host_a.kvmctl("port", "sync")
            assert published(host_a) == [("tcp", "0.0.0.0", 8080, 80, True)]
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
    finally:
        host_a.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    # What was put there for it goes again with its forward, though nobody drops any more.
    host_a.kvmctl("port", "add", "web", "8089:89")
    host_a.kvmctl("port", "remove", "web", "8089")
    assert "dport 89 " not in rules(host_a)


def test_libvirts_nftables_back_end(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    """What libvirt 11.3 of Debian 13 made for its network ``default``, beside the iptables rules of this one."""
    if host_a.uses_nftables():
        pytest.skip("libvirt's real nftables back end is at work here, in every other test of this file")
    table = f"""
        table ip libvirt_network {{
            chain forward {{ type filter hook forward priority filter; policy accept;
                counter jump guest_cross; counter jump guest_input; counter jump guest_output; }}
            chain guest_output {{
                ip saddr {host_a.subnet}.0/24 iif "virbr0" counter accept
                iif "virbr0" counter reject
            }}
            chain guest_input {{
                oif "virbr0" ip daddr {host_a.subnet}.0/24 ct state established,related counter accept
                oif "virbr0" counter reject
            }}
            chain guest_cross {{ iif "virbr0" oif "virbr0" counter accept; }}
        }}
    """
    host_a.run(["nft", "-f", "-"], input=table)
    try:
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and "guest_input" in row["reason"]
        assert fetch(host_b, host_a.address, 8080).returncode != 0
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
        host_a.kvmctl("port", "sync")
        chain = host_a.run(["nft", "list", "chain", "ip", "libvirt_network", "guest_input"]).stdout
        assert chain.count('comment "kvmctl"') == 1
        # Told to reload, libvirt puts its own rules in front again.
        host_a.run(["nft", "insert", "rule", "ip", "libvirt_network", "guest_input", 'oif "virbr0" counter reject'])
        assert fetch(host_b, host_a.address, 8080).returncode != 0
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and "guest_input" in row["reason"] and "behind it" in row["reason"]
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
        host_a.kvmctl("port", "remove", "web", "8080")
        chain = host_a.run(["nft", "list", "chain", "ip", "libvirt_network", "guest_input"]).stdout
        assert "kvmctl" not in chain and rules(host_a) == ""
    finally:
        host_a.run(["nft", "delete", "table", "ip", "libvirt_network"])
        host_a.kvmctl("port", "add", "web", "8080:80")


# What fails at each of them: it does nothing, or ("-done") all that it has to and then fails.
STEPS = [
    *("reservation", "reservation-done", "metadata", "metadata-done", "looking", "iptables-restore"),
    *("iptables-restore-done", "route_localnet", "route_localnet-done", "nft", "nft-done"),
]


@pytest.mark.parametrize("first", [False, True], ids=["another", "the-first"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_everything_as_before(
    guests: tuple[Guest, Guest], host_a: Host, tmp_path: Path, step: str, first: bool
) -> None:
    def now() -> tuple[str, str, str, str]:
        # libvirt counts the running guests in it while the definition stays the same.
        network = re.sub(r" connections='\d+'", "", host_a.virsh("net-dumpxml", "default").stdout)
        ruleset = re.sub(r"packets \d+ bytes \d+", "", host_a.run(["nft", "list", "ruleset"]).stdout)
        loopback = host_a.run(["sysctl", "net.ipv4.conf.virbr0.route_localnet"]).stdout
        return ruleset, loopback, network, host_a.virsh("dumpxml", "sibling").stdout

    if step.startswith("iptables-restore") and host_a.uses_nftables():
        pytest.skip("nothing is put into iptables where libvirt uses nftables and nobody drops there")
    if first:
        host_a.kvmctl("port", "remove", "web", "8080")
        assert rules(host_a) == ""
    before = now()
    broken = """
import runpy, sys
import kvmctl.operations.{module} as module
def fail(*args, **kwargs):
    raise OSError(28, "injected failure")
{patch}
sys.argv = ["kvmctl", "port", "add", "sibling", "8099:80"]
runpy.run_module("kvmctl", run_name="__main__")
"""
    # Once: what is undone afterwards must not fail again.
    once = """
old = module.{name}
def broken(*args, **kwargs):
    if {only}:
        module.{name} = old
        if {done}:
            old(*args, **kwargs)
        fail()
    return old(*args, **kwargs)
module.{name} = broken
"""
    what = step.removesuffix("-done")
    module, name = {
        "iptables-restore": ("firewall", "_run"),
        "nft": ("firewall", "_run"),
        "route_localnet": ("firewall", "_localnet"),
        "looking": ("ports", "wanted_rules"),
        "reservation": ("reservations", "_update"),
        "metadata": ("metadata", "write"),
    }[what]
    only = f"args[0] == {what!r}" if name == "_run" else "True"
    patch = once.format(name=name, only=only, done=step.endswith("-done"))
    script = tmp_path / "broken.py"
    script.write_text(broken.format(module=module, patch=patch))
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr, done.stderr
    after = now()
    if first:
        host_a.kvmctl("port", "add", "web", "8080:80")
    assert after == before


@pytest.mark.parametrize("program", ["iptables-restore", "nft"])
def test_a_creation_whose_ports_cannot_be_published_leaves_nothing(
    guests: tuple[Guest, Guest], host_a: Host, tiny: images.Tiny, tmp_path: Path, program: str
) -> None:
    def now() -> tuple[str, str, list[str]]:
        network = re.sub(r" connections='\d+'", "", host_a.virsh("net-dumpxml", "default").stdout)
        ruleset = re.sub(r"packets \d+ bytes \d+", "", host_a.run(["nft", "list", "ruleset"]).stdout)
        return ruleset, network, sorted(domain.name() for domain in host_a.conn.listAllDomains(0))

    if program == "iptables-restore" and host_a.uses_nftables():
        pytest.skip("nothing is put into iptables where libvirt uses nftables and nobody drops there")
    before = now()
    argv = ["kvmctl", "create", "half", *kernel(tiny), "--net", "nat", "-p", "8098:80"]
    script = tmp_path / "broken.py"
    script.write_text(
        "import runpy, sys\n"
        "import kvmctl.operations.firewall as module\n"
        "old = module._run\n"
        "def run(*command, input):\n"
        f"    if command[0] == {program!r}:\n"
        "        module._run = old\n"
        "        raise OSError(28, 'injected failure')\n"
        "    return old(*command, input=input)\n"
        "module._run = run\n"
        f"sys.argv = {argv!r}\n"
        "runpy.run_module('kvmctl', run_name='__main__')\n"
    )
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr, done.stderr
    assert now() == before


def test_a_restart_of_the_guest_keeps_its_address_and_ports(
    guests: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    web, _ = guests
    address = web.address()
    # Another address is not to be had, whatever the guest asks for.
    asked = web.run(f"udhcpc -f -n -q -i eth0 -s /bin/true -r {host_a.subnet}.150")
    assert f"lease of {address} obtained" in asked
    host_a.kvmctl("destroy", "web")
    assert rules(host_a) == ""
    (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
    assert (row["active"], row["reason"]) == (False, "the guest is not running")
    host_a.kvmctl("start", "web")
    web.text = ""
    assert web.open().address() == address
    assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"


def test_stopping_the_network_and_libvirtd_do_no_harm(guests: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    """Without libvirt's hooks, which see to what virsh does."""
    host_a.restart_libvirtd()
    if host_a.uses_nftables():
        # Its chain is kvmctl's too, and libvirtd has just put its own rules in front there.
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and "behind it" in row["reason"]
        host_a.kvmctl("port", "sync")
    assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
    host_a.kvmctl("net", "stop", "default", "--force")
    assert rules(host_a) == ""
    started = host_a.kvmctl("net", "start", "default", "-o", "json").json()
    assert started["reattached"] == ["sibling", "web"]
    # With STP on, as libvirt's default network has it, a bridge lets a new port through after two forward delays.
    wait_until(lambda: fetch(host_b, host_a.address, 8080).stdout.strip() == "web", "the port")
    assert fetch(host_a, "127.0.0.1", 8080).stdout.strip() == "web"
    assert published(host_a) == [("tcp", "0.0.0.0", 8080, 80, True)]
