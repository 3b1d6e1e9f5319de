"""What a command is doing to a VM's disks just now, as it is kept in the VM's own metadata until it is done."""

from collections.abc import Iterable
from dataclasses import dataclass

from kvmctl.model import xml
from kvmctl.model.metadata import NAMESPACE, Creator, Metadata, extra, new_extra, with_extra


@dataclass(frozen=True)
class WorkRecord:
    """The process that is at work, and the ``paths`` of all that it makes or freezes."""

    process: Creator
    paths: tuple[str, ...]


def read(metadata: Metadata) -> WorkRecord | None:
    """The record in what is remembered of a VM; None where there is none, or none that can be read."""
    element = extra(metadata, "work")
    if element is None:
        return None
    pid, started = element.get("pid", ""), element.get("started", "")
    if not (pid.isascii() and pid.isdigit() and started.isascii() and started.isdigit()):
        return None
    process = Creator(element.get("machine", ""), element.get("boot", ""), int(pid), int(started))
    return WorkRecord(process, tuple(path.text for path in element if path.text))


def put(metadata: Metadata, record: WorkRecord | None) -> Metadata:
    """``metadata`` with this record in the place of the one before, or with none."""
    if record is None:
        return with_extra(metadata, "work", None)
    element = new_extra("work")
    for name in ("machine", "boot", "pid", "started"):
        element.set(name, str(getattr(record.process, name)))
    for path in record.paths:
        xml.add(element, f"{{{NAMESPACE}}}path", path)
    return with_extra(metadata, "work", element)


def begin(metadata: Metadata, process: Creator, paths: Iterable[str | None]) -> Metadata:
    """``metadata`` with a record of this ``process``, these ``paths`` (None is left out), and those noted before."""
    before = read(metadata)
    every = (*(before.paths if before is not None else ()), *paths)
    return put(metadata, WorkRecord(process, tuple(dict.fromkeys(path for path in every if path))))
