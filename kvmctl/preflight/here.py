"""Whether the hypervisor is this machine's, and what the kernel then tells of its guests without a question to libvirt.

Apart from hostnet, which reads all of the host's network: every wide list asks this.
"""

import contextlib
import socket
import struct
from pathlib import Path

from kvmctl.connection import Hypervisor

# Where libvirtd, or the daemon that has taken its place, listens (RUNSTATEDIR/libvirt).
_SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtnetworkd-sock", "/run/libvirt/virtqemud-sock")
# ATF_COM in linux/if_arp.h: the entry has a hardware address.
_COMPLETE = 0x2


def is_here(hypervisor: Hypervisor) -> bool:
    """Whether the hypervisor's daemon runs in this process's network namespace.

    The kernel tells who listens on the daemon's socket (SO_PEERCRED); where it does not let us compare
    namespaces (not root), a local connection counts as here.
    """
    if hypervisor.is_remote:
        return False
    for path in (*hypervisor.query.get("socket", ()), *_SOCKETS):
        pid = _listener(path)
        if pid is None:
            continue
        try:
            return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
        except OSError:
            return True
    return True


def _listener(path: str) -> int | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid or None
    return None


def neighbours(table: Path = Path("/proc/net/arp")) -> list[tuple[str, str]] | None:
    """Address and MAC (lower case) of each IPv4 neighbour of this network namespace; None where it cannot be read.

    proc(5): a line each, IP address, HW type, flags, HW address, mask, device, below a heading.
    """
    try:
        lines = table.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return None
    found = []
    for line in lines:
        fields = line.split()
        with contextlib.suppress(IndexError, ValueError):
            if int(fields[2], 16) & _COMPLETE:
                found.append((fields[0], fields[3].lower()))
    return found
