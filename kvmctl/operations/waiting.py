"""Waiting for a guest to get somewhere.

(Its first half only: the shape that others rely on. Replace the whole file with the real one.)
"""

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.operations.progress import Progress


def wait_for(
    hypervisor: Hypervisor, domain: libvirt.virDomain, condition: str, timeout: float | None, progress: Progress
) -> None:
    """Return when ``condition`` holds in ``domain``."""
    raise KvmctlError(f"cannot wait for {condition} yet")
