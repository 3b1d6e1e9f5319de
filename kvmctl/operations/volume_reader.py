"""Reading a few bytes of a disk where it lies: through its storage volume, so that a remote one works too."""

import contextlib
from pathlib import PurePosixPath

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing
from kvmctl.model import qcow2
from kvmctl.operations.pools import refresh, target_path


def find_by_path(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    """The volume at ``path``; a pool that does not know it yet is refreshed. None where no pool has it."""
    for attempt in (0, 1):
        try:
            return hypervisor.conn.storageVolLookupByPath(path)
        except libvirt.libvirtError as error:
            if not is_missing(error):
                raise explain(error, hypervisor.uri) from error
        if attempt == 0:
            pool = pool_of(hypervisor, path)
            if pool is None:
                return None
            refresh(pool)
    return None


def pool_of(hypervisor: Hypervisor, path: str) -> libvirt.virStoragePool | None:
    """The active pool whose directory ``path`` lies in directly, or None."""
    try:
        pools = hypervisor.conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    except libvirt.libvirtError as error:
        raise explain(error, hypervisor.uri) from error
    for pool in pools:
        with contextlib.suppress(libvirt.libvirtError):
            if target_path(pool) == PurePosixPath(path).parent:
                return pool
    return None


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
