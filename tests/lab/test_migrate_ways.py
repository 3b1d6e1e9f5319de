"""The other ways to move a guest (post-copy, encrypted, compressed, in parallel), and what goes on while it moves."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab
from tests.lab.moving import Define, Moving, Running, dirty, until_sending
from tests.lab.process import run

# Slow enough to be looked at on its way.
SLOWLY = ("--bandwidth", "100M")
# What is in the guest's memory, and so on the wire of whoever sends it in clear; and what is sent when that is over.
LAST_WORD = "~the end"
SECRET = "in-clear-on-the-wire-0123456789"


def asked(host: Host, guest: Moving, command: str) -> str:
    """What QEMU answers to ``command`` of its monitor."""
    return host.virsh("qemu-monitor-command", guest.name, "--hmp", command).stdout


def moved(guest: Moving, source: Host, there: Host, *options: str) -> dict[str, Any]:
    """Move it, and see that it is there, alive and once."""
    row = source.kvmctl("migrate", guest.name, there.tcp_uri, *options, "-o", "json").json()
    guest.assert_one(there)
    assert row["state"] == "running" and row["destination"] == there.tcp_uri
    return dict(row)


def proof(guest: Moving) -> str:
    """A checksum, taken inside the guest, of what it holds in memory."""
    with guest.alive() as console:
        return console.run("sha256sum /tmp/proof")


def remember(guest: Moving, mebibytes: int = 8) -> str:
    """Give the guest something in memory that is to arrive as it was."""
    with guest.alive() as console:
        console.run(f"dd if=/dev/urandom of=/tmp/proof bs=1M count={mebibytes}")
    return proof(guest)


def test_post_copy_at_once(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    before = remember(guest)
    # Or it would be over there before the first round has been seen to end: something to send, and no limit that a
    # guest keeps which the machine has let wait for a moment.
    dirty(guest, 8)
    row = moved(guest, host_a, host_b, "--postcopy", "now", "--bandwidth", "40M", "--max-downtime", "1ms")
    assert row["strategy"] == "post-copy"
    assert proof(guest) == before


def test_post_copy_where_nothing_else_helps(moving: Define, host_a: Host, host_b: Host) -> None:
    """A guest that writes faster than is sent: given up without post-copy, moved with it."""
    guest = moving()
    before = remember(guest)
    dirty(guest, 64)
    # Time enough to begin at all where the machine has other work: what is on its way by then is what post-copy ends.
    slow = ("--bandwidth", "8M", "--timeout", "14s")
    failed = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, *slow, "-o", "json", check=False)
    assert failed.returncode == 6 and "--postcopy auto" in failed.error()["hint"]
    guest.assert_one(host_a)
    row = moved(guest, host_a, host_b, *slow, "--postcopy", "auto")
    assert row["strategy"] == "post-copy"
    assert proof(guest) == before


@pytest.mark.parametrize(
    ("option", "capability"),
    [(("--compress",), "xbzrle"), (("--connections", "2"), "multifd")],
)
def test_qemu_is_told(moving: Define, host_a: Host, host_b: Host, option: tuple[str, ...], capability: str) -> None:
    guest = moving()
    before = remember(guest)
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, *option, "-o", "json")
    until_sending(host_a, guest.name)
    told = asked(host_a, guest, "info migrate_capabilities")
    result = running.end()
    assert f"{capability}: on" in told, told
    assert result.returncode == 0, result.stderr
    guest.assert_one(host_b)
    assert proof(guest) == before


@pytest.fixture
def certificates(lab: Lab, host_a: Host, host_b: Host, tmp_path: Path) -> Iterator[None]:
    """A certificate for QEMU on both hosts, by a certificate authority made for the moment."""

    def openssl(*args: str) -> None:
        run(["openssl", *args])

    key, authority = str(tmp_path / "ca.key"), str(tmp_path / "ca-cert.pem")
    new = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", key, "-out", authority, "-subj", "/CN=throw-away")
    for host in lab.hosts:
        folder = host.folder / "etc" / "pki"
        folder.mkdir()
        names = tmp_path / f"{host.name}.ext"
        names.write_text(f"subjectAltName=IP:{host.address},DNS:{host.name}\n")
        request, certificate = str(tmp_path / "csr"), folder / "server-cert.pem"
        openssl(
            "req", *new[:3], "-keyout", str(folder / "server-key.pem"), "-out", request, "-subj", f"/CN={host.name}"
        )
        openssl(
            "x509", "-req", "-in", request, "-CA", authority, "-CAkey", key, "-CAcreateserial", "-days", "2",
            "-extfile", str(names), "-out", str(certificate),
        )  # fmt: skip
        (folder / "ca-cert.pem").write_text(Path(authority).read_text())
        for kind in ("cert", "key"):
            (folder / f"client-{kind}.pem").write_text((folder / f"server-{kind}.pem").read_text())
    before = {host: (host.folder / "etc" / "qemu.conf").read_text() for host in lab.hosts}
    for host, text in before.items():
        told = 'migrate_tls_x509_cert_dir = "/etc/libvirt/pki"\nmigrate_tls_x509_verify = 1\n'
        (host.folder / "etc" / "qemu.conf").write_text(text + told)
        host.restart_libvirtd()
    yield
    for host, text in before.items():
        (host.folder / "etc" / "qemu.conf").write_text(text)
        run(["rm", "-r", str(host.folder / "etc" / "pki")])
        host.restart_libvirtd()


def ends(capture: Path) -> bool:
    """Whether the last word is among the last MiB that was captured."""
    return LAST_WORD.encode() * 2 in capture.read_bytes()[-(2**20) :]


@pytest.mark.usefixtures("certificates")
def test_encrypted(moving: Define, lab: Lab, host_a: Host, host_b: Host, tmp_path: Path) -> None:
    """With --tls nothing of the guest is read on the wire; without it is."""
    guest = moving()
    with guest.alive() as console:
        half = len(SECRET) // 2
        console.run(f"a={SECRET[:half]}; for i in 1 2 3 4 5 6 7 8; do echo $a{SECRET[half:]} >>/tmp/secret; done")
    seen = {}
    for source, there, options in ((host_a, host_b, ("--tls",)), (host_b, host_a, ())):
        capture = tmp_path / f"{source.name}.pcap"
        wire = ["nsenter", f"--net={lab.wire.path}", "--", "tcpdump", "-Z", "root", "-i", "lab-a"]
        listener = subprocess.Popen(
            [*wire, "-s", "0", "-B", "65536", "-U", "-w", str(capture), "tcp or icmp"], stderr=subprocess.PIPE
        )
        wait_until(capture.exists, "tcpdump")
        # No faster than tcpdump can write it down.
        moved(guest, source, there, "--bandwidth", "40M", *options)
        # It writes what it hears in order, and throws away what it has not written when it is ended.
        lab.wire.run(["ping", "-c", "1", "-p", LAST_WORD.encode().hex(), host_a.address])
        wait_until(functools.partial(ends, capture), "the last packet in the capture")
        listener.terminate()
        listener.communicate()
        seen[options] = SECRET.encode() in capture.read_bytes()
        capture.unlink()
    assert seen == {("--tls",): False, (): True}


def test_encryption_without_certificates_is_refused(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    result = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--tls", "-o", "json", check=False)
    assert result.returncode not in (0, 130) and f"running on {host_a.uri}" in result.error()["message"], result.stderr
    guest.assert_one(host_a)


class Session:
    """A program on the wire that talks with the guest, line by line."""

    def __init__(self, lab: Lab, *command: str) -> None:
        self._process = subprocess.Popen(
            ["nsenter", f"--net={lab.wire.path}", "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def say(self, line: str) -> str:
        """Send a line; the line that comes back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def test_open_connections_survive(moving: Define, lab: Lab, host_a: Host, host_b: Host) -> None:
    """A TCP connection and an SSH session from the LAN go on where they were, there and back."""
    ssh = lab.root / "ssh"
    guest = moving(cmdline=f"lab.nodhcp lab.key={(ssh / 'key.pub').read_text().split()[1]}")
    echo = Session(lab, "socat", "-", f"TCP:{guest.address}:7")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-F", "none"]
    shell = Session(lab, "ssh", *options, "-i", str(ssh / "key"), f"root@{guest.address}", "sh")
    try:
        assert echo.say("before") == "before"
        assert shell.say("x=kept; echo $x") == "kept"
        for source, there in ((host_a, host_b), (host_b, host_a)):
            moved(guest, source, there)
            assert echo.say(f"now on {there.name}") == f"now on {there.name}"
            assert shell.say("echo $x") == "kept"
    finally:
        echo.end()
        shell.end()


