"""When two definitions of a domain are the same."""

from kvmctl.model import undo_record, xml


def comparable(text: str) -> str:
    """``text`` in a form that is equal where the definition is: without what undo keeps, controllers sorted.

    libvirt lists a controller that it added itself elsewhere when it reads its own XML again, which is no
    change.
    """
    tree = xml.parse(undo_record.without(text), "domain")
    devices = tree.find("devices")
    if devices is not None:
        controllers = sorted(devices.iterfind("controller"), key=lambda element: xml.raw(element).strip())
        for controller in controllers:
            devices.remove(controller)
            devices.append(controller)
    return " ".join(xml.raw(tree).split())
