"""A published port as users write it: ``[ADDR:]HOST:GUEST[/udp]``, with ranges on both sides."""

import re
from collections.abc import Sequence
from typing import Literal

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model.metadata import Forward

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_HINT = "write it [ADDR:]HOST:GUEST[/udp], like 8080:80, 127.0.0.1:2222:22 or 5000-5009:5000-5009/udp"
# One firewall rule or one monitor command a port: more at once is a typing error.
LARGEST_RANGE = 1024


def parse_forward(text: str) -> tuple[Forward, ...]:
    """The forwards that ``text`` names, one a port. Raises UsageProblem, saying what is wrong with it."""
    shown = f"{text[:80]!a}"
    ports, slash, protocol = text.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise UsageProblem(f"{shown}: the protocol is tcp or udp", _HINT)
    address: str | None
    if ports.startswith("["):
        address, bracket, rest = ports[1:].partition("]:")
        if not bracket:
            raise UsageProblem(f"{shown}: the address has no closing bracket", _HINT)
        parts = rest.split(":")
    else:
        parts = ports.split(":")
        address = parts.pop(0) if len(parts) == 3 else None
    if len(parts) != 2:
        raise UsageProblem(f"{shown} does not name a host port and a guest port", _HINT)
    if address is not None:
        # Imported late: most forwards name no address, and each new VM waits for the imports.
        import ipaddress

        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            raise UsageProblem(f"{shown}: {address[:60]!a} is not an IP address", _HINT) from None
    host, guest = _range(parts[0], shown), _range(parts[1], shown)
    if len(host) != len(guest):
        raise UsageProblem(f"{shown}: {len(host)} host ports cannot lead to {len(guest)} guest ports", _HINT)
    kind: Literal["tcp", "udp"] = "udp" if protocol == "udp" else "tcp"
    return tuple(Forward(kind, h, g, address) for h, g in zip(host, guest, strict=True))


def _range(text: str, shown: str) -> range:
    match = _PORTS.match(text)
    if not match:
        raise UsageProblem(f"{shown}: {text[:40]!a} is not a port", _HINT)
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not (0 < first < 65536 and 0 < last < 65536):
        raise UsageProblem(f"{shown}: a port is between 1 and 65535", _HINT)
    if last < first:
        raise UsageProblem(f"{shown}: the range {text} runs backwards", _HINT)
    if last - first >= LARGEST_RANGE:
        raise UsageProblem(f"{shown}: more than {LARGEST_RANGE} ports in one range", _HINT)
    return range(first, last + 1)


def written(forward: Forward) -> str:
    """``forward`` as a user would write it."""
    address = f"[{forward.address}]" if forward.address and ":" in forward.address else forward.address
    head = f"{address}:" if address else ""
    tail = "/udp" if forward.protocol == "udp" else ""
    return f"{head}{forward.host_port}:{forward.guest_port}{tail}"


def parse_selection(text: str, among: Sequence[Forward]) -> tuple[Forward, ...]:
    """Which of ``among`` TEXT means: a forward as it was published, or its host port alone (``8080``, ``53/udp``).

    Raises UsageProblem for what is neither, NotFound where none of ``among`` is meant.
    """
    if ":" in text:
        named = parse_forward(text)
        found = tuple(forward for forward in named if forward in among)
        missing = [forward for forward in named if forward not in among]
    else:
        ports, slash, protocol = text.partition("/")
        if slash and protocol not in ("tcp", "udp"):
            raise UsageProblem(f"{text[:80]!a}: the protocol is tcp or udp", _HINT)
        wanted = _range(ports, f"{text[:80]!a}")
        found = tuple(f for f in among if f.host_port in wanted and f.protocol == (protocol or "tcp"))
        missing = []
    if missing or not found:
        raise NotFound(f"no forward {text[:80]!a} is published", "'kvmctl port list' shows those there are")
    return found