# The same MAC for the bridge on both hosts: else the guest goes on sending to the old one for a while.
NETWORK = """\
<network>
  <name>both</name><forward mode='nat'/><bridge name='vboth'/>
  <mac address='52:54:00:77:00:08'/>
  <ip address='192.168.77.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.77.100' end='192.168.77.200'/></dhcp>
  </ip>
</network>
"""
CARD = "52:54:00:77:00:09"


def test_reserved_address_and_published_port_move_along(moving: Define, lab: Lab, host_a: Host, host_b: Host) -> None:
    for host in lab.hosts:
        host.virsh("net-create", "/dev/stdin", input=NETWORK)
    nat = f"<interface type='network'><mac address='{CARD}'/><source network='both'/><model type='virtio'/></interface>"
    guest = moving(devices=nat, cmdline="")
    with Guest(host_a, guest.name) as console:
        address = console.address("eth1")
    host_a.kvmctl("port", "add", guest.name, "8099:80")

    def fetched(host: Host) -> str:
        url = f"http://{host.address}:8099/hostname"
        return lab.wire.run(["curl", "-sS", "--max-time", "4", url], check=False).stdout.strip()

    def reserved(host: Host) -> list[tuple[str, str]]:
        kept = host.kvmctl("net", "info", "both", "-o", "json").json()["reservations"]
        return [(entry["mac"], entry["ip"]) for entry in kept]

    assert fetched(host_a) == "tiny" and reserved(host_a) == [(CARD, address)]
    row = moved(guest, host_a, host_b)
    assert (reserved(host_a), reserved(host_b)) == ([], [(CARD, address)])
    # From here nothing can be done to the other host's firewall; that is said, with what is left to do there.
    assert len(row["warnings"]) == 1 and "published ports" in row["warnings"][0], row["warnings"]
    assert fetched(host_a) == ""
    host_b.kvmctl("port", "add", guest.name, "8099:80", local=True)
    assert fetched(host_b) == "tiny"
    host_b.kvmctl("port", "remove", guest.name, "8099", local=True)
