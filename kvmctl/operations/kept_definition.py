"""Keeping a VM's definition while a command changes it, so that 'kvmctl undo' can bring it back."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import libvirt

from kvmctl.model import undo_record
from kvmctl.model.comparison import comparable, fingerprint
from kvmctl.model.undo_record import UndoRecord
from kvmctl.operations import metadata

DEFINED = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


def now() -> str:
    """This moment as the record has it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def definition_kept(domain: libvirt.virDomain, command: str) -> Iterator[None]:
    """Within it ``domain`` is changed by ``command``; afterwards its definition from before can be brought back.

    Nothing is kept where nothing changed, the change failed, or the domain is transient.
    """
    if not domain.isPersistent():
        yield
        return
    before = undo_record.without(domain.XMLDesc(DEFINED))
    yield
    after = domain.XMLDesc(DEFINED)
    if comparable(after) != comparable(before):
        record = UndoRecord(command, now(), definition=before, after=fingerprint(after))
        metadata.write(domain, undo_record.put(metadata.read(domain), record))


def cannot_be_undone(domain: libvirt.virDomain, command: str, why: str) -> None:
    """Note that ``command`` has changed ``domain`` in a way that leads nowhere back, so that 'undo' says so.

    Without it 'undo' would take back the command before, as if this one had not been.
    """
    if domain.isPersistent():
        metadata.write(domain, undo_record.put(metadata.read(domain), UndoRecord(command, now(), never=why)))
