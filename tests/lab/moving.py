"""Guests that move between the lab's hosts, on one LAN, and a witness on the wire of how long they stood still."""

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.guest import Guest
from tests.lab.hosts import REPOSITORY, Host, wait_until
from tests.lab.images import Tiny
from tests.lab.lab import Lab
from tests.lab.process import Result

BRIDGE = "br0"
# An address on the wire's bridge "lan", that the guest's heartbeat is sent to.
WIRE = "10.78.0.254"
ADDRESS = "10.78.0.11"
# QEMU before 9.0 forgets writes of an emulated guest while it sends its memory (its commit 03bfc2188f mends that): of
# 16 moves 6 ended in a guest that hangs, by kvmctl as by virsh. It does so only in a block of memory whose size is a
# multiple of 64 pages, as all are that libvirt makes. With this one, of two pages more, none of 52 did.
_ODD_KIB = 8
_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  {elements}
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{tiny.kernel}</kernel>
    <initrd>{tiny.initrd}</initrd>
    <cmdline>{tiny.cmdline} lab.noseed {cmdline} lab.address={address}/24</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <serial type='pty'/>
    <console type='pty'/>
    <interface type='bridge'><source bridge='{bridge}'/><model type='virtio'/></interface>
    <memballoon model='virtio'/>
    {devices}
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/><qemu:arg value='memory-backend-ram,id=odd,size={odd}k'/>
    <qemu:arg value='-machine'/><qemu:arg value='memory-backend=odd'/>
    <qemu:arg value='-m'/><qemu:arg value='size={odd}k'/>
  </qemu:commandline>
</domain>
"""


def join_lans(lab: Lab) -> None:
    """On each host a bridge of the same name with the host's end of the LAN: a real layer 2 between the two."""
    for host in lab.hosts:
        if host.net.run(["ip", "link", "show", BRIDGE], check=False).returncode:
            host.net.bridge(BRIDGE, "lan0")


def leave_lans(lab: Lab) -> None:
    """Take those bridges away again: other tests want the host's end of the LAN for themselves."""
    for host in lab.hosts:
        host.net.run(["ip", "link", "delete", BRIDGE], check=False)


