"""Reading a few bytes of a disk where it lies: through its storage volume, so that a remote one works too."""

import contextlib

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.model import qcow2
from kvmctl.preflight import dependents


def find_by_path(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    """The volume at ``path``, None where no pool has it; see dependents.lookup()."""
    with translated(hypervisor.uri):
        return dependents.lookup(hypervisor, path)


def pool_of(hypervisor: Hypervisor, path: str) -> libvirt.virStoragePool | None:
    """The active pool whose directory ``path`` lies in directly, or None."""
    with translated(hypervisor.uri):
        return dependents.pool_of(hypervisor, path)


def read_at(volume: libvirt.virStorageVol, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes of the volume from ``offset``, fewer where it ends."""
    stream = volume.connect().newStream(0)
    data = bytearray()
    try:
        volume.download(stream, offset, length, 0)
        while len(data) < length:
            piece = stream.recv(min(256 * 1024, length - len(data)))
            if not piece:
                break
            data += piece
        stream.finish()
    except libvirt.libvirtError as error:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise explain(error) from error
    return bytes(data)


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
