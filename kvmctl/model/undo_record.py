"""What the last change to a VM was and what was before it, as it is kept in the VM's own metadata."""

from dataclasses import dataclass, replace

from kvmctl.model import xml
from kvmctl.model.metadata import NAMESPACE, PREFIX, Metadata

_TAG = f"{{{NAMESPACE}}}undo"


@dataclass(frozen=True)
class UndoRecord:
    """``command`` as the user typed it, ``at`` ISO 8601; and what leads back.

    Either ``snapshot`` (the moment before it was kept in the slot of 'snapshot revert') or ``definition``, the
    ``<domain>`` as it was defined before. ``after`` is the fingerprint (see comparison) of what the command made of it.
    """

    command: str
    at: str
    snapshot: bool = False
    definition: str | None = None
    after: str | None = None


def read(metadata: Metadata) -> UndoRecord | None:
    """The record in what is remembered of a VM; None where there is none, or none that can be read."""
    for text in metadata.extra:
        element = xml.parse(text, "kvmctl metadata")
        if element.tag != _TAG:
            continue
        definition = element.text if element.text and element.text.strip() else None
        snapshot = element.get("snapshot") == "yes"
        if definition is None and not snapshot:
            return None
        command, at = element.get("command", "?"), element.get("at", "?")
        return UndoRecord(command, at, snapshot, definition, element.get("after"))
    return None


def put(metadata: Metadata, record: UndoRecord | None) -> Metadata:
    """``metadata`` with this record in the place of the one before, or with none."""
    others = tuple(text for text in metadata.extra if xml.parse(text, "kvmctl metadata").tag != _TAG)
    if record is None:
        return replace(metadata, extra=others)
    element = xml.etree.Element(_TAG, nsmap={PREFIX: NAMESPACE})
    element.set("command", record.command)
    element.set("at", record.at)
    if record.snapshot:
        element.set("snapshot", "yes")
    if record.after is not None:
        element.set("after", record.after)
    element.text = record.definition
    return replace(metadata, extra=(*others, xml.raw(element)))


def without(definition: str) -> str:
    """A ``<domain>`` without the record in its metadata: one step back is kept, not a chain of them."""
    tree = xml.parse(definition, "domain", "domain")
    for element in tree.findall(f"metadata/{{{NAMESPACE}}}vm/{_TAG}"):
        parent = element.getparent()
        if parent is not None:
            parent.remove(element)
    return xml.raw(tree)
