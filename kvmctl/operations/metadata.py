"""Reading and writing what kvmctl remembers of a VM, in libvirt's own metadata of the domain."""

import libvirt

from kvmctl.connection import translated
from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.metadata import NAMESPACE, PREFIX, Metadata, from_element, to_element


def read(domain: libvirt.virDomain) -> Metadata:
    """What is remembered of ``domain``; empty where kvmctl never touched it, or where it is not readable XML."""
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else libvirt.VIR_DOMAIN_AFFECT_CURRENT
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return Metadata()
        raise
    try:
        return from_element(_with_namespace(xml.parse(text, "kvmctl metadata")), domain.UUIDString())
    except UsageProblem:
        # Edited by hand into something else: nothing in it can be trusted, and nothing must fail for it.
        return Metadata()


def write(domain: libvirt.virDomain, metadata: Metadata) -> None:
    """Remember ``metadata``: in the saved definition, and in the running one too, so that both agree."""
    text = xml.raw(_without_prefix(to_element(metadata, domain.UUIDString())))
    flags = 0
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    with translated():
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, PREFIX, NAMESPACE, flags)


def _with_namespace(element: xml.Element) -> xml.Element:
    """The same in kvmctl's namespace again, which libvirt takes away from what it hands out."""
    for node in element.iter():
        if isinstance(node.tag, str) and xml.etree.QName(node).namespace is None:
            node.tag = f"{{{NAMESPACE}}}{node.tag}"
    return element


def _without_prefix(element: xml.Element) -> xml.Element:
    """The same without namespaces: libvirt declares the prefix itself, and fails where it stands there already."""
    for node in element.iter():
        if isinstance(node.tag, str) and xml.etree.QName(node).namespace == NAMESPACE:
            node.tag = xml.etree.QName(node).localname
    xml.etree.cleanup_namespaces(element)
    return element
