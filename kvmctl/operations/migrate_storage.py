"""The destination's volumes for disks that are copied, and kvmctl's own copying where QEMU does not."""

import contextlib
import io
from collections.abc import Iterable, Iterator

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import KvmctlError, NotFound
from kvmctl.model import metadata, migration, xml
from kvmctl.model.metadata import Metadata
from kvmctl.model.migration import DiskMove
from kvmctl.operations import pools
from kvmctl.operations.progress import Progress
from kvmctl.preflight import volumes
from kvmctl.preflight.migration_sides import Sides

# virStreamRecv gives at most this much at once.
CHUNK = 256 * 1024 - 24


def volume_element(move: DiskMove) -> xml.Element:
    """``<volume>`` for the copy of a disk: as large, of the same format, standing on the same backing file or none."""
    volume = xml.new("volume", type_="file")
    xml.add(volume, "name", name_of(move))
    xml.add(volume, "capacity", move.capacity, unit="bytes")
    if move.format == "raw":
        xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_=move.format)
    xml.add(xml.add(target, "permissions"), "mode", "0600")
    if move.backing is not None:
        backing = xml.add(volume, "backingStore")
        xml.add(backing, "path", move.backing)
        xml.add(backing, "format", type_=move.backing_format or "raw")
    return volume


def name_of(move: DiskMove) -> str:
    """The volume's name in its pool."""
    return (move.path or "").rpartition("/")[2]


def make(destination: Hypervisor, move: DiskMove) -> None:
    """Make the empty volume that QEMU fills."""
    pool = pools.find_pool(destination, move.pool or "")
    if pool is None:
        raise NotFound(f"no storage pool named {move.pool} on {destination.uri}")
    pools.create_volume(pool, volume_element(move))


def send(source: Hypervisor, destination: Hypervisor, move: DiskMove, progress: Progress) -> None:
    """Copy a volume byte for byte, by way of this machine: for media, and disks of a guest that is off."""
    pool = pools.find_pool(destination, move.pool or "")
    with translated(source.uri):
        volume = source.conn.storageVolLookupByPath(move.source)
        # The file as it is, also of a qcow2: its header and clusters, not the disk within.
        size = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])
    if pool is None:
        raise NotFound(f"no storage pool named {move.pool} on {destination.uri}")
    reader = _Download(volume, size)
    with contextlib.closing(reader):
        pools.upload(
            pool,
            name_of(move),
            reader,  # type: ignore[arg-type]  # upload() needs read() and seek() of it, no more
            size,
            progress=progress,
            text=f"copying {name_of(move)}",
        )


class _Download:
    """A volume's bytes in order, as pools.upload() reads a file."""

    def __init__(self, volume: libvirt.virStorageVol, size: int) -> None:
        self._stream = volume.connect().newStream(0)
        volume.download(self._stream, 0, size, 0)
        self._at = 0
        self._open = True

    def read(self, count: int) -> bytes:
        data: bytes = self._stream.recv(min(count, CHUNK))
        self._at += len(data)
        return data

    def seek(self, offset: int) -> int:
        if offset != self._at:
            raise KvmctlError("a volume is read from its beginning to its end")
        return offset

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(libvirt.libvirtError):
                self._stream.finish()


def delete(destination: Hypervisor, made: Iterable[tuple[str, str]]) -> list[str]:
    """Remove the volumes made for a migration that failed; returns what could not be."""
    left = []
    for pool, name in made:
        try:
            pools.delete_volume(destination, pool, name)
        except (KvmctlError, libvirt.libvirtError) as error:
            left.append(f"volume {name} of pool {pool} on {destination.uri} ({error})")
    return left


def definition_there(sides: Sides, moves: tuple[DiskMove, ...], flags: int) -> str:
    """The domain's XML as the destination shall have it, with the disks' places there; ``flags``: virDomainXMLFlags."""
    with translated(sides.source.uri):
        text = sides.domain.XMLDesc(flags | libvirt.VIR_DOMAIN_XML_SECURE)
    tree = migration.moved_disks(xml.parse(text, "domain", "domain"), moves)
    migration.strip(tree)
    if tree.find(f"metadata/{{{metadata.NAMESPACE}}}vm") is not None:
        known = _owned_there(metadata.from_domain(tree), moves, volumes.pools(sides.destination))
        metadata.put(tree, known)
    return xml.raw(tree)


def _owned_there(known: Metadata, moves: Iterable[DiskMove], pools_there: Iterable[volumes.PoolFacts]) -> Metadata:
    """What kvmctl remembers as its own, with each volume under the destination's pool and path."""
    by_source = {move.source: move for move in moves if move.action == "copy"}
    by_folder = {str(pool.path): pool.name for pool in pools_there if pool.path is not None}

    def there() -> Iterator[metadata.OwnedVolume]:
        for volume in known.volumes:
            move = by_source.get(volume.path or "")
            if move is not None and move.pool is not None:
                yield volume._replace(pool=move.pool, name=name_of(move), path=move.path)
            elif volume.path is not None and volume.path.rpartition("/")[0] in by_folder:
                yield volume._replace(pool=by_folder[volume.path.rpartition("/")[0]])
            else:
                yield volume

    return known._replace(volumes=tuple(there()))
