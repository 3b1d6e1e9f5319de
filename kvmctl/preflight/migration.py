"""All that must hold before a guest is sent to another host."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmctl.connection import translated
from kvmctl.model.migration import DiskMove
from kvmctl.preflight import migration_devices, migration_guest, migration_host, migration_reach, migration_storage
from kvmctl.preflight.asking import Asking, together
from kvmctl.preflight.check import Check, worst
from kvmctl.preflight.migration_sides import Sides


class Findings(NamedTuple):
    """Every check, in the order a reader wants them, and what becomes of each disk."""

    checks: tuple[Check, ...]
    moves: tuple[DiskMove, ...]

    @property
    def verdict(self) -> str:
        """``ok``, ``warn`` or ``refused``."""
        return worst(self.checks)

    @property
    def refusals(self) -> list[Check]:
        """What stands in the way."""
        return [check for check in self.checks if check.level == "refused"]


def judge(sides: Sides) -> Findings:
    """Look at both hosts; change nothing."""
    with translated():
        same = migration_host.another_host(sides)
        if same.level == "refused":
            # Everything else compares two hosts.
            return Findings((same,), ())
        # All at once: each question to a host far away takes its time.
        storage = Asking(lambda: migration_storage.look(sides))
        looks = (migration_host.checks, migration_reach.checks, migration_guest.checks, migration_devices.checks)
        groups = together(*(functools.partial(_all, look, sides) for look in looks))
        return Findings((same, *itertools.chain(*groups), *storage.result().checks), tuple(storage.result().moves))


def _all(look: Callable[[Sides], Iterator[Check]], sides: Sides) -> list[Check]:
    with translated():
        return list(look(sides))
