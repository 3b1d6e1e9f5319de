"""Keeping published ports in force while libvirt puts its own firewall rules in.

libvirtd runs its hooks before it reloads its rules and tells nobody when it is done, so the rules are
looked at until nobody has changed them for a while.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvmctl.connection import Hypervisor
from kvmctl.operations import firewall, ports
from kvmctl.operations.firewall import Seen

# libvirt runs some twenty iptables commands a network, well below a second even on a busy machine.
QUIET_SECONDS = 5.0
# Whoever changes rules all the time (another manager of containers) must not keep this process for ever.
MOST_SECONDS = 120.0
_LOOK_EVERY = 0.3


@dataclass(frozen=True)
class Pace:
    """How long nothing must have changed, and how long to look at most, in seconds."""

    quiet: float = QUIET_SECONDS
    most: float = MOST_SECONDS


def settle(connect: Callable[[], Hypervisor], pace: Pace | None = None) -> int:
    """repair(), and again after every change by somebody else; how many forwards are in force then."""
    pace = pace or Pace()
    end = time.monotonic() + pace.most
    count = _repair(connect)
    seen = _order(firewall.look())
    since = time.monotonic()
    while since + pace.quiet > (now := time.monotonic()) and now < end:
        time.sleep(_LOOK_EVERY)
        present = _order(firewall.look())
        if present != seen:
            count = _repair(connect)
            seen = _order(firewall.look())
            since = time.monotonic()
    return count


def _repair(connect: Callable[[], Hypervisor]) -> int:
    # A connection for the moment: libvirtd may be restarted meanwhile.
    with connect() as hypervisor:
        return ports.repair(hypervisor)


def _order(seen: Seen) -> Seen:
    """What matters of the rules: putting them in anew gives them other handles and nothing else."""
    return replace(seen, stale=(0,) if seen.stale else ())
