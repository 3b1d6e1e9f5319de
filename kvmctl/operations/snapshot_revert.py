"""Going back to a snapshot, with the present kept first."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import slot_record, undo_record, work_record, xml
from kvmctl.model import snapshot as model
from kvmctl.model.metadata import Metadata, OwnedVolume
from kvmctl.model.snapshot import Snapshot
from kvmctl.model.undo_record import UndoRecord
from kvmctl.operations import metadata, recovery, snapshot_create, snapshot_delete, snapshots
from kvmctl.operations.abortable import abortable
from kvmctl.operations.progress import Progress
from kvmctl.operations.snapshots import written_files
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import internal_snapshots
from kvmctl.preflight import dependents
from kvmctl.preflight import snapshots as preflight

if TYPE_CHECKING:
    from kvmctl.operations.snapshots_external import Moment


@dataclass(frozen=True)
class Plan:
    """Where the guest goes, and what becomes of its present.

    ``keep`` is the snapshot that holds the present (None with ``--discard``), ``old_slots`` the names of the
    slot that make room for it; ``after`` is the state wanted afterwards, None for the snapshot's own.
    ``cut_short``: the slot is of a revert that was killed, and so holds a present that nobody may have seen again.
    """

    vm: str
    target: Snapshot
    state: str
    keep: snapshot_create.Plan | None
    old_slots: tuple[str, ...]
    after: str | None
    remembered: Metadata
    moment: "Moment | None" = None
    cut_short: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For ``--dry-run``: ``{vm, name, state, kept_as, replaces}``."""
        return {
            "vm": self.vm,
            "name": self.target.shown_name,
            "state": self.after or self.target.state,
            "kept_as": model.shown(self.keep.name) if self.keep else None,
            "replaces": model.SLOT if self.old_slots else None,
        }


def plan(
    hypervisor: Hypervisor,
    vm: str,
    name: str,
    *,
    keep: str | None = None,
    discard: bool = False,
    after: str | None = None,
) -> Plan:
    """Look and decide. ``after`` is ``running`` or ``paused`` to end in that state instead of the snapshot's.

    Raises NotFound, Conflict (the name to keep the present under is taken), Refused where the snapshot's disks
    are not what they were, or the present cannot be kept.
    """
    domain = hypervisor.find(vm)
    target = snapshots.one(domain, name)
    with translated(hypervisor.uri):
        vm = domain.name()
        state = snapshots.state_of(domain)
        remembered = metadata.read(domain)
        then = xml.parse(domain.snapshotLookupByName(target.name, 0).getXMLDesc(0), "snapshot").find("domain")
        saved = bool(domain.isPersistent() and domain.hasManagedSaveImage(0))
        slots = [snapshot for snapshot in snapshots.load(domain) if snapshot.name in model.SLOT_NAMES]
        if (left := snapshots.cut_short(slots, remembered)) is not None:
            remembered = _with_volumes(remembered, snapshots.volumes_then(domain, left.name))
    if saved and not discard:
        raise Refused(
            f"{vm} is saved, and the memory waiting in that file belongs to the disks as they are now",
            f"'kvmctl start {vm}' first, so that the present can be kept; or --discard it",
        )
    moment = None
    if target.location == "external":
        from kvmctl.operations import snapshots_external

        moment = snapshots_external.plan_return(hypervisor, domain, target)
    else:
        _check_target(hypervisor, vm, target, then)
    kept: snapshot_create.Plan | None = None
    old_slots: tuple[str, ...] = ()
    cut_short = False
    if keep is None and not discard:
        left = snapshots.cut_short(slots, remembered)
        cut_short = left is not None
        if cut_short:
            keep = f"present-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        old_slots = tuple(slot.name for slot in slots if slot != left)
    if not discard:
        kept = _plan_keep(hypervisor, vm, keep or _free_slot(old_slots, target), target, slot=keep is None)
    return Plan(vm, target, state, kept, old_slots, after, remembered, moment, cut_short)


def _free_slot(taken: Sequence[str], target: Snapshot) -> str:
    """The name for the new slot: the old one goes only when the guest is where it was to go."""
    free = [name for name in model.SLOT_NAMES if name not in taken]
    # Both are taken where a revert was killed at its very end.
    return free[0] if free else next(name for name in model.SLOT_NAMES if name != target.name)


