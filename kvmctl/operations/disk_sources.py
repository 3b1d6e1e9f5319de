"""Where a disk's bytes are: checking what is there, and finding a place for what is new."""

import posixpath

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import NotFound, Refused, UsageProblem
from kvmctl.model import disk as media
from kvmctl.model import xml
from kvmctl.operations import hypervisor_files, pools

# The sector at which an ISO 9660 file system says what it is, "CD001" after one byte (ECMA-119, 6.7.1 and
# 8.4); a disc with UDF alone says "BEA01" there.
ISO_MARK = 16 * 2048
HEAD = ISO_MARK + 2048


def existing(hypervisor: Hypervisor, wanted: media.ExistingDisk) -> tuple[media.Source, str]:
    """What ``wanted`` names and its format, after a look at it.

    Raises NotFound; UsageProblem for what is no disk, of another format than asked for, or no ISO image
    where it shall be a CD; Refused for a qcow2 disk that is not whole, or names files that it should not.
    """
    path = hypervisor_files.absolute(hypervisor, wanted.path)
    what = "ISO" if wanted.tuning.device == "cdrom" else "disk"
    # What others may be writing to at this moment cannot be judged.
    mine = not (wanted.tuning.readonly or wanted.tuning.shareable)
    found = hypervisor_files.require(hypervisor, path, what, HEAD, _check_whole if mine else None)
    if wanted.tuning.device == "cdrom":
        check_iso(path, found.head)
        return media.Source(found.kind, path), "raw"
    if found.capacity_bytes == 0:
        raise UsageProblem(f"the disk {path[:200]!a} is empty")
    _check_backing(hypervisor, found)
    if wanted.format and wanted.format != found.format and found.format != "raw":
        raise UsageProblem(f"the disk {path[:200]!a} is {found.format}, not {wanted.format}")
    if found.format not in ("raw", "qcow2", "iso", "none", "unknown"):
        raise UsageProblem(
            f"the disk {path[:200]!a} is of the format {found.format}", "'kvmctl image import' converts it to qcow2"
        )
    format_ = wanted.format or (found.format if found.format in media.FORMATS else "raw")
    return media.Source(found.kind, path), format_


def _check_whole(volume: libvirt.virStorageVol, found: hypervisor_files.HypervisorFile) -> None:
    if found.format != "qcow2":
        return
    from kvmctl.operations import volume_reader
    from kvmctl.preflight import image_qcow2
    from kvmctl.preflight.image_header import Reader

    with translated():
        size = int(xml.parse(volume.XMLDesc(0), "storage volume", "volume").findtext("physical") or 0)
    if size:
        image_qcow2.check_disk(Reader(volume_reader.opened(volume, size), size, f"the disk {found.path[:200]!a}"))


def _check_backing(hypervisor: Hypervisor, disk: hypervisor_files.HypervisorFile) -> None:
    """Raise NotFound where something that the disk stands on is missing, Refused where it may not be meant.

    Whoever made the disk wrote into its header what it stands on, and the guest could read that: any file of the
    host's. So it has to lie beside the disk or in a storage pool.
    """
    from kvmctl.preflight import dependents

    above, seen = disk, {disk.path}
    while (path := above.backing) is not None:
        if path in seen:
            raise Refused(
                f"the disk {disk.path[:200]!a} is backed by itself", "its header is damaged: use a copy of it"
            )
        seen.add(path)
        below = hypervisor_files.look(hypervisor, path)
        if below is None:
            raise NotFound(f"the disk {disk.path[:200]!a} is backed by {path[:200]!a}, which is not there")
        with translated(hypervisor.uri):
            known = dependents.pool_of(hypervisor, path) is not None
        if not known and posixpath.dirname(path) != posixpath.dirname(above.path):
            raise Refused(
                f"the disk {disk.path[:200]!a} is backed by {path[:200]!a}, "
                "which is neither beside it nor in a storage pool",
                "the guest could read that file: where it is meant, make its directory a storage pool, "
                "or take the disk alone with 'qemu-img convert'",
            )
        above = below


def check_iso(path: str, head: bytes) -> None:
    """Raise UsageProblem unless ``head``, the file's first HEAD bytes, are those of an ISO image."""
    if head[ISO_MARK + 1 : ISO_MARK + 6] not in (b"CD001", b"BEA01"):
        raise UsageProblem(f"{path[:200]!a} is no ISO image", "what goes into a CD drive must be one")


def refuse_shared(hypervisor: Hypervisor, path: str) -> None:
    """Raise Refused where another VM writes to ``path``, or stands on it: two writers destroy a disk.

    libvirt itself would let them, one after the other, and an overlay's base it never looks at.
    """
    with translated(hypervisor.uri):
        for domain in hypervisor.conn.listAllDomains(0):
            for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
                try:
                    tree = xml.parse(domain.XMLDesc(flags), "domain", "domain")
                except libvirt.libvirtError as error:
                    if is_missing(error):
                        # It was deleted since the list was made.
                        break
                    raise
                if any(path in sources(disk) and _writes(disk) for disk in tree.iterfind("devices/disk")):
                    raise Refused(
                        f"the disk {path[:200]!a} belongs to the VM {domain.name()}",
                        "clone that VM, or give ,readonly or ,shareable",
                    )
        from kvmctl.preflight import dependents

        above = dependents.volumes_on(hypervisor, [path])
    if above:
        raise Refused(
            f"the disk {path[:200]!a} is what {sorted(above)[0]!a} is backed by: writing to it would destroy that",
            "give ,readonly, or make a disk over it with 'kvmctl create --image'",
        )


def _writes(disk: xml.Element) -> bool:
    return disk.find("shareable") is None and disk.find("readonly") is None


def sources(disk: xml.Element) -> set[str]:
    """The paths that a ``<disk>``'s source names: a file or a block device."""
    source = disk.find("source")
    found = (source.get("file"), source.get("dev")) if source is not None else ()
    return {path for path in found if path}


def in_pool(pool: libvirt.virStoragePool, name: str) -> tuple[media.Source, str]:
    """How a domain names the volume ``name`` of ``pool``, and its path (the name where it has none)."""
    with translated():
        kind = xml.parse(pool.XMLDesc(0), "storage pool", "pool").get("type", "dir")
        return in_place(pools.Place(pool.name(), pools.target_path(pool), kind, pool), name)


def in_place(place: pools.Place, name: str) -> tuple[media.Source, str]:
    """The same for a pool that need not be there yet."""
    path = str(place.path / name) if place.path is not None else name
    if place.kind in ("dir", "fs", "netfs", "vstorage"):
        return media.Source("file", path), path
    if place.kind in ("logical", "disk", "iscsi", "scsi", "mpath"):
        return media.Source("block", path), path
    return media.Source("volume", path, place.name, name), path


def volume_element(name: str, format_: str, capacity_bytes: int, mode: str = "0600") -> xml.Element:
    """An empty ``<volume>`` that takes up no room yet."""
    volume = xml.new("volume")
    xml.add(volume, "name", name)
    xml.add(volume, "capacity", capacity_bytes, unit="bytes")
    xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_=format_)
    xml.add(xml.add(target, "permissions"), "mode", mode)
    if format_ == "qcow2":
        xml.add(target, "compat", "1.1")
    return volume
