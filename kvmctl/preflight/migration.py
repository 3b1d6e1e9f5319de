"""All that must hold before a guest is sent to another host."""

from dataclasses import dataclass

from kvmctl.connection import translated
from kvmctl.model.migration import DiskMove
from kvmctl.preflight import migration_devices, migration_guest, migration_host, migration_storage
from kvmctl.preflight.check import Check, worst
from kvmctl.preflight.migration_sides import Sides


@dataclass(frozen=True)
class Findings:
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
        checks = [*migration_host.checks(sides), *migration_guest.checks(sides), *migration_devices.checks(sides)]
        storage = migration_storage.look(sides)
        return Findings((*checks, *storage.checks), tuple(storage.moves))
