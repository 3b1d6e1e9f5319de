"""VM names for the shell's completion."""

import contextlib

from kvmctl.connection import connect
from kvmctl.errors import KvmctlError
from kvmctl.model.names import harmless


def vm_names(uri: str | None) -> list[str]:
    """The names there are, without those that could harm a terminal; empty where libvirt does not answer."""
    with contextlib.suppress(KvmctlError), connect(uri, read_only=uri is not None) as hypervisor:
        return sorted(
            n for n in (d.name() for d in hypervisor.conn.listAllDomains(0)) if harmless(n) == n and " " not in n
        )
    return []
