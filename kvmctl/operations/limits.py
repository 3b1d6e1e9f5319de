"""Whether a running VM's limits hold: without control groups on its host libvirt starts it, and says nothing."""

import libvirt

from kvmctl.model import xml


def not_in_force(domain: libvirt.virDomain, definition: xml.Element | None = None) -> list[str]:
    """A sentence where CPU shares or memory limits of the running ``domain`` have no effect.

    ``definition`` is its ``<domain>`` where the caller has it.
    """
    if definition is None:
        text = domain.XMLDesc(0)
        # Most guests have no limits, and are not worth a parser.
        if "<memtune>" not in text and "<shares>" not in text:
            return []
        definition = xml.parse(text, "domain", "domain")
    limits = (("memtune", "memory limits"), ("cputune/shares", "CPU shares"))
    found = [what for path, what in limits if definition.find(path) is not None]
    if not found:
        return []
    try:
        domain.memoryParameters(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        # What libvirt says of a VM that has no control group.
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and domain.isActive():
            return [f"its {' and '.join(found)} are not in force: libvirt has no control groups on that host"]
    return []