def disk(path: str, form: str = "qcow2", target: str = "vda") -> str:
    """``<disk>`` on a file of the hypervisor's."""
    return (
        f"<disk type='file'><driver name='qemu' type='{form}' cache='none'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


@dataclass
class Moving:
    """A guest that sends a heartbeat, wherever it is."""

    lab: Lab
    name: str
    uuid: str
    address: str

    def host(self) -> Host:
        """The host on which it runs; fails where that is not exactly one."""
        running = [host for host in self.lab.hosts if self.state(host) in ("running", "paused")]
        assert len(running) == 1, f"{self.name} is on {[h.name for h in running]}"
        return running[0]

    def state(self, host: Host) -> str:
        """libvirt's word for its state there, or ``absent``."""
        said = host.virsh("domstate", self.uuid, check=False)
        return said.stdout.strip() if said.returncode == 0 else "absent"

    def alive(self) -> Guest:
        """Its console, after it has answered."""
        return Guest(self.host(), self.name).ready(30)

    def assert_one(self, where: Host, state: str = "running") -> None:
        """It is on ``where`` and nowhere else, and when running it answers and its heart beats."""
        other = next(host for host in self.lab.hosts if host is not where)
        states = {host.name: self.state(host) for host in (where, other)}
        assert states == {where.name: state, other.name: "absent"}, f"{self.name} should be on {where.name}: {states}"
        qemus = [host.name for host in self.lab.hosts for _ in qemu_pids(host, self.name)]
        assert qemus == [where.name], f"{self.name} should be on {where.name} alone, its QEMU is on {qemus}"
        if state == "running" and not Witness(self.lab, self.address, 0.6).gaps():
            with Guest(where, self.name) as console:
                raise AssertionError(f"no heartbeat on the wire: {console.run('cat /tmp/ping.log; dmesg | tail')}")


# What the fixture ``moving`` gives: define(), with but its options to say.
Define = Callable[..., Moving]


def define(
    lab: Lab,
    host: Host,
    tiny: Tiny,
    name: str,
    devices: str = "",
    memory: int = 256,
    start: bool = True,
    cmdline: str = "lab.nodhcp",
    elements: str = "",
) -> Moving:
    """Define and start a guest on ``host``, and its heartbeat. ``devices``: XML of more of them.

    ``elements``: XML of more of the domain itself. ``memory`` in MiB.
    """
    join_lans(lab)
    guest = Moving(lab, name, str(uuid.uuid4()), ADDRESS)
    text = _DOMAIN.format(
        name=name,
        uuid=guest.uuid,
        tiny=tiny,
        address=ADDRESS,
        bridge=BRIDGE,
        memory=memory,
        odd=memory * 1024 + _ODD_KIB,
        devices=devices,
        cmdline=cmdline,
        elements=elements,
    )
    domain = host.conn.defineXML(text)
    if start:
        domain.create()
        with Guest(host, name) as console:
            console.ready(60)
            console.wait_for(f"address eth0 {ADDRESS}")
            # Two milliseconds between beats; busybox' ping takes fractions.
            # In a session of its own: the console's hangs up when nobody holds it open on the other host.
            console.run(f"(setsid ping -i 0.002 {WIRE} </dev/null >/dev/null 2>/tmp/ping.log &)")
            # A guest with more than its heartbeat to do, so that memory changes while it moves.
            console.run("(setsid sh -c 'while :; do cat /proc/uptime; usleep 1000; done' </dev/null >/dev/null 2>&1 &)")
    return guest


def dirty(guest: Moving, mebibytes: int) -> None:
    """Let the guest rewrite so much memory over and over, each page with something else every time.

    Not zeros, of which QEMU sends next to nothing, nor what was there before: random bytes, moved by a MiB a round.
    """
    with Guest(guest.host(), guest.name) as console:
        console.run(f"dd if=/dev/urandom of=/tmp/d bs=1M count={mebibytes + 1}", timeout=120)
        copy = "dd if=/tmp/d of=/tmp/d bs=1M conv=notrunc"
        loop = f"while :; do {copy} seek={mebibytes} count=1; {copy} skip=1 count={mebibytes}; done"
        console.run(f"(setsid sh -c '{loop}' </dev/null >/dev/null 2>&1 &)")


def qemu_pids(host: Host, name: str) -> list[int]:
    """QEMU's process ids for this guest, as the host itself counts."""
    said = host.run(
        ["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | sed \"s:^:${p#/proc/} :\"; echo; done"]
    )
    return [
        int(line.split(" ", 1)[0])
        for line in said.stdout.splitlines()
        if f"guest={name}," in line and "qemu-system" in line
    ]


class Witness:
    """Counts the guest's packets on the wire, in a process of its own, with the kernel's time stamps."""

    def __init__(self, lab: Lab, address: str, seconds: float | None = None) -> None:
        self._process = subprocess.Popen(
            ["nsenter", f"--net={lab.wire.path}", "--", sys.executable, "-m", "tests.lab.moving", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"listening\n"
        if seconds is not None:
            time.sleep(seconds)

    def gaps(self) -> list[float]:
        """Stop, and return the times between one packet and the next, in ms, longest first."""
        output, _ = self._process.communicate(b"\n", timeout=30)
        stamps = [float(line) for line in output.split()]
        return sorted(((b - a) * 1000 for a, b in itertools.pairwise(stamps)), reverse=True)


def _listen(address: str) -> None:
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.bind(("lan", 0))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        # SO_TIMESTAMPNS of asm-generic/socket.h, which Python has no name for.
        wire.setsockopt(socket.SOL_SOCKET, 35, 1)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        stamps = []
        os.set_blocking(0, False)
        wire.settimeout(0.2)
        while os_read_nothing():
            with contextlib.suppress(TimeoutError):
                data, extra, _, _ = wire.recvmsg(64, 128)
                if data[26:30] == wanted:
                    seconds, nanoseconds = struct.unpack("qq", extra[0][2][:16])
                    stamps.append(seconds + nanoseconds / 1e9)
    sys.stdout.write("\n".join(f"{stamp:.6f}" for stamp in stamps))


def os_read_nothing() -> bool:
    """Whether nobody has said yet that it is enough."""
    try:
        return os.read(0, 1) == b"never"
    except BlockingIOError:
        return True


class Running:
    """A kvmctl that is under way, to be interrupted."""

    def __init__(self, host: Host, *args: str) -> None:
        self.host = host
        self.process = subprocess.Popen(
            host.kvmctl_command(*args),
            env=host.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, number: int) -> None:
        """Send a signal to kvmctl (nsenter has become it: without --fork it executes in place)."""
        self.process.send_signal(number)

    def end(self, timeout: float = 100) -> Result:
        """Wait for its end."""
        output, errors = self.process.communicate(timeout=timeout)
        return Result(("kvmctl",), self.process.returncode, output, errors)

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()


def until_sending(host: Host, name: str, more_than: int = 2**20) -> None:
    """Wait until the guest's memory (or disks) is on its way."""

    def sending() -> bool:
        with contextlib.suppress(Exception):
            stats = host.conn.lookupByName(name).jobStats(0)
            return int(stats.get("data_processed", 0)) > more_than
        return False

    wait_until(sending, f"{name} on its way", 40)


def images(host: Host) -> Path:
    """The host's pool "default" as the test sees it."""
    host.define_default_pool()
    return host.folder / "lib" / "images"


if __name__ == "__main__":
    _listen(sys.argv[1])
