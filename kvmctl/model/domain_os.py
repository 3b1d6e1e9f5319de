"""Which OS a VM has, as far as its definition tells. Apart from domain_view, for lists that want nothing else."""

from urllib.parse import urlsplit

from kvmctl.model import xml

_OSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"


def os_name(domain: xml.Element) -> str | None:
    """The OS's short id as libosinfo has it (``debian12``), else the image that kvmctl made it from."""
    remembered = domain.find("metadata")
    if remembered is None:
        return None
    element = remembered.find(f"{{{_OSINFO}}}libosinfo/{{{_OSINFO}}}os")
    if element is not None:
        try:
            words = [word for word in urlsplit(element.get("id", "")).path.split("/") if word]
        except ValueError:
            words = []
        if words:
            return "".join(words[-2:])
    # Imported late: whoever lists VMs of other tools has no need for it.
    from kvmctl.model import metadata

    return metadata.from_domain(domain).image
