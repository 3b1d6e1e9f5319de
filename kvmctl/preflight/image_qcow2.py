"""The qcow2 part of judging an image: docs/interop/qcow2.txt of QEMU, and the limits of its block/qcow2.h."""

import struct
import sys
from array import array
from dataclasses import dataclass

from kvmctl.preflight.image_header import LARGEST_DISK, Reader

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77
# QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE, QCOW_MAX_SNAPSHOTS of block/qcow2.h.
_LARGEST_L1 = 32 * 1024 * 1024
_LARGEST_REFCOUNTS = 8 * 1024 * 1024
_MOST_SNAPSHOTS = 65536
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
# How much of the L2 tables is looked through for data beyond the file's end: enough for 512 GiB in use.
_L2_LOOKED_AT = 64 * 1024 * 1024


@dataclass(frozen=True)
class _Fields:
    version: int
    backing_offset: int
    backing_size: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    incompatible: int
    header_length: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def check(reader: Reader) -> int:
    """The virtual size of the qcow2 image, in bytes. Raises Refused; see image_header.examine()."""
    fields = _read(reader)
    _check_alone(reader, fields)
    _check_sane(reader, fields)
    _check_whole(reader, fields)
    return fields.size


def check_disk(reader: Reader) -> None:
    """Judge a disk that a VM shall write to: unlike an image it may stand on another, and be encrypted.

    Raises Refused where it is damaged, cut off, or its data is in another file.
    """
    fields = _read(reader)
    _check_data_file(reader, fields)
    _check_usable(reader, fields)
    _check_sane(reader, fields)
    _check_whole(reader, fields)


def _read(reader: Reader) -> _Fields:
    head = reader.at(0, 72, "its header does")
    version, backing_offset, backing_size, bits, size, encryption, l1, l1_at, ref_at, ref_clusters, snapshots = (
        struct.unpack_from(">IQIIQIIQQII", head, 4)
    )
    if version not in (2, 3):
        raise reader.refused(
            f"is a qcow image of version {version}",
            "convert it: qemu-img convert -f qcow -O qcow2" if version == 1 else None,
        )
    incompatible, length = 0, 72
    if version == 3:
        more = reader.at(72, 32, "its header does")
        (incompatible,) = struct.unpack_from(">Q", more, 0)
        (length,) = struct.unpack_from(">I", more, 28)
    return _Fields(
        version,
        backing_offset,
        backing_size,
        bits,
        size,
        encryption,
        l1,
        l1_at,
        ref_at,
        ref_clusters,
        snapshots,
        incompatible,
        length,
    )


def _check_alone(reader: Reader, fields: _Fields) -> None:
    """Neither a backing file nor a data file, nor encryption whose key is elsewhere."""
    if fields.backing_offset or fields.backing_size:
        name = reader.up_to(fields.backing_offset, min(fields.backing_size, 1023)) if fields.backing_offset else b""
        raise reader.outside("a backing file", name)
    _check_data_file(reader, fields)
    if fields.encryption or _extension(reader, fields, _EXTENSION_ENCRYPTION) is not None:
        raise reader.refused("is encrypted", "decrypt it first: a guest would not find its key")
    _check_usable(reader, fields)


def _check_data_file(reader: Reader, fields: _Fields) -> None:
    data_file = _extension(reader, fields, _EXTENSION_DATA_FILE)
    if fields.incompatible & _DATA_FILE or data_file is not None:
        raise reader.outside("a data file", data_file or b"")


def _check_usable(reader: Reader, fields: _Fields) -> None:
    if fields.incompatible & ~_KNOWN:
        raise reader.refused("uses features of qcow2 that are not known here", "convert it with a newer qemu-img")
    if fields.incompatible & _CORRUPT:
        raise reader.refused("is marked as corrupt", "qemu-img check -r all FILE repairs what can be repaired")


def _extension(reader: Reader, fields: _Fields, wanted: int) -> bytes | None:
    """The content of a header extension. They follow the header, each padded to 8 bytes, within one cluster."""
    at = fields.header_length
    end = min(1 << min(fields.cluster_bits, 21), reader.size)
    while at + 8 <= end:
        kind, length = struct.unpack(">II", reader.at(at, 8, "its header's extensions do"))
        if kind == _EXTENSION_END:
            return None
        if kind == wanted:
            return reader.up_to(at + 8, min(length, 4096))
        at += 8 + (length + 7) // 8 * 8
    return None


def _check_sane(reader: Reader, fields: _Fields) -> None:
    """Sizes and places that QEMU would accept; without this the tables below could be anything."""
    cluster = fields.cluster if 9 <= fields.cluster_bits <= 21 else 0
    entry = 16 if fields.incompatible & _EXTENDED_L2 else 8
    if (
        not cluster
        or not 0 < fields.size <= LARGEST_DISK
        or (fields.version == 3 and (fields.header_length < 104 or fields.header_length % 8))
        or fields.header_length > cluster
        or fields.l1_entries * 8 > _LARGEST_L1
        or fields.refcount_clusters * cluster > _LARGEST_REFCOUNTS
        or fields.refcount_clusters == 0
        or fields.l1_offset % cluster
        or fields.refcount_offset % cluster
        or fields.refcount_offset == 0
        or fields.snapshots > _MOST_SNAPSHOTS
    ):
        raise reader.refused("has a damaged qcow2 header", "copy or download it again")
    covered = cluster * (cluster // entry)
    if fields.l1_entries < (fields.size + covered - 1) // covered:
        raise reader.refused("has a damaged qcow2 header: its tables are too small for its size")


def _check_whole(reader: Reader, fields: _Fields) -> None:
    """Every table, and what the tables point to, lies within the file."""
    if fields.refcount_offset + fields.refcount_clusters * fields.cluster > reader.size:
        raise reader.truncated("its refcount table does")
    l1 = _table(reader.at(fields.l1_offset, fields.l1_entries * 8, "its L1 table does"))
    tables = sorted({entry & _OFFSET for entry in l1} - {0})
    if tables and tables[-1] + fields.cluster > reader.size:
        raise reader.truncated("an L2 table does")
    step = 2 if fields.incompatible & _EXTENDED_L2 else 1
    # Of a compressed cluster's entry, 62 - (cluster_bits - 8) bits are where it begins.
    compressed = (1 << (62 - (fields.cluster_bits - 8))) - 1
    for offset in tables[: _L2_LOOKED_AT // fields.cluster]:
        entries = _table(reader.at(offset, fields.cluster, "an L2 table does"))[::step]
        used = [entry & compressed if entry & _COMPRESSED else entry & _OFFSET for entry in entries if entry]
        # The last cluster of a file may be written only as far as there was data.
        if max(used, default=0) >= reader.size:
            raise reader.truncated("data does")


def _table(data: bytes) -> "array[int]":
    table = array("Q", data)
    if sys.byteorder == "little":
        table.byteswap()
    return table
