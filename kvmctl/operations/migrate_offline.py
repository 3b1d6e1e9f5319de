"""Moving a VM that is off: its definition, and its disks where they are not shared."""

import functools
from typing import Any

import libvirt

from kvmctl.connection import explain, translated
from kvmctl.model.migration import DiskMove
from kvmctl.operations import migrate_after, migrate_storage
from kvmctl.operations.migrate_truth import Hosts
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.preflight.migration_sides import Sides


def run(sides: Sides, moves: tuple[DiskMove, ...], autostart: bool, progress: Progress) -> dict[str, Any]:
    """Define it on the destination, then take the definition away here; anything failing undoes what was done."""
    copies = [move for move in moves if move.action == "copy"]
    there = sides.destination
    with Undo() as undo:
        for move in copies:
            migrate_storage.send(sides.source, there, move, progress)
            made = [(move.pool or "", migrate_storage.name_of(move))]
            undo.add(f"delete volume {made[0][1]} there", functools.partial(migrate_storage.delete, there, made))
        progress.step(f"defining {sides.name} on {there.uri}")
        with translated(there.uri):
            text = migrate_storage.definition_there(sides, moves, libvirt.VIR_DOMAIN_XML_INACTIVE)
            domain = there.conn.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        undo.add(
            f"undefine {sides.name} on {there.uri}",
            lambda: domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM),
        )
        try:
            # It may have been started meanwhile: then the VM there must go again, not this one.
            if sides.domain.isActive():
                raise libvirt.libvirtError(f"{sides.name} was started meanwhile")
            sides.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        except libvirt.libvirtError as error:
            raise explain(error, sides.source.uri) from error
        undo.keep()
    hosts = Hosts(sides.source, there, sides.wish.destination, sides.uuid)
    return {
        "name": sides.name,
        "source": sides.source.uri,
        "destination": sides.wish.destination,
        "state": "shutoff",
        "total_seconds": 0.0,
        "downtime_ms": None,
        "max_downtime_ms": round(sides.wish.max_downtime * 1000, 3),
        "within_max_downtime": None,
        "transferred_bytes": sum(move.allocation for move in copies),
        "iterations": None,
        "strategy": "offline",
        "warnings": migrate_after.arrive(hosts, autostart),
    }