def _plan_keep(hypervisor: Hypervisor, vm: str, name: str, target: Snapshot, *, slot: bool) -> snapshot_create.Plan:
    about = f"the present, kept before going to {target.shown_name}"
    try:
        return snapshot_create.plan(hypervisor, vm, name, description=about, slot=slot)
    except (Refused, NotFound) as refused:
        raise Refused(
            f"the present of {vm} cannot be kept: {refused.message}",
            f"--discard goes back to {target.shown_name} and loses the present",
        ) from refused


def _check_target(hypervisor: Hypervisor, vm: str, target: Snapshot, then: xml.Element | None) -> None:
    """Refuse a snapshot whose disks have gone or changed from outside, before the present is given up for it."""
    if then is None:
        raise Refused(
            f"the snapshot {target.shown_name} of {vm} does not say how the VM was then",
            "it was made by a very old libvirt; 'virsh snapshot-revert --force' may still do it",
        )
    for disk in preflight.disks_of(then):
        if disk.path is None or not disk.written:
            continue
        what = f"the disk {disk.target} ({disk.path}) of the snapshot {target.shown_name}"
        inside = internal_snapshots(hypervisor, disk.path)
        if inside is None:
            if dependents.is_missing(hypervisor, disk.path):
                raise Refused(f"{what} is no longer there", "bring the file back, or delete the snapshot")
            continue
        if not any(entry.name == target.name for entry in inside):
            raise Refused(
                f"{what} no longer holds it: the image was changed from outside of libvirt",
                f"'kvmctl snapshot delete {vm} {target.shown_name!a}' forgets the snapshot",
            )
        users = dependents.of(hypervisor, [disk.path], except_vm=vm)
        if users:
            raise Refused(
                f"{what} is what {', '.join(users)} stands on, and going back would change it under them",
                f"'kvmctl clone --full' makes copies that stand alone; delete {users[0]} first",
            )


def run(
    hypervisor: Hypervisor, plan_: Plan, progress: Progress | None = None, *, command: str | None = None
) -> dict[str, Any]:
    """Keep the present, go back, and return ``{name, vm, state, kept_as, changed}``.

    If going back fails, the guest is brought to the present again, from what was kept of it.
    """
    progress = progress or Progress()
    domain = hypervisor.find(plan_.vm)
    kept_at: str | None = None
    with Undo() as undo:
        if plan_.keep is not None:
            kept_at = _keep(hypervisor, domain, plan_, progress)
            undo.add(f"return {plan_.vm} to the present", lambda: _return(hypervisor, domain, plan_))
        progress.step(f"going to snapshot {plan_.target.shown_name} of {plan_.vm}")
        left = written_files(domain)
        _go(hypervisor, domain, plan_, undo)
        undo.keep()
    with translated(hypervisor.uri):
        in_slot = plan_.keep is not None and plan_.keep.name in model.SLOT_NAMES
        at = kept_at if in_slot else None
        _settle(domain, plan_, command or f"snapshot revert {plan_.vm} {plan_.target.shown_name}", at)
        if plan_.remembered.forwards:
            # QEMU was started anew and has none of the forwards that were added to the old one. Imported late: the
            # firewall and the networks come along.
            from kvmctl.operations import ports

            for failure in ports.reapply(hypervisor, domain):
                progress.warn(failure)
        if plan_.moment is not None:
            from kvmctl.operations import snapshots_external

            # The overlays that the guest stood on a moment ago: what was kept of it stands on what is below them.
            snapshots_external.sweep(hypervisor, domain, left)
        for name in plan_.old_slots:
            # From now on the slot holds what was left just now.
            if plan_.keep is None or name != plan_.keep.name:
                snapshot_delete.delete_one(hypervisor, domain, snapshots.exactly(domain, name))
        recovery.done(domain)
        state = snapshots.state_of(domain)
    if plan_.cut_short and plan_.keep is not None:
        progress.warn(
            f"an earlier revert of {plan_.vm} was killed: {model.SLOT} still holds the present that it kept; "
            f"what was there now was kept as {plan_.keep.name}"
        )
    return {
        "name": plan_.target.shown_name,
        "vm": plan_.vm,
        "state": state,
        "kept_as": model.shown(plan_.keep.name) if plan_.keep else None,
        "changed": True,
    }


