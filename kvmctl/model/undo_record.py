"""What the last change to a VM was and what was before it, as it is kept in the VM's own metadata."""

from dataclasses import dataclass

from kvmctl.model import xml
from kvmctl.model.metadata import NAMESPACE, Metadata, extra, new_extra, with_extra


@dataclass(frozen=True)
class UndoRecord:
    """``command`` as the user typed it, ``at`` ISO 8601; and what leads back.

    Either ``snapshot`` (the moment before it was kept by 'snapshot revert', in its slot or as ``kept``) or
    ``definition``, the ``<domain>`` as it was defined before; or nothing does, and ``never`` says why. ``after`` is the
    fingerprint (see comparison) of what the command made of it. Where it changed the running guest alone,
    ``definition`` is how that ran before, and ``run`` how it ran afterwards.
    """

    command: str
    at: str
    snapshot: bool = False
    definition: str | None = None
    after: str | None = None
    never: str | None = None
    run: str | None = None
    kept: str | None = None


def read(metadata: Metadata) -> UndoRecord | None:
    """The record in what is remembered of a VM; None where there is none, or none that leads anywhere."""
    element = extra(metadata, "undo")
    if element is None:
        return None
    definition = element.text if element.text and element.text.strip() else None
    snapshot = element.get("snapshot") == "yes"
    never = element.get("never")
    if definition is None and not snapshot and never is None:
        return None
    command, at = element.get("command", "?"), element.get("at", "?")
    run = element.findtext(f"{{{NAMESPACE}}}run")
    return UndoRecord(command, at, snapshot, definition, element.get("after"), never, run, element.get("kept"))


def put(metadata: Metadata, record: UndoRecord | None) -> Metadata:
    """``metadata`` with this record in the place of the one before, or with none."""
    if record is None:
        return with_extra(metadata, "undo", None)
    element = new_extra("undo")
    element.set("command", record.command)
    element.set("at", record.at)
    if record.snapshot:
        element.set("snapshot", "yes")
    if record.kept is not None:
        element.set("kept", record.kept)
    if record.after is not None:
        element.set("after", record.after)
    if record.never is not None:
        element.set("never", record.never)
    element.text = record.definition
    if record.run is not None:
        xml.add(element, f"{{{NAMESPACE}}}run", record.run)
    return with_extra(metadata, "undo", element)


def without(definition: str) -> str:
    """A ``<domain>`` without the record in its metadata: one step back is kept, not a chain of them."""
    tree = xml.parse(definition, "domain", "domain")
    for element in tree.findall(f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}undo"):
        parent = element.getparent()
        if parent is not None:
            parent.remove(element)
    return xml.raw(tree)
