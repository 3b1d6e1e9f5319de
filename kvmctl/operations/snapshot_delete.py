"""Deleting snapshots: one, one and all that come from it, or only those."""

from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import snapshot as model
from kvmctl.model.snapshot import Snapshot
from kvmctl.operations import snapshots
from kvmctl.operations.abortable import abortable
from kvmctl.operations.progress import Progress


@dataclass(frozen=True)
class Plan:
    """The snapshots that go, deepest first, so that each is a leaf, or at least childless of what goes too."""

    vm: str
    gone: tuple[Snapshot, ...]

    def as_dicts(self) -> list[dict[str, Any]]:
        """For ``--dry-run``: ``{name, vm, location, memory}`` each."""
        return [{"name": s.shown_name, "vm": self.vm, "location": s.location, "memory": s.memory} for s in self.gone]


def plan(
    hypervisor: Hypervisor, vm: str, names: list[str], *, children: bool = False, children_only: bool = False
) -> Plan:
    """Which snapshots ``names`` mean; with ``children`` all that come from them too, or ``children_only`` those alone.

    Raises NotFound where one of them does not exist, Refused where it cannot be told what an external one leaves free:
    nothing is deleted then.
    """
    domain = hypervisor.find(vm)
    known = snapshots.load(domain)
    by_name = {snapshot.name: snapshot for snapshot in known}
    gone: dict[str, None] = {}
    for name in names:
        found = snapshots.one(domain, name).name
        below = model.descendants(known, found) if children or children_only else []
        gone.update(dict.fromkeys(reversed(below)))
        if not children_only:
            # Named again as a parent of another: it goes after that one.
            gone.pop(found, None)
            gone[found] = None
    if any(by_name[name].location == "external" for name in gone):
        from kvmctl.operations import snapshots_external

        snapshots_external.check_files(hypervisor, domain, gone)
    with translated(hypervisor.uri):
        return Plan(domain.name(), tuple(by_name[name] for name in gone))


def run(hypervisor: Hypervisor, plan_: Plan, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Delete them one by one; those deleted before something failed stay deleted, and the error says which.

    Returns ``{name, vm, changed}`` each. The guest, and the snapshots that remain, keep their own state;
    a child of one that goes is then a child of its parent.
    """
    progress = progress or Progress()
    domain = hypervisor.find(plan_.vm)
    rows: list[dict[str, Any]] = []
    for snapshot in plan_.gone:
        progress.step(f"deleting snapshot {snapshot.shown_name} of {plan_.vm}")
        try:
            delete_one(hypervisor, domain, snapshot)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                rows.append({"name": snapshot.shown_name, "vm": plan_.vm, "changed": False})
                continue
            failure = explain(error, hypervisor.uri)
            raise _with_progress(failure, snapshot, rows) from error
        rows.append({"name": snapshot.shown_name, "vm": plan_.vm, "changed": True})
    return rows


def delete_one(hypervisor: Hypervisor, domain: libvirt.virDomain, snapshot: Snapshot) -> None:
    """Delete one snapshot, with its files where it has any. Raises libvirtError where it is not there."""
    found = domain.snapshotLookupByName(snapshot.name, 0)
    if snapshot.location == "external":
        from kvmctl.operations import snapshots_external

        snapshots_external.delete(hypervisor, domain, snapshot)
    else:
        abortable(lambda: found.delete(0))


def _with_progress(failure: KvmctlError, snapshot: Snapshot, rows: list[dict[str, Any]]) -> KvmctlError:
    failure.message = f"snapshot {snapshot.shown_name}: {failure.message}"
    if rows:
        done = ", ".join(row["name"] for row in rows)
        failure.hint = f"already deleted: {done}" + (f"; {failure.hint}" if failure.hint else "")
    return failure
