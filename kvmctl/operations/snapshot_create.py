"""Taking a snapshot: which kind this guest can have, and then libvirt's own."""

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, Refused
from kvmctl.model import snapshot as model
from kvmctl.model import xml
from kvmctl.model.snapshot import Location
from kvmctl.operations import snapshots
from kvmctl.operations.abortable import abortable
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import internal_snapshots
from kvmctl.preflight import dependents
from kvmctl.preflight import snapshots as preflight

if TYPE_CHECKING:
    from kvmctl.operations.snapshots_external import Files


class Plan(NamedTuple):
    """What a snapshot will be: of which kind, with the memory or without, and what stands where afterwards."""

    vm: str
    name: str
    description: str | None
    location: Location
    state: str
    memory: bool
    quiesce: bool
    files: "Files | None" = None
    # Disks that stay out of it: read-only ones.
    others: tuple[str, ...] = ()

    def request(self) -> xml.Element:
        """The ``<domainsnapshot>`` for libvirt."""
        if self.files is not None:
            memory_file = self.files.memory.path if self.files.memory is not None else None
            overlays: dict[str, str | None] = dict.fromkeys(self.others)
            overlays |= {layer.target: layer.overlay.path for layer in self.files.layers if layer.overlay is not None}
            memory: Literal["no"] | None = None if memory_file else "no"
            return model.request(self.name, self.description, memory=memory, memory_file=memory_file, disks=overlays)
        return model.request(self.name, self.description, memory="internal" if self.memory else None)

    def as_dict(self) -> dict[str, Any]:
        """For ``--dry-run``: ``{name, vm, location, memory, state, xml}``."""
        return {
            "name": self.name,
            "vm": self.vm,
            "location": self.location,
            "memory": self.memory,
            "state": self.state,
            "xml": xml.text(self.request()),
        }


def plan(
    hypervisor: Hypervisor,
    vm: str,
    name: str | None = None,
    *,
    description: str | None = None,
    external: bool = False,
    disk_only: bool = False,
    quiesce: bool = False,
    slot: bool = False,
) -> Plan:
    """Look at the guest and decide. ``slot`` allows the names that only a revert may give, which
    makes room for them itself.

    Raises Conflict where the name is taken, Refused where a snapshot would not hold all of the guest.
    """
    domain = hypervisor.find(vm)
    if name is None:
        name = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if not slot:
        model.check_name(name)
    with translated(hypervisor.uri):
        existing = snapshots.load(domain)
        tree = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "domain")
        state = snapshots.state_of(domain)
        vm = domain.name()
        saved = domain.isPersistent() and domain.hasManagedSaveImage(0)
    known = any(snapshot.name == name for snapshot in existing)
    if known and not slot:
        raise Conflict(f"{vm} already has a snapshot named {name!a}", "choose another name, or delete that one first")
    if saved:
        raise Refused(
            f"{vm} is saved: its memory waits in a file, and a snapshot of its disks alone would miss it",
            f"'kvmctl start {vm}' goes on from there; take the snapshot then",
        )
    _check_state(vm, state)
    active = state in ("running", "paused")
    memory = active and not disk_only
    if quiesce and not (active and disk_only):
        raise Refused(
            "--quiesce freezes the file systems of a running guest for a snapshot of its disks",
            "add --disk-only; with the memory in the snapshot nothing needs to be frozen",
        )
    location = _location(vm, tree, existing, wants_external=external or (active and disk_only), memory=memory)
    if location == "external":
        from kvmctl.operations import snapshots_external

        dependents.check_disks(hypervisor, tree)
        files = snapshots_external.plan_files(hypervisor, domain, tree, name, memory=memory)
        covered = {layer.target for layer in files.layers}
        others = tuple(disk.target for disk in preflight.disks_of(tree) if disk.target not in covered)
        return Plan(vm, name, description, "external", state, memory, quiesce, files, others)
    if not known:
        _check_images(hypervisor, vm, tree, name)
    return Plan(vm, name, description, "internal", state, memory, quiesce)


def _check_state(vm: str, state: str) -> None:
    if state in ("running", "paused", "shutoff"):
        return
    if state == "crashed":
        raise Conflict(f"{vm} has crashed: there is no moment to keep", f"'kvmctl destroy {vm}' powers it off first")
    raise Conflict(f"{vm} is {state}, and a snapshot needs a running, paused or stopped guest")


