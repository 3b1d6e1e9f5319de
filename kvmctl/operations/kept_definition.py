"""Keeping a VM's definition while a command changes it, so that 'kvmctl undo' can bring it back."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import libvirt

from kvmctl.model import start_order, undo_record, xml
from kvmctl.model.comparison import comparable, fingerprint
from kvmctl.model.metadata import NAMESPACE, from_domain
from kvmctl.model.start_order import StartOrder
from kvmctl.model.undo_record import UndoRecord
from kvmctl.operations import metadata

DEFINED = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


def now() -> str:
    """This moment as the record has it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def definition_kept(domain: libvirt.virDomain, command: str) -> Iterator[None]:
    """Within it ``domain`` is changed by ``command``; afterwards its definition from before can be brought back.

    Where the command changes the running guest's devices alone, these can. Nothing is kept where nothing changed,
    the change failed, or the domain is transient.
    """
    if not domain.isPersistent():
        yield
        return
    before, ran = undo_record.without(domain.XMLDesc(DEFINED)), _running(domain)
    yield
    after = domain.XMLDesc(DEFINED)
    record = None
    if _bare(after) != _bare(before):
        record = UndoRecord(command, now(), definition=before, after=fingerprint(after))
    elif ran is not None:
        runs = _running(domain)
        if runs is not None and _devices_differ(ran, runs):
            record = UndoRecord(command, now(), definition=ran, run=runs)
    if record is not None:
        metadata.write(domain, undo_record.put(metadata.read(domain), record))


def _running(domain: libvirt.virDomain) -> str | None:
    """How the guest runs, None where it does not."""
    return undo_record.without(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)) if domain.isActive() else None


def _bare(definition: str) -> tuple[str, StartOrder | None]:
    """In a form that is equal where the definition is, and when it is started among the others.

    Whatever else kvmctl remembers of the VM is not what 'undo' takes back.
    """
    tree = xml.parse(definition, "domain")
    order = start_order.read(from_domain(tree))
    for element in tree.findall(f"metadata/{{{NAMESPACE}}}vm"):
        parent = element.getparent()
        if parent is not None:
            parent.remove(element)
            if parent.tag == "metadata" and len(parent) == 0:
                tree.remove(parent)
    return comparable(xml.raw(tree)), replace(order, boot=None) if order is not None else None


def _devices_differ(before: str, after: str) -> bool:
    # Imported late: what plugs devices keeps the definition while it does.
    from kvmctl.operations import undo_devices

    then, since = xml.parse(before, "domain"), xml.parse(after, "domain")
    return undo_devices.following(since, since, then) != undo_devices.Devices()


def cannot_be_undone(domain: libvirt.virDomain, command: str, why: str) -> None:
    """Note that ``command`` has changed ``domain`` in a way that leads nowhere back, so that 'undo' says so.

    Without it 'undo' would take back the command before, as if this one had not been.
    """
    if domain.isPersistent():
        metadata.write(domain, undo_record.put(metadata.read(domain), UndoRecord(command, now(), never=why)))
