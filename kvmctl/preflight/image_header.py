"""Judging a disk image by its own bytes before any program is let near it: what it is, whether it is whole,
and that it names no file outside itself.

An image is hostile until checked: QEMU follows a backing file, a data file or an extent wherever its header
points, ``/etc/shadow`` of the hypervisor included. Nothing here opens anything; ``reader`` is all that is read.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

from kvmctl.errors import Refused
from kvmctl.model.names import harmless

Format = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "iso"]
Compression = Literal["gzip", "xz", "bzip2"]

# libvirt and QEMU count sizes in signed 64 bits; no disk of today is near this.
LARGEST_DISK = 2**60

_COMPRESSED: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)
# What may be taken for an image, and what to do about it.
_OTHERS = (
    (0, b"LUKS\xba\xbe", "is an encrypted (LUKS) volume", "decrypt it first: a guest would not find its key"),
    (0, b"QED\0", "is a QED image", "convert it: qemu-img convert -f qed -O qcow2"),
    (0, b"WithoutFreeSpace", "is a Parallels image", "convert it: qemu-img convert -f parallels -O qcow2"),
    (0, b"WithouFreSpacExt", "is a Parallels image", "convert it: qemu-img convert -f parallels -O qcow2"),
    (0, b"COWD", "is an ESX (version 3) VMDK", "convert it: qemu-img convert -f vmdk -O qcow2"),
    (0, b"PK\x03\x04", "is a ZIP archive", "unpack it and import the image inside"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it and import the image inside"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", "decompress it first: unzstd FILE"),
    (257, b"ustar", "is a tar archive (an OVA is one, too)", "unpack it with 'tar xf' and import the disk inside"),
    (0, b"\x7fELF", "is a program", None),
    (0, b"%PDF", "is a PDF document", None),
)


@dataclass(frozen=True)
class Header:
    """What an image is: its format in QEMU's words (``iso`` is raw bytes too), and the size the guest sees."""

    format: Format
    virtual_size_bytes: int