def _location(
    vm: str, tree: xml.Element, existing: list[model.Snapshot], *, wants_external: bool, memory: bool
) -> Location:
    """Internal where it can be: such a snapshot is one with its disk and can be gone back to by any tool."""
    if not preflight.has_written_disks(tree):
        raise Refused(f"{vm} has no disk that a snapshot could be kept in", "attach one, or use 'kvmctl save'")
    if memory:
        problems = preflight.against_memory(tree)
        if problems:
            raise Refused(
                f"{vm} cannot be kept with its memory: {'; '.join(problems)}",
                "--disk-only keeps the disks alone, or stop the guest first",
            )
    elif tree.find("devices/tpm") is not None:
        raise Refused(
            f"{vm} has a TPM, whose state would not go back with the disks: what is sealed there would not open again",
            "detach the TPM, or make a copy with 'kvmctl clone --full'",
        )
    kinds = {snapshot.location for snapshot in existing}
    internal = preflight.against_disks(tree, "internal")
    if preflight.has_nvram(tree):
        internal.append("its UEFI variables would not be in it")
    if wants_external and "internal" in kinds:
        raise Refused(
            f"{vm} has internal snapshots, and an external one would put its disks out of their reach",
            "take an internal one (without --external and --disk-only), or delete the others first",
        )
    if not wants_external and "external" not in kinds and not internal:
        return "internal"
    external = preflight.against_disks(tree, "external")
    if external:
        raise Refused(f"{vm} can have no snapshot: {'; '.join(dict.fromkeys([*external, *internal]))}")
    if "internal" in kinds:
        raise Refused(
            f"{vm} has internal snapshots, but can have no other one now: {'; '.join(internal)}",
            "delete those snapshots first, or undo the change to its disks",
        )
    return "external"


def _check_images(hypervisor: Hypervisor, vm: str, tree: xml.Element, name: str) -> None:
    """QEMU silently replaces a snapshot of the same name inside an image; libvirt does not know of every one.

    And what other images stand on must not be written to, not even by this.
    """
    stood_on = dependents.against_writing(hypervisor, tree)
    if stood_on is not None:
        raise Refused(stood_on, "--external leaves the file as it is")
    for disk in preflight.disks_of(tree):
        if not disk.written or disk.path is None:
            continue
        inside = internal_snapshots(hypervisor, disk.path)
        if inside and any(entry.name == name for entry in inside):
            raise Conflict(
                f"the disk {disk.target} of {vm} holds a snapshot {name!a} that libvirt does not know of, "
                "and it would be overwritten",
                "choose another name",
            )


def run(hypervisor: Hypervisor, plan_: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Take the snapshot and return its dict. If it fails, or Ctrl-C arrives, none is left."""
    progress = progress or Progress()
    domain = hypervisor.find(plan_.vm)
    progress.step(f"taking snapshot {plan_.name} of {plan_.vm}")
    with Undo() as undo:
        if plan_.files is not None:
            from kvmctl.operations import snapshots_external

            snapshots_external.create(
                hypervisor, domain, plan_.request(), plan_.files, undo, progress, quiesce=plan_.quiesce
            )
        else:
            _create_internal(domain, plan_, undo)
        undo.keep()
    return snapshots.exactly(domain, plan_.name).as_dict()


def _create_internal(domain: libvirt.virDomain, plan_: Plan, undo: Undo) -> None:
    def take() -> None:
        # Registered where it is known to be ours: another one of this name, taken meanwhile, must stay.
        domain.snapshotCreateXML(xml.text(plan_.request()), 0)
        undo.add(f"delete snapshot {plan_.name}", lambda: _delete_if_there(domain, plan_.name))

    if plan_.state == "running":
        # QEMU stops the guest while it writes the memory, and where that fails it may leave it stopped.
        undo.add(f"resume {plan_.vm}", lambda: _resume_if_paused(domain))
    try:
        # Nothing can end this early: QEMU writes the memory in one command of its monitor.
        abortable(take)
    except libvirt.libvirtError as error:
        raise why(error, plan_.vm) from error


def why(error: libvirt.libvirtError, vm: str) -> KvmctlError:
    """The error of a snapshot of ``vm``, with the usual remedy for a full disk."""
    found = explain(error)
    text = found.message.lower()
    if "no space left" in text or "-28" in text or "enospc" in text:
        found.hint = "the storage is full: make room there, then try again; the guest is as it was"
    elif "could not open" in text or "no such file" in text:
        found.hint = f"a file of its disks is missing or was changed from outside: 'kvmctl info {vm}' shows the chain"
    return found


def _delete_if_there(domain: libvirt.virDomain, name: str) -> None:
    try:
        snapshot = domain.snapshotLookupByName(name, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            return
        raise
    snapshot.delete(0)


def _resume_if_paused(domain: libvirt.virDomain) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        if domain.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
