"""Publishing ports of guests behind NAT.

(Its first half only: the shape that others rely on. Replace the whole file with the real one.)
"""

from collections.abc import Iterable

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.model.metadata import Forward


def publish(hypervisor: Hypervisor, domain: libvirt.virDomain, forwards: Iterable[Forward]) -> None:
    """Lead the host's ports to the guest's."""
    if list(forwards):
        raise KvmctlError("ports of a guest behind NAT cannot be published yet", "use --net user")


def unpublish_all(hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
    """Take back every port published for ``domain``."""
