"""Reading a few bytes of a disk where it lies: through its storage volume, so that a remote one works too."""

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import qcow2
from kvmctl.preflight import dependents
from kvmctl.preflight.volume_bytes import read_at as read_at


def find_by_path(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    """The volume at ``path``, None where no pool has it; see dependents.lookup()."""
    with translated(hypervisor.uri):
        return dependents.lookup(hypervisor, path)


def pool_of(hypervisor: Hypervisor, path: str) -> libvirt.virStoragePool | None:
    """The active pool whose directory ``path`` lies in directly, or None."""
    with translated(hypervisor.uri):
        return dependents.pool_of(hypervisor, path)


def internal_snapshots(hypervisor: Hypervisor, path: str) -> list[qcow2.InternalSnapshot] | None:
    """The snapshots inside the qcow2 image at ``path``; None where they cannot be seen from here."""
    volume = find_by_path(hypervisor, path)
    if volume is None:
        return None
    header = qcow2.parse_header(read_at(volume, 0, qcow2.HEADER_SIZE))
    if header is None:
        return None
    if header.snapshots == 0:
        return []
    # An entry is rarely above 200 bytes; more is fetched only where that was not enough.
    length = min(header.snapshots * 4096, qcow2.LARGEST_TABLE)
    return qcow2.parse_snapshots(read_at(volume, header.snapshots_offset, length), header.snapshots)
