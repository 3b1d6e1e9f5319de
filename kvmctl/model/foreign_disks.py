"""Which disks of a VM are not kvmctl's, where it has put overlays above them: what is written since is in those."""

from collections.abc import Iterable

from kvmctl.model import xml
from kvmctl.model.metadata import NAMESPACE, Metadata, extra, new_extra, with_extra

_NAME = "foreign"
_DISK = f"{{{NAMESPACE}}}disk"


def read(metadata: Metadata) -> tuple[str, ...]:
    """Their paths."""
    element = extra(metadata, _NAME)
    found = element.iterfind(_DISK) if element is not None else ()
    return tuple(path for disk in found if (path := disk.get("path")))


def add(metadata: Metadata, paths: Iterable[str]) -> Metadata:
    """``metadata`` that knows of these as well."""
    known = dict.fromkeys([*read(metadata), *paths])
    if not known:
        return metadata
    element = new_extra(_NAME)
    for path in known:
        xml.etree.SubElement(element, _DISK).set("path", path)
    return with_extra(metadata, _NAME, element)
