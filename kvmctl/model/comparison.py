"""When two definitions of a domain are the same."""

import hashlib

from kvmctl.model import undo_record, xml
from kvmctl.model.metadata import NAMESPACE, from_domain


def comparable(text: str) -> str:
    """``text`` in a form that is equal where the definition is: without what undo keeps, controllers sorted.

    libvirt lists a controller that it added itself elsewhere when it reads its own XML again, which is no
    change.
    """
    return _comparable(xml.parse(undo_record.without(text), "domain"))


def fingerprint(text: str) -> str:
    """A digest that is the same as long as nobody changes the definition ``text``.

    It stays the same where kvmctl remembers something of the VM, renames it, moves a disk of its own onto an overlay
    (a clone, a snapshot), and where libvirt fills in the firmware at the first start.
    """
    tree = xml.parse(text, "domain")
    own = {volume.path for volume in from_domain(tree).volumes if volume.path}
    for disk in tree.iterfind("devices/disk"):
        source = disk.find("source")
        if source is None or source.get("file") not in own:
            continue
        for part in (source, disk.find("backingStore")):
            if part is not None:
                disk.remove(part)
        driver = disk.find("driver")
        if driver is not None:
            driver.attrib.pop("type", None)
    for path in ("name", "os/loader", "os/nvram", "os/firmware", f"metadata/{{{NAMESPACE}}}vm"):
        for element in tree.findall(path):
            parent = element.getparent()
            if parent is not None:
                parent.remove(element)
    holder = tree.find("metadata")
    if holder is not None and len(holder) == 0:
        tree.remove(holder)
    return hashlib.sha256(_comparable(tree).encode()).hexdigest()


def _comparable(tree: xml.Element) -> str:
    devices = tree.find("devices")
    if devices is not None:
        controllers = sorted(devices.iterfind("controller"), key=lambda element: xml.raw(element).strip())
        for controller in controllers:
            devices.remove(controller)
            devices.append(controller)
    for element in tree.iter():
        if not (element.text or "").strip():
            element.text = None
        if not (element.tail or "").strip():
            element.tail = None
    return " ".join(xml.raw(tree).split())
