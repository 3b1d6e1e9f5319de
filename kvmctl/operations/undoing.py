"""Back to just before the last command that changed a VM's disks or definition."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict
from kvmctl.model import undo_record, xml
from kvmctl.model.comparison import comparable
from kvmctl.model.metadata import from_domain, put
from kvmctl.model.snapshot import SLOT
from kvmctl.model.undo_record import UndoRecord
from kvmctl.operations import metadata, snapshot_revert, snapshots
from kvmctl.operations.progress import Progress

_DEFINED = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def definition_kept(domain: libvirt.virDomain, command: str) -> Iterator[None]:
    """Within it ``domain`` is changed by ``command``; afterwards its definition from before can be brought back.

    Nothing is kept where nothing changed, the change failed, or the domain is transient.
    """
    if not domain.isPersistent():
        yield
        return
    before = undo_record.without(domain.XMLDesc(_DEFINED))
    yield
    if comparable(domain.XMLDesc(_DEFINED)) != comparable(before):
        record = UndoRecord(command, _now(), definition=before)
        metadata.write(domain, undo_record.put(metadata.read(domain), record))


@dataclass(frozen=True)
class Plan:
    """What would be undone; ``revert`` goes back to the slot, ``definition`` is defined again."""

    vm: str
    record: UndoRecord
    revert: snapshot_revert.Plan | None
    running: bool

    def sentence(self) -> str:
        """What undoing means, before it is done."""
        what = (
            f"the disks, memory and definition go back to the moment kept as {SLOT}"
            if self.revert is not None
            else "its definition from before is brought back" + (", from the next start on" if self.running else "")
        )
        return f"undoing '{self.record.command}' of {self.record.at} on {self.vm}: {what}"

    def as_dict(self, *, changed: bool) -> dict[str, Any]:
        """``{name, command, at, kind, changed}``; ``kind`` is ``snapshot`` or ``definition``."""
        return {
            "name": self.vm,
            "command": self.record.command,
            "at": self.record.at,
            "kind": "snapshot" if self.revert is not None else "definition",
            "changed": changed,
        }


def plan(hypervisor: Hypervisor, vm: str) -> Plan:
    """What the last change was. Raises Conflict where nothing is kept that leads back before it."""
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri):
        name = domain.name()
        record = undo_record.read(metadata.read(domain))
        slot = any(s.shown_name == SLOT for s in snapshots.load(domain))
        running = bool(domain.isActive())
    if record is None or (record.snapshot and not slot):
        raise Conflict(
            f"nothing is kept that leads back before the last change of {name}",
            f"'kvmctl snapshot list {name}' shows the moments there are",
        )
    revert = snapshot_revert.plan(hypervisor, vm, SLOT) if record.snapshot else None
    return Plan(name, record, revert, running)


def run(hypervisor: Hypervisor, found: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Undo it. What was undone can itself be undone."""
    domain = hypervisor.find(found.vm)
    if found.revert is not None:
        snapshot_revert.run(hypervisor, found.revert, progress, command=f"undo {found.vm}")
        return found.as_dict(changed=True)
    assert found.record.definition is not None
    with translated(hypervisor.uri):
        before = domain.XMLDesc(_DEFINED)
        tree = xml.parse(found.record.definition, "saved definition", "domain")
        # What kvmctl must know to clean up is of now, whatever the definition was then.
        then, now = from_domain(tree), metadata.read(domain)
        volumes = tuple(dict.fromkeys([*now.volumes, *then.volumes]))
        redo = UndoRecord(f"undo {found.vm}", _now(), definition=undo_record.without(before))
        put(tree, undo_record.put(replace(then, volumes=volumes, forwards=now.forwards), redo))
        hypervisor.conn.defineXML(xml.raw(tree))
    return found.as_dict(changed=True)
