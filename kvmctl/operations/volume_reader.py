"""Reading a few bytes of a disk where it lies: through its storage volume, so that a remote one works too."""

import io
from typing import TYPE_CHECKING, BinaryIO

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import qcow2
from kvmctl.preflight import dependents
from kvmctl.preflight.volume_bytes import read_at as read_at

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def find_by_path(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    """The volume at ``path``, None where no pool has it; see dependents.lookup()."""
    with translated(hypervisor.uri):
        return dependents.lookup(hypervisor, path)


def pool_of(hypervisor: Hypervisor, path: str) -> libvirt.virStoragePool | None:
    """The active pool whose directory ``path`` lies in directly, or None."""
    with translated(hypervisor.uri):
        return dependents.pool_of(hypervisor, path)


def opened(volume: libvirt.virStorageVol, size: int) -> BinaryIO:
    """The volume, of ``size`` bytes, as a file to read from, for judging one that other tools have made."""
    return io.BufferedReader(_VolumeFile(volume, size), 64 * 1024)


class _VolumeFile(io.RawIOBase):
    """A volume as a file to read from."""

    def __init__(self, volume: libvirt.virStorageVol, size: int) -> None:
        self._volume, self._size, self._at = volume, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        length = min(len(view), self._size - self._at)
        data = read_at(self._volume, self._at, length) if length > 0 else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


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
