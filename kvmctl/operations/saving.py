"""Saving a running VM's state to disk, and running on from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.errors import Conflict, NotFound, UsageProblem
from kvmctl.model import xml
from kvmctl.model.state import ACTIVE
from kvmctl.operations import ports
from kvmctl.operations.abortable import abortable
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.progress import Progress


@dataclass(frozen=True)
class Plan:
    """``path``: the file on the hypervisor's host, None for libvirt's own place (a managed save)."""

    domain: libvirt.virDomain | None
    name: str
    uuid: str
    state: str
    path: str | None
    does: str | None

    def row(self, state: str, *, changed: bool) -> dict[str, Any]:
        """``{"name", "uuid", "state", "changed", "file"}``."""
        return {"name": self.name, "uuid": self.uuid, "state": state, "changed": changed, "file": self.path}


def hypervisor_path(hypervisor: Hypervisor, path: str) -> str:
    """``path`` as the hypervisor's host knows it. Raises UsageProblem for a relative one of another machine."""
    if Path(path).is_absolute():
        return path
    if hypervisor.is_remote:
        raise UsageProblem(
            f"{path!a} is relative, but the file is to be on the hypervisor's host", "give the whole path there"
        )
    return str(Path(path).absolute())


def plan_save(hypervisor: Hypervisor, name: str, path: str | None = None) -> Plan:
    """Look before a save. Raises NotFound, and Conflict where the VM is off without a saved state."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        state, shown, uuid = state_of(domain), domain.name(), domain.UUIDString()
        where = hypervisor_path(hypervisor, path) if path is not None else None
        if state not in ACTIVE:
            if path is None and domain.isPersistent() and domain.hasManagedSaveImage(0):
                return Plan(domain, shown, uuid, state, where, None)
            raise Conflict(f"{shown} is {state}: there is no running state to save", f"'kvmctl start {shown}' first")
        if where is None and not domain.isPersistent():
            raise Conflict(
                f"{shown} is transient: libvirt would forget it with its state",
                f"save it to a file: kvmctl save {shown} /path/on/the/host",
            )
    return Plan(domain, shown, uuid, state, where, f"save its state to {where or 'libvirt’s own place'} and stop it")


def is_there(hypervisor: Hypervisor, path: str) -> bool:
    """Whether a file is seen at ``path`` on the hypervisor's host: libvirt would overwrite it unasked."""
    if not hypervisor.is_remote and Path(path).exists():
        return True
    try:
        hypervisor.conn.storageVolLookupByPath(path)
        return True
    except libvirt.libvirtError:
        pass
    try:
        hypervisor.conn.saveImageGetXMLDesc(path, 0)
        return True
    except libvirt.libvirtError:
        return False


def save(hypervisor: Hypervisor, found: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Write the state and stop the VM. Interrupted or failed, it runs on and nothing is left."""
    if found.does is None or found.domain is None:
        return found.row(found.state, changed=False)
    domain, path = found.domain, found.path
    with translated(hypervisor.uri):
        abortable(
            (lambda: domain.save(path)) if path is not None else (lambda: domain.managedSave(0)),
            domain.abortJob,
            lambda: _say_how_far(found, progress or Progress()),
        )
        return found.row(state_of(domain), changed=True)


def _say_how_far(found: Plan, progress: Progress) -> None:
    assert found.domain is not None
    stats = found.domain.jobStats(0)
    done = stats.get(libvirt.VIR_DOMAIN_JOB_DATA_PROCESSED)
    if done is not None:
        progress.amount(f"saving {found.name}", done, stats.get(libvirt.VIR_DOMAIN_JOB_DATA_TOTAL))


def plan_restore(hypervisor: Hypervisor, what: str) -> Plan:
    """Look before a restore of VM ``what``, or of the state in a file where ``what`` holds a ``/``.

    Raises NotFound; Conflict where the VM runs, or nothing was saved.
    """
    if "/" in what:
        return _plan_restore_file(hypervisor, hypervisor_path(hypervisor, what))
    domain = hypervisor.find(what)
    with translated(hypervisor.uri):
        state, shown, uuid = state_of(domain), domain.name(), domain.UUIDString()
        if state in ACTIVE:
            raise Conflict(f"{shown} is {state}: restoring would throw its present state away")
        if not (domain.isPersistent() and domain.hasManagedSaveImage(0)):
            raise Conflict(f"{shown} has no saved state", f"'kvmctl start {shown}' boots it")
    return Plan(domain, shown, uuid, state, None, "run on from its saved state")


def _plan_restore_file(hypervisor: Hypervisor, path: str) -> Plan:
    try:
        text = hypervisor.conn.saveImageGetXMLDesc(path, 0)
    except libvirt.libvirtError as error:
        found = explain(error, hypervisor.uri)
        if "No such file" in found.message:
            raise NotFound(f"there is no file {path!a} on {hypervisor.uri}") from error
        raise found from error
    tree = xml.parse(text, "saved state's XML", "domain")
    name, uuid = tree.findtext("name") or "", tree.findtext("uuid") or ""
    with translated(hypervisor.uri):
        domain = hypervisor.find_or_none(name)
        state = state_of(domain) if domain is not None else "shutoff"
    if state in ACTIVE:
        raise Conflict(f"{name} is {state}: restoring would throw its present state away")
    return Plan(domain, name, uuid, state, path, f"run on from {path}")


def restore(hypervisor: Hypervisor, found: Plan, *, paused: bool = False) -> dict[str, Any]:
    """Let it run on, and publish its ports again. Adds ``warnings`` as start does."""
    with translated(hypervisor.uri):
        if found.path is not None:
            flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else 0
            hypervisor.conn.restoreFlags(found.path, None, flags)
        else:
            assert found.domain is not None
            _restore_managed(found.domain, found.name, paused)
        domain = hypervisor.find(found.name)
        warnings = ports.reapply(hypervisor, domain)
        return {**found.row(state_of(domain), changed=True), "warnings": warnings}


def _restore_managed(domain: libvirt.virDomain, name: str, paused: bool) -> None:
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
    except libvirt.libvirtError as error:
        if is_missing(error):
            raise NotFound(f"{name} has gone meanwhile") from error
        raise
