"""Published ports of guests behind NAT: every way in that there is, and none that there should not be."""

import json
import subprocess

from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.published import fetch, published, rules


def guest_fetch(guest: Guest, address: str, port: int) -> str:
    """Ask by HTTP from within a guest."""
    request = r"printf 'GET /hostname HTTP/1.0\r\n\r\n'"
    return guest.run(f"{request} | nc -w 20 {address} {port} | tail -n 1", check=False)


def reaches(guest: Guest, address: str, port: int, patience: int = 20) -> bool:
    """Whether a TCP connection from within a guest is taken, within ``patience`` seconds."""
    return guest.run(f"nc -w {patience} {address} {port} </dev/null >/dev/null 2>&1 && echo yes", check=False) == "yes"


def test_a_published_port_answers_from_everywhere(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    web, sibling = web_and_sibling
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
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    web, _sibling = web_and_sibling
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


def test_a_guest_does_not_reach_the_hosts_loopback(web_and_sibling: tuple[Guest, Guest], host_a: Host) -> None:
    """What lets loopback's packets out to the guests (route_localnet) would let theirs in, but for a guard."""
    _web, sibling = web_and_sibling
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


def test_udp_a_chosen_address_and_a_range(web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    web, _ = web_and_sibling
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


def test_an_open_connection_is_not_disturbed(web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
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


def test_a_port_that_somebody_has_is_refused_with_who(web_and_sibling: tuple[Guest, Guest], host_a: Host) -> None:
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


def test_host_names_that_guests_give_themselves_harm_nobody(web_and_sibling: tuple[Guest, Guest], host_a: Host) -> None:
    _web, sibling = web_and_sibling
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
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    before = rules(host_a)
    told = host_b.kvmctl("-c", host_a.tcp_uri, "port", "add", "web", "8081:80", "-o", "json", check=False)
    assert told.returncode == 7
    assert "remote" in told.error()["message"] or "cannot be changed" in told.error()["message"]
    assert rules(host_a) == before
    seen = host_b.kvmctl("-c", host_a.tcp_uri, "port", "list", "-o", "json").json()
    assert [(row["host_port"], row["active"]) for row in seen] == [(8080, None)]
    assert "remote" in seen[0]["reason"]


def test_a_restart_of_the_guest_keeps_its_address_and_ports(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    web, _ = web_and_sibling
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


def test_stopping_the_network_and_libvirtd_do_no_harm(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
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
