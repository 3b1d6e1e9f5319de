"""Bytes of a storage volume, through libvirt's stream, so that a remote one works too."""

import contextlib
import posixpath

import libvirt

from kvmctl.connection import explain
from kvmctl.model import qcow2, xml

# The header, its extensions and the name of the backing file: QEMU puts all of them into the first cluster.
_HEAD = 4096


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


def backing(volume: libvirt.virStorageVol) -> tuple[str, str | None] | None:
    """The path that the volume is backed by and that one's format where it is told; None where it is by nothing.

    What libvirt says of it is what it saw when it last listed the pool, so that a qcow2 image is asked itself; what is
    no plain path in it (json:, nbd:), and other formats, libvirt tells.
    """
    found = qcow2.backing(read_at(volume, 0, _HEAD))
    if found is not None and not found.name:
        return None
    if found is not None and not found.name.startswith("json:") and "://" not in found.name:
        folder = posixpath.dirname(volume.path())
        return posixpath.normpath(posixpath.join(folder, found.name.removeprefix("file:"))), found.format
    tree = xml.parse(volume.XMLDesc(0), "storage volume")
    path, format_ = tree.findtext("backingStore/path"), tree.find("backingStore/format")
    return (path, format_.get("type") if format_ is not None else None) if path else None
