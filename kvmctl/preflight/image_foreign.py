"""The formats of other hypervisors: each must be one file that holds everything, and be all there."""

import re
import struct
import uuid

from kvmctl.preflight.image_header import LARGEST_DISK, Reader

_CONVERT = "export it as a single file with all its data (in VMware: monolithicSparse or streamOptimized)"


def check_vmdk(reader: Reader) -> int:
    """A sparse VMDK whose descriptor is embedded and names only the file itself (VMware's Virtual Disk Format 1.1)."""
    if not reader.up_to(0, 4).startswith(b"KDMV"):
        raise reader.refused("is a VMDK descriptor: its data is in other files", _CONVERT)
    head = reader.at(0, 512, "its header does")
    version, _flags, capacity, grain, where, length = struct.unpack_from("<IIQQQQ", head, 4)
    (directory,) = struct.unpack_from("<Q", head, 56)
    if version not in (1, 2, 3) or not 0 < capacity <= LARGEST_DISK // 512 or not 0 < grain <= 4096:
        # QEMU takes a capacity of 0 to mean that the descriptor names the files with the data.
        raise reader.refused("has a VMDK header that is damaged or stands for other files", _CONVERT)
    if directory == 2**64 - 1:
        # The header that counts is repeated at the end: 512 bytes of marker, header and end marker each.
        footer = reader.at(reader.size - 1024, 512, "its footer does")
        if footer[:4] != b"KDMV":
            raise reader.truncated("its footer does")
        if footer[12:44] != head[12:44]:
            raise reader.refused("has a VMDK footer that contradicts its header")
    elif directory * 512 >= reader.size:
        raise reader.truncated("its grain directory does")
    if where:
        # QEMU reads 20 sectors of it, whatever length the header gives.
        _check_descriptor(reader, reader.up_to(where * 512, max(20, min(length, 128)) * 512))
    return int(capacity) * 512


def _check_descriptor(reader: Reader, data: bytes) -> None:
    parent = re.search(rb"parentFileNameHint\s*=\s*\"?([^\"\r\n]*)", data, re.IGNORECASE)
    if parent is not None:
        raise reader.outside("a parent disk", parent[1])
    cid = re.search(rb"parentCID\s*=\s*([0-9a-fA-F]+)", data)
    if cid is not None and cid[1].lower() != b"ffffffff":
        raise reader.outside("a parent disk", cid[1])
    kind = re.search(rb"createType\s*=\s*\"?([A-Za-z0-9]+)", data)
    if kind is not None and kind[1] not in (b"monolithicSparse", b"streamOptimized"):
        raise reader.refused(f"is a VMDK of the type {kind[1].decode()[:40]}: its data is in other files", _CONVERT)
    extents = re.findall(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)[^\r\n]*", data, re.MULTILINE)
    if len(extents) > 1 or (extents and extents[0] != b"SPARSE"):
        raise reader.outside("extents", b", ".join(extents))


def check_vdi(reader: Reader) -> int:
    """VirtualBox's VDI: type dynamic or static, no parent (block/vdi.c of QEMU names the fields)."""
    head = reader.at(0, 512, "its header does")
    kind = struct.unpack_from("<I", head, 0x4C)[0]
    map_offset, data_offset = struct.unpack_from("<II", head, 0x154)
    size, block = struct.unpack_from("<QI", head, 0x170)
    blocks, allocated = struct.unpack_from("<II", head, 0x180)
    if kind not in (1, 2):
        raise reader.outside("a parent disk", f"VDI type {kind}")
    if any(head[0x1A8:0x1C8]):
        # The UUIDs of the image it links to and of that one's parent.
        raise reader.outside("a parent disk", head[0x1A8:0x1B8].hex())
    if not 0 < size <= LARGEST_DISK or not block or block % 512 or size > blocks * block:
        raise reader.refused("has a damaged VDI header", "copy or download it again")
    if map_offset + blocks * 4 > reader.size or data_offset + allocated * block > reader.size:
        raise reader.truncated("its data does")
    return int(size)


# MS-VHDX 2.2.3 and 2.6: where the metadata are, and the two items that matter.
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")


def check_vhdx(reader: Reader) -> int:
    """Hyper-V's VHDX without a parent, with its size from the metadata."""
    region = _vhdx_region(reader)
    table = reader.at(region, 64 * 1024, "its metadata does")
    if table[:8] != b"metadata":
        raise reader.refused("has a damaged VHDX header", "copy or download it again")
    (count,) = struct.unpack_from("<H", table, 10)
    size = 0
    for number in range(min(count, 2047)):
        at = 32 + number * 32
        item = uuid.UUID(bytes_le=table[at : at + 16])
        offset, _length = struct.unpack_from("<II", table, at + 16)
        if item == _PARENT_LOCATOR:
            raise reader.outside("a parent disk", "VHDX parent locator")
        if item == _FILE_PARAMETERS:
            (flags,) = struct.unpack_from("<I", reader.at(region + offset, 8, "its metadata does"), 4)
            if flags & 2:
                raise reader.outside("a parent disk", "differencing VHDX")
        if item == _DISK_SIZE:
            (size,) = struct.unpack("<Q", reader.at(region + offset, 8, "its metadata does"))
    if not 0 < size <= LARGEST_DISK:
        raise reader.refused("has a damaged VHDX header", "copy or download it again")
    return int(size)


def _vhdx_region(reader: Reader) -> int:
    """Where the metadata region begins. The region table is at 192 KiB, its copy at 256 KiB."""
    for base in (192 * 1024, 256 * 1024):
        table = reader.at(base, 64 * 1024, "its region table does")
        if table[:4] != b"regi":
            continue
        (count,) = struct.unpack_from("<I", table, 8)
        for number in range(min(count, 2047)):
            at = 16 + number * 32
            if uuid.UUID(bytes_le=table[at : at + 16]) == _METADATA_REGION:
                return int(struct.unpack_from("<Q", table, at + 16)[0])
    raise reader.refused("has a damaged VHDX header", "copy or download it again")


def check_vhd(reader: Reader) -> int:
    """A VHD (Virtual PC): fixed or dynamic; its footer is the last sector, a dynamic one has a copy in front."""
    footer = reader.at(reader.size - 512, 512, "its footer does")
    if footer[:8] != b"conectix":
        raise reader.truncated("its footer does")
    (size,) = struct.unpack_from(">Q", footer, 0x30)
    (kind,) = struct.unpack_from(">I", footer, 0x3C)
    front = reader.up_to(0, 512)
    if kind == 4 or (front[:8] == b"conectix" and struct.unpack_from(">I", front, 0x3C)[0] == 4):
        raise reader.outside("a parent disk", "differencing VHD")
    if kind not in (2, 3) or not 0 < size <= LARGEST_DISK:
        raise reader.refused("has a damaged VHD footer", "copy or download it again")
    if kind == 2 and size + 512 > reader.size:
        raise reader.truncated("its data does")
    if kind == 3 and front[:8] != b"conectix":
        raise reader.refused("has a damaged VHD header", "copy or download it again")
    return int(size)
