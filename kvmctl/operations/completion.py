"""VM names for the shell's completion."""

import contextlib
import threading

import libvirt

from kvmctl.connection import connect
from kvmctl.errors import KvmctlError
from kvmctl.model.names import harmless

# A shell that waits longer for a completion seems to hang; a remote hypervisor may take for ever.
_PATIENCE_SECONDS = 2.0


def vm_names(uri: str | None) -> list[str]:
    """The names there are, without those that could harm a terminal; empty where libvirt does not answer soon."""
    found: list[str] = []

    def ask() -> None:
        with (
            contextlib.suppress(KvmctlError, libvirt.libvirtError),
            connect(uri, read_only=uri is not None) as hypervisor,
        ):
            found.extend(domain.name() for domain in hypervisor.conn.listAllDomains(0))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    return sorted(name for name in list(found) if harmless(name) == name and " " not in name)