def _keep(hypervisor: Hypervisor, domain: libvirt.virDomain, plan_: Plan, progress: Progress) -> str | None:
    """Keep the present; returns when that was, as Snapshot.created has it."""
    assert plan_.keep is not None
    kept = plan_.keep
    taken = kept.name in plan_.old_slots
    if taken:
        with translated(hypervisor.uri):
            snapshot_delete.delete_one(hypervisor, domain, snapshots.exactly(domain, kept.name))
    # What the guest is now may differ from what plan() saw: it may have been stopped or started since.
    if snapshots.state_of(domain) != kept.state or (kept.files is not None and taken):
        # Or the old slot's overlays were merged just now, and the disks are other files.
        slot = kept.name in model.SLOT_NAMES
        kept = snapshot_create.plan(hypervisor, plan_.vm, kept.name, description=kept.description, slot=slot)
    created = snapshot_create.run(hypervisor, kept, progress)["created"]
    assert created is None or isinstance(created, str)
    return created


def _go(hypervisor: Hypervisor, domain: libvirt.virDomain, plan_: Plan, undo: Undo) -> None:
    with translated():
        if domain.isPersistent() and domain.hasManagedSaveImage(0):
            # --discard: the saved memory goes with the rest of the present.
            domain.managedSaveRemove(0)
    if plan_.moment is not None:
        from kvmctl.operations import snapshots_external

        # Planned anew: keeping the present has taken names, and may have merged what stood on an old slot.
        moment = snapshots_external.plan_return(hypervisor, domain, plan_.target)
        snapshots_external.go(hypervisor, domain, moment, plan_.after, undo)
    else:
        _revert(domain, plan_.target.name, plan_.after)


def _revert(domain: libvirt.virDomain, name: str, after: str | None) -> None:
    flags = {
        "running": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING,
        "paused": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
    }.get(after or "", 0)
    try:
        snapshot = domain.snapshotLookupByName(name, 0)
        try:
            abortable(lambda: domain.revertToSnapshot(snapshot, flags))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
                raise
            # libvirt wants to be told that QEMU may be started anew for it; the present is already kept.
            abortable(lambda: domain.revertToSnapshot(snapshot, flags | libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE))
    except libvirt.libvirtError as error:
        found = explain(error)
        if isinstance(found, Conflict):
            found.hint = found.hint or "'kvmctl snapshot tree' shows where the guest stands"
        raise found from error


def _return(hypervisor: Hypervisor, domain: libvirt.virDomain, plan_: Plan) -> None:
    """Back to the moment that was kept, and drop the copy of it: all is as before the command."""
    assert plan_.keep is not None
    kept = snapshots.exactly(domain, plan_.keep.name)
    if kept.location == "external":
        from kvmctl.operations import snapshots_external

        moment = snapshots_external.plan_return(hypervisor, domain, kept)
        with Undo() as undo:
            snapshots_external.go(hypervisor, domain, moment, None, undo)
            undo.keep()
        snapshot_delete.delete_one(hypervisor, domain, kept)
        return
    _revert(domain, plan_.keep.name, None)
    with contextlib.suppress(libvirt.libvirtError, KvmctlError):
        _put_back_metadata(domain, plan_.remembered)
    domain.snapshotLookupByName(plan_.keep.name, 0).delete(0)


def _settle(domain: libvirt.virDomain, plan_: Plan, command: str, kept_at: str | None) -> None:
    """Write down that it is done, and what leads back: the slot, where the present was kept there at ``kept_at``."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    if plan_.keep is None:
        record = UndoRecord(command, at, never="what was there before it was not kept (--discard)")
    else:
        record = UndoRecord(command, at, snapshot=True, kept=plan_.keep.name if kept_at is None else None)
    remembered = undo_record.put(plan_.remembered, record)
    if kept_at is not None:
        remembered = slot_record.settle(remembered, kept_at)
    elif plan_.cut_short:
        with contextlib.suppress(NotFound):
            remembered = slot_record.settle(remembered, snapshots.one(domain, model.SLOT).created)
    _put_back_metadata(domain, remembered)


def _put_back_metadata(domain: libvirt.virDomain, before: Metadata) -> None:
    """The definition went back in time, and with it what kvmctl remembers: the volumes it has made since, above all.

    What it must know to clean up and to protect belongs to now, not to that moment.
    """
    now = metadata.read(domain)
    wanted = _with_volumes(before, now.volumes)._replace(creator=now.creator)
    wanted = work_record.put(wanted, work_record.read(now))
    if wanted != now:
        metadata.write(domain, wanted)


def _with_volumes(remembered: Metadata, more: Iterable[OwnedVolume]) -> Metadata:
    known = {(volume.pool, volume.name) for volume in remembered.volumes}
    others = (volume for volume in more if (volume.pool, volume.name) not in known)
    return remembered._replace(volumes=(*remembered.volumes, *others))