class Reader:
    """Reads at places of a file of known size, and refuses where the file ends before."""

    def __init__(self, source: BinaryIO, size: int, name: str) -> None:
        self.source, self.size, self.name = source, size, harmless(name)

    def at(self, offset: int, length: int, what: str) -> bytes:
        """Exactly ``length`` bytes from ``offset``; Refused, naming ``what``, where the file is too short."""
        if offset < 0 or offset + length > self.size:
            raise self.truncated(what)
        data = self.up_to(offset, length)
        if len(data) < length:
            raise self.truncated(what)
        return data

    def up_to(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; none beyond the end."""
        if offset >= self.size:
            return b""
        self.source.seek(offset)
        return self.source.read(length)

    def refused(self, reason: str, hint: str | None = None) -> Refused:
        """The error that says why this image is not taken."""
        return Refused(f"{self.name} {reason}", hint)

    def truncated(self, what: str) -> Refused:
        """The error for a file that ends too early."""
        return self.refused(
            f"is truncated: it has {self.size} bytes and ends before {what}", "copy or download it again"
        )

    def outside(self, what: str, where: bytes | str) -> Refused:
        """The error for an image that names another file."""
        text = where.decode("utf-8", "replace") if isinstance(where, bytes) else where
        return self.refused(
            f"names {what} outside itself ({harmless(text.strip(chr(0))[:120])!r})",
            "an image must hold all its data: 'qemu-img convert' makes such a one, where you trust both files",
        )


def compression(head: bytes) -> Compression | None:
    """How ``head``, the first bytes of a file, is compressed, of the ways that kvmctl can undo."""
    return next((kind for magic, kind in _COMPRESSED if head.startswith(magic)), None)


def examine(source: BinaryIO, size: int, name: str) -> Header:
    """What the image in ``source`` (seekable, ``size`` bytes) is; ``name`` is for the messages.

    Raises Refused where it is no image, is not whole, is encrypted, or names a file outside itself.
    """
    from kvmctl.preflight import image_foreign, image_qcow2

    reader = Reader(source, size, name)
    if size == 0:
        raise reader.refused("is empty, not an image")
    head = reader.up_to(0, 4096)
    if head.startswith(b"QFI\xfb"):
        return Header("qcow2", image_qcow2.check(reader))
    if head.startswith((b"KDMV", b"# Disk Descriptor")):
        return Header("vmdk", image_foreign.check_vmdk(reader))
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return Header("vdi", image_foreign.check_vdi(reader))
    if head.startswith(b"vhdxfile"):
        return Header("vhdx", image_foreign.check_vhdx(reader))
    if head.startswith(b"conectix") or (size > 512 and reader.up_to(size - 512, 8) == b"conectix"):
        return Header("vpc", image_foreign.check_vhd(reader))
    if how := compression(head):
        raise reader.refused(f"is compressed with {how}", "decompress it first")
    for offset, magic, reason, hint in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            raise reader.refused(reason, hint)
    if _is_text(head):
        page = "an HTML page" if b"<html" in head.lower() or b"<!doctype" in head.lower() else "a text file"
        raise reader.refused(f"is {page}, not an image", "was it downloaded from the right address?")
    if reader.up_to(0x8001, 5) == b"CD001" or reader.up_to(0x8001, 5) in (b"BEA01", b"NSR02"):
        return Header("iso", _check_iso(reader))
    return Header("raw", _check_raw(reader, head))


def _is_text(head: bytes) -> bool:
    """Whether a file begins like text: in UTF-8, without the control characters that binaries are full of."""
    try:
        start = head[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        # The cut may have gone through a character.
        if error.start < min(len(head), 512) - 4:
            return False
        start = head[: error.start].decode("utf-8")
    return bool(start) and all(char >= " " or char in "\t\r\n\f\x1b\ufeff" for char in start)


def _check_iso(reader: Reader) -> int:
    """ECMA-119 8.4.8: the volume space size, in blocks of 2048 bytes, at 80 of the descriptor at 0x8000."""
    if reader.up_to(0x8001, 5) == b"CD001" and reader.up_to(0x8000, 1) == b"\x01":
        (blocks,) = struct.unpack_from("<I", reader.at(0x8000, 2048, "its volume descriptor"), 80)
        if blocks * 2048 > reader.size:
            raise reader.truncated(f"its {blocks * 2048} bytes are over")
    return reader.size


def _check_raw(reader: Reader, head: bytes) -> int:
    """A raw image has no header of its own: it must show a partition table or a filesystem, as far as it says."""
    size = reader.size
    if size < 512:
        raise reader.refused(f"is no disk image: {size} bytes")
    for sector in (512, 4096):
        if reader.up_to(sector, 8) == b"EFI PART":
            return _check_gpt(reader, sector)
    if head[510:512] == b"\x55\xaa":
        return _check_mbr(reader, head)
    if any(reader.up_to(offset, len(magic)) == magic for offset, magic in _FILESYSTEMS):
        return size
    what = "holds only zeros" if not any(head) and not any(reader.up_to(size // 2, 4096)) else "is no disk image"
    raise reader.refused(f"{what}: it has no image header, partition table or filesystem that is known")


# Offset and magic of what may lie on a disk without partitions.
_FILESYSTEMS = (
    (1080, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"XFSB"),
    (65600, b"_BHRfS_M"),  # btrfs
    (512, b"LABELONE"),  # LVM
    (0, b"hsqs"),  # squashfs
    (65536 + 1372, b"\x19\x01\x54\x19"),  # UFS2, little endian
    (1024, b"\xe2\xe1\xf5\xe0"),  # EROFS
    (1024, b"\x10\x20\xf5\xf2"),  # F2FS
)


def _check_gpt(reader: Reader, sector: int) -> int:
    """UEFI 2.10, 5.3.2: a GPT says where its backup is, on the last sector of the disk it was made for."""
    header = reader.at(sector, 92, "its partition table")
    (backup,) = struct.unpack_from("<Q", header, 32)
    (last_usable,) = struct.unpack_from("<Q", header, 48)
    if (last_usable + 1) * sector > reader.size:
        raise reader.truncated(f"its partitions do, at {(last_usable + 1) * sector}")
    if backup > LARGEST_DISK // sector:
        raise reader.refused("has a damaged partition table")
    return reader.size


def _check_mbr(reader: Reader, head: bytes) -> int:
    entries = [head[446 + 16 * number : 462 + 16 * number] for number in range(4)]
    parts = [(entry[4], *struct.unpack_from("<II", entry, 8)) for entry in entries]
    for kind, start, length in parts:
        if kind and entry_is_sane(start, length) and kind != 0xEE and (start + length) * 512 > reader.size:
            raise reader.truncated(f"its partitions do, at {(start + length) * 512}")
    # A boot sector without partitions is a FAT or NTFS filesystem, a boot manager or a diskette.
    return reader.size


def entry_is_sane(start: int, length: int) -> bool:
    """Whether a DOS partition entry can be meant: a FAT boot sector has text in the same place."""
    return 0 < start < 2**31 and 0 < length < 2**31
