"""A bootable GPT disk, written as bytes: no loop device, no partition tool, no root.

Three partitions, numbered and placed as on Debian's own cloud images: 14 holds GRUB's core image for
BIOS, 15 is the EFI system partition, and 1, the last on the disk so that it can grow, is the root.
"""

import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvmctl.errors import KvmctlError
from kvmctl.model.units import MIB

SECTOR = 512
# UEFI Specification 2.10, section 5.3: 128 entries of 128 bytes, so 32 sectors, and the header before them.
_ENTRIES = 128
_ENTRY_SIZE = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_SIZE // SECTOR

BIOS_BOOT_TYPE = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# "Linux root (x86-64)" of the Discoverable Partitions Specification.
ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")

BIOS_BOOT_START = MIB
ESP_START = 4 * MIB
ESP_SIZE = 60 * MIB
ROOT_START = ESP_START + ESP_SIZE
# The second partition table, rounded up so that the root partition ends on a whole MiB.
TAIL = MIB

# GRUB's grub-core/boot/i386/pc/boot.S and include/grub/i386/pc/boot.h: where boot.img keeps the sector that
# core.img begins at, and the jump around a check that only diskettes need.
_BOOT_KERNEL_SECTOR = 0x5C
_BOOT_DRIVE_CHECK = 0x66
_MBR_TABLE = 0x1B8
# The last entry of the block list at the end of core.img's first sector: first sector of the rest, 8 bytes.
_CORE_REST = 0x1F4


@dataclass(frozen=True)
class Partition:
    """One entry of the table; ``start`` and ``size`` in bytes, multiples of a sector."""

    number: int
    kind: uuid.UUID
    name: str
    start: int
    size: int


def root_size(disk_size: int) -> int:
    """The bytes that the root partition has on a disk of ``disk_size`` bytes."""
    return disk_size // MIB * MIB - ROOT_START - TAIL


def write_disk(disk: Path, size: int, boot_image: bytes, core_image: bytes, esp: Path, root: Path) -> None:
    """Make ``disk`` (a new sparse file of ``size`` bytes) from GRUB's two images and two filesystems."""
    size = size // MIB * MIB
    partitions = (
        Partition(14, BIOS_BOOT_TYPE, "bios", BIOS_BOOT_START, ESP_START - BIOS_BOOT_START),
        Partition(15, ESP_TYPE, "esp", ESP_START, ESP_SIZE),
        Partition(1, ROOT_TYPE, "root", ROOT_START, root_size(size)),
    )
    with disk.open("xb") as out:
        out.truncate(size)
        write_tables(out, size, partitions)
        _write_bios_boot(out, boot_image, core_image)
        _copy_sparse(esp, out, ESP_START, ESP_SIZE)
        # mtools writes a partition table into a filesystem's first sector, as on a ZIP disk; GRUB believes it.
        _put(out, ESP_START + 446, bytes(64))
        _copy_sparse(root, out, ROOT_START, root_size(size))


def write_tables(out: BinaryIO, size: int, partitions: Sequence[Partition]) -> None:
    """The protective MBR and both GUID partition tables."""
    last = size // SECTOR - 1
    entries = bytearray(_ENTRIES * _ENTRY_SIZE)
    for partition in partitions:
        first = partition.start // SECTOR
        struct.pack_into(
            "<16s16sQQQ72s",
            entries,
            (partition.number - 1) * _ENTRY_SIZE,
            partition.kind.bytes_le,
            uuid.uuid4().bytes_le,
            first,
            first + partition.size // SECTOR - 1,
            0,
            partition.name.encode("utf-16-le"),
        )
    disk_id = uuid.uuid4()
    _put(out, 0, _protective_mbr(last))
    _put(out, SECTOR, _header(disk_id, 1, last, 2, last, bytes(entries)))
    _put(out, 2 * SECTOR, bytes(entries))
    _put(out, (last - _TABLE_SECTORS) * SECTOR, bytes(entries))
    _put(out, last * SECTOR, _header(disk_id, last, 1, last - _TABLE_SECTORS, last, bytes(entries)))


def _protective_mbr(last: int) -> bytes:
    record = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return bytes(446) + record + bytes(48) + b"\x55\xaa"


def _header(disk_id: uuid.UUID, here: int, other: int, table: int, last: int, entries: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            checksum,
            0,
            here,
            other,
            2 + _TABLE_SECTORS,
            last - _TABLE_SECTORS - 1,
            disk_id.bytes_le,
            table,
            _ENTRIES,
            _ENTRY_SIZE,
            zlib.crc32(entries),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def _write_bios_boot(out: BinaryIO, boot_image: bytes, core_image: bytes) -> None:
    """What grub-install does for a BIOS: boot.img into the MBR, core.img into its partition."""
    if len(boot_image) != SECTOR or len(core_image) > ESP_START - BIOS_BOOT_START or len(core_image) <= SECTOR:
        raise KvmctlError(
            f"GRUB's images are not as expected: boot.img has {len(boot_image)} bytes, core.img {len(core_image)}"
        )
    first = BIOS_BOOT_START // SECTOR
    boot = bytearray(boot_image)
    struct.pack_into("<Q", boot, _BOOT_KERNEL_SECTOR, first)
    boot[_BOOT_DRIVE_CHECK : _BOOT_DRIVE_CHECK + 2] = b"\x90\x90"
    core = bytearray(core_image)
    struct.pack_into("<Q", core, _CORE_REST, first + 1)
    # Only the code: the partition table that write_tables() put behind it stays.
    _put(out, 0, bytes(boot[:_MBR_TABLE]))
    _put(out, BIOS_BOOT_START, bytes(core))


def _copy_sparse(source: Path, out: BinaryIO, start: int, room: int) -> None:
    """Copy a filesystem image into its partition; holes stay holes, for the disk is one already."""
    size = source.stat().st_size
    if size > room:
        raise KvmctlError(f"{source.name} has {size} bytes, its partition only {room}")
    with source.open("rb") as reader:
        data = 0
        while data < size:
            try:
                data = os.lseek(reader.fileno(), data, os.SEEK_DATA)
            except OSError:
                # ENXIO: only a hole is left.
                return
            end = os.lseek(reader.fileno(), data, os.SEEK_HOLE)
            reader.seek(data)
            out.seek(start + data)
            while data < end:
                piece = reader.read(min(MIB, end - data))
                out.write(piece)
                data += len(piece)


def _put(out: BinaryIO, offset: int, data: bytes) -> None:
    out.seek(offset)
    out.write(data)
