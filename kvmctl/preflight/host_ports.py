"""Which ports of this machine somebody listens on, and who (/proc/net, proc(5))."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvmctl.errors import Conflict
from kvmctl.model.forward import written
from kvmctl.model.metadata import Forward
from kvmctl.model.names import harmless

# TCP_LISTEN in the kernel's include/net/tcp_states.h, as /proc/net/tcp writes it.
_LISTEN = "0A"
# A UDP socket that is bound and not connected shows as TCP_CLOSE.
_UNCONNECTED = "07"


@dataclass(frozen=True)
class Listener:
    """One listening socket; ``inode`` tells whose."""

    protocol: str
    address: str
    port: int
    inode: int


def listeners(proc: Path = Path("/proc")) -> list[Listener]:
    """Every listening TCP socket and unconnected UDP socket of this network namespace."""
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        protocol, state = name[:3], _LISTEN if name.startswith("tcp") else _UNCONNECTED
        with contextlib.suppress(OSError):
            for line in (proc / "self" / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == state:
                    address, _, port = fields[1].partition(":")
                    found.append(Listener(protocol, _address(address), int(port, 16), int(fields[9])))
    return found


def _address(text: str) -> str:
    """The kernel prints an address as 32-bit words in the machine's own byte order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def refuse_in_use(forwards: Iterable[Forward], default: str | None, proc: Path = Path("/proc")) -> None:
    """Raise Conflict, naming the program, where somebody listens on a host port of ``forwards``.

    ``default`` is the address of a forward that names none; None for every one.
    """
    there = listeners(proc)
    for forward in forwards:
        address = forward.address or default
        for listener in there:
            if (listener.protocol, listener.port) != (forward.protocol, forward.host_port):
                continue
            if _meets(address, listener.address):
                who = holder(listener.inode, proc)
                raise Conflict(
                    f"the host's port {forward.host_port}/{forward.protocol} is in use by {who or 'another program'} "
                    f"on {listener.address}",
                    f"publish another, like {written(_moved(forward))}",
                )


def _moved(forward: Forward) -> Forward:
    higher = forward.host_port + 10000 if forward.host_port < 50000 else forward.host_port - 10000
    return Forward(forward.protocol, higher, forward.guest_port, forward.address)


def _meets(wanted: str | None, used: str) -> bool:
    return wanted in (None, "0.0.0.0", used) or used in ("0.0.0.0", "::")


def holder(inode: int, proc: Path = Path("/proc")) -> str | None:
    """The program that has the socket ``inode``, as ``nginx (pid 812)``; None where it is not to be seen."""
    wanted = f"socket:[{inode}]"
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == wanted:
                        name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
                        return f"{harmless(name)} (pid {folder.name})"
    return None
