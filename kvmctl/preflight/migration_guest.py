"""Whether the guest, as it is now, may move: its state, jobs, snapshots, and its name on the other side."""

from collections.abc import Iterator

import libvirt

from kvmctl.connection import explain, is_missing, translated
from kvmctl.model import xml
from kvmctl.preflight import emulation
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides


def checks(sides: Sides) -> Iterator[Check]:
    """All of them."""
    yield _state(sides)
    yield _name(sides)
    yield from _kept(sides)
    yield _jobs(sides)
    yield from _emulated(sides)


def _emulated(sides: Sides) -> Iterator[Check]:
    """See emulation.forgets_writes()."""
    if sides.virt != "qemu" or sides.state != "running":
        return
    if emulation.forgets_writes(sides.source, sides.virt):
        yield Check(
            "emulation",
            "warn",
            f"{sides.name} is emulated, and QEMU before 9.0 may forget what such a guest writes while it moves: "
            "it can hang over there",
            f"'kvmctl suspend {sides.name}' before the move and 'kvmctl resume {sides.name}' after it are safe",
        )
    else:
        yield Check("emulation", "ok", "emulated, by a QEMU that moves such guests safely")


def _state(sides: Sides) -> Check:
    seen = f"{sides.name} is {sides.state}"
    if sides.wish.offline and sides.active:
        return Check("state", "refused", f"{seen}; --offline moves only the definition of a VM that is off")
    if sides.state == "shutoff" and not sides.wish.offline:
        return Check("state", "refused", seen, "add --offline to move its definition, or start it first")
    if sides.state in ("crashed", "pmsuspended", "shutdown", "nostate"):
        return Check("state", "refused", seen, f"'kvmctl reset {sides.name}' or 'kvmctl destroy {sides.name}' first")
    if sides.wish.offline and sides.config is None:
        return Check("state", "refused", f"{sides.name} has no saved definition to move")
    if sides.stopped_by_disk:
        return Check(
            "state",
            "refused",
            f"{seen}: it was stopped when one of its disks failed",
            f"see to the disk (is it full?), then 'kvmctl resume {sides.name}'",
        )
    return Check("state", "ok", seen)


def _name(sides: Sides) -> Check:
    try:
        other = sides.destination.conn.lookupByUUIDString(sides.uuid)
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise explain(error, sides.destination.uri) from error
        other = None
    if other is not None:
        running = "runs" if other.isActive() else "is defined"
        return Check(
            "name",
            "refused",
            f"a VM with this UUID {running} on the destination already, as {other.name()}",
            f"see which is the right one; 'kvmctl -c {sides.wish.destination} delete {other.name()}' removes that one",
        )
    same_name = sides.destination.find_or_none(sides.name)
    if same_name is not None:
        return Check(
            "name",
            "refused",
            f"another VM on the destination is called {sides.name} (UUID {same_name.UUIDString()})",
            f"rename one of them: 'kvmctl rename {sides.name} OTHER'",
        )
    return Check("name", "ok", f"{sides.name} and its UUID are free on the destination")


def _kept(sides: Sides) -> Iterator[Check]:
    """What stays with a domain on its host, and which libvirt therefore refuses to leave behind."""
    with translated(sides.source.uri):
        saved = bool(sides.domain.hasManagedSaveImage(0))
        snapshots = sides.domain.snapshotNum(0)
        checkpoints = len(sides.domain.listAllCheckpoints(0)) if sides.active else 0
    if saved:
        yield Check(
            "saved state",
            "refused",
            f"{sides.name} has a saved state, which stays on its host",
            f"'kvmctl start {sides.name}' goes on from it, then migrate",
        )
    else:
        yield Check("saved state", "ok", "none")
    if snapshots:
        yield Check(
            "snapshots",
            "refused",
            f"{snapshots} snapshots, and libvirt moves no guest that has any",
            f"'kvmctl snapshot list {sides.name}' shows them; delete them, or clone the moments you need first",
        )
    else:
        yield Check("snapshots", "ok", "none")
    if checkpoints:
        yield Check(
            "checkpoints",
            "refused",
            f"{checkpoints} checkpoints of incremental backups",
            f"'virsh checkpoint-delete {sides.name} NAME' removes one",
        )


def _jobs(sides: Sides) -> Check:
    if not sides.active:
        return Check("jobs", "ok", "none")
    with translated(sides.source.uri):
        kind = sides.domain.jobInfo()[0]
        busy = [target for target in _targets(sides.live) if sides.domain.blockJobInfo(target, 0)]
    if kind != libvirt.VIR_DOMAIN_JOB_NONE:
        return Check(
            "jobs",
            "refused",
            f"{sides.name} is busy with another job (a migration, backup, dump or save)",
            f"wait for it, or end it: 'virsh domjobabort {sides.name}'",
        )
    if busy:
        return Check(
            "jobs",
            "refused",
            f"a block job works on {', '.join(busy)}",
            f"wait for it, or end it: 'virsh blockjob {sides.name} {busy[0]} --abort'",
        )
    return Check("jobs", "ok", "none")


def _targets(domain: xml.Element) -> list[str]:
    return [
        dev
        for disk in domain.iterfind("devices/disk")
        if disk.get("device", "disk") == "disk" and (dev := _dev(disk)) is not None
    ]


def _dev(disk: xml.Element) -> str | None:
    target = disk.find("target")
    return target.get("dev") if target is not None else None
