"""Ending and undefining a domain, which may have ended or gone by itself meanwhile."""

import libvirt

from kvmctl.connection import is_missing

_EVERYTHING = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_TPM
)


def power_off(domain: libvirt.virDomain) -> None:
    """Power it off; a transient one is then gone altogether."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if not is_missing(error) and domain.isActive():
            raise


def undefine(domain: libvirt.virDomain) -> None:
    """Undefine it, with all that libvirt keeps of it: NVRAM, TPM state, saved memory, what it knows of snapshots."""
    try:
        domain.undefineFlags(_EVERYTHING)
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise
