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
        return from_element(xml.parse(text, "kvmctl metadata"))
    except UsageProblem:
        # Edited by hand into something else: nothing in it can be trusted, and nothing must fail for it.
        return Metadata()


def write(domain: libvirt.virDomain, metadata: Metadata) -> None:
    """Remember ``metadata``: in the saved definition, and in the running one too, so that both agree."""
    text = xml.raw(to_element(metadata))
    flags = 0
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    with translated():
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, PREFIX, NAMESPACE, flags)
