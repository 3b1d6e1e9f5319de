"""Whether the source reaches the destination, and whether both have the same time."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from kvmctl.connection import translated
from kvmctl.model.units import human_duration
from kvmctl.preflight import over_ssh
from kvmctl.preflight.asking import Asking
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides
from kvmctl.preflight.reachable import address

# qemu.conf: migration_port_min. Debian's firewall rules and everybody's documentation name this range.
FIRST_PORT, LAST_PORT = 49152, 49215
# A name server that answers later than this helps no migration either.
LOOK_UP_SECONDS = 3.0
# What NTP keeps without effort; a guest's own clock is off by as much after the move, until it is set.
CLOCK_SECONDS = 1.0

_OPEN_PORTS = f"let TCP {FIRST_PORT} to {LAST_PORT} through the destination's firewall"
_NTP = "keep both on the same time (NTP): a guest takes its clock along, what it talks to does not"


def checks(sides: Sides) -> Iterator[Check]:
    """The migration ports and the destination's name as the source sees them, and the clocks."""
    host = urlsplit(sides.destination.uri).hostname or ""
    with translated(sides.destination.uri):
        name = sides.destination.conn.getHostname()
    # Both at once, where they can be asked at all: each takes as long as a login.
    source = Asking(lambda: over_ssh.ask(sides.source, host, FIRST_PORT, name))
    there = over_ssh.ask(sides.destination)
    here = source.result()
    if sides.source.is_remote:
        yield _told_port(here, host)
    else:
        yield _ports(sides, host)
    if not sides.wish.offline:
        yield from _named(sides, here, name)
    yield _clock(sides, here, there)


def _ports(sides: Sides, host: str) -> Check:
    """A connection to the first port of the range tells a firewall's silence from a plain "nobody there"."""
    if not host or sides.wish.offline:
        return _unseen_ports()
    try:
        with socket.create_connection((address(host), FIRST_PORT), timeout=2):
            pass
    except ConnectionRefusedError:
        pass
    except OSError as error:
        return _no_answer(host, error.strerror or "no answer")
    return Check("ports", "ok", f"{host} answers on the migration ports ({FIRST_PORT} and up)")


def _told_port(here: over_ssh.Told | None, host: str) -> Check:
    if not host or here is None or here.port is None:
        return _unseen_ports()
    if not here.port:
        return _no_answer(host, f"{here.why}, as the source sees it")
    return Check("ports", "ok", f"{host} answers the source on the migration ports ({FIRST_PORT} and up)")


def _unseen_ports() -> Check:
    return Check(
        "ports",
        "unknown",
        "whether the source reaches the destination's migration ports cannot be seen from here",
        f"QEMU listens on {FIRST_PORT} to {LAST_PORT} there (qemu.conf: migration_port_min, migration_port_max)",
    )


def _no_answer(host: str, why: str) -> Check:
    return Check("ports", "warn", f"port {FIRST_PORT} of {host} does not answer: {why}", _OPEN_PORTS)


def _named(sides: Sides, here: over_ssh.Told | None, name: str) -> Iterator[Check]:
    """The destination tells the source to send the guest to its own host name, unless its qemu.conf says another."""
    known = (here.named if here is not None else None) if sides.source.is_remote else _resolved(name)
    if known is False:
        who = "the source" if sides.source.is_remote else "this host"
        yield Check(
            "host name",
            "warn",
            f"{who} cannot resolve {name}, where the destination tells it to send the guest",
            f"put {name} into its /etc/hosts, or set migration_host in the destination's qemu.conf",
        )


def _resolved(name: str) -> bool:
    asking = Asking(lambda: socket.getaddrinfo(address(name), FIRST_PORT))
    try:
        return asking.ended(LOOK_UP_SECONDS) and bool(asking.result())
    except (OSError, UnicodeError):
        return False


def _clock(sides: Sides, here: over_ssh.Told | None, there: over_ssh.Told | None) -> Check:
    """libvirt does not tell what time it is on a host; ssh does, and this machine's own clock is at hand."""
    ends = []
    for side, told in ((sides.source, here), (sides.destination, there)):
        # A host on this machine has this machine's clock.
        ends.append((0.0, 0.0) if not side.is_remote else told.ahead if told is not None else None)
    first, other = ends
    if first is None or other is None:
        return Check("clock", "unknown", "what time it is on a host is told over ssh alone, not by libvirt", _NTP)
    least, most = other[0] - first[1], other[1] - first[0]
    if least > CLOCK_SECONDS or most < -CLOCK_SECONDS:
        by = human_duration(round(abs(least + most) / 2, 1))
        where = "ahead of" if least > 0 else "behind"
        return Check("clock", "warn", f"the destination's clock is {by} {where} the source's", _NTP)
    return Check("clock", "ok", f"both hosts have the same time, to {max(abs(least), abs(most)):.1f} s")
