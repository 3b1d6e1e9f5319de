"""The qcow2 header and the table of internal snapshots, as docs/interop/qcow2.txt of QEMU describes them.

Pure: bytes in, facts out. Whoever has the bytes (from a volume's stream) says what follows from them.
"""

import struct
from typing import NamedTuple

from kvmctl.errors import KvmctlError

MAGIC = b"QFI\xfb"
HEADER_SIZE = 72
# QEMU itself refuses more (QCOW_MAX_SNAPSHOTS, QCOW_MAX_SNAPSHOTS_SIZE in block/qcow2.h).
MOST_SNAPSHOTS = 65536
_BACKING_FORMAT = 0xE2792ACA
LARGEST_TABLE = 1024 * MOST_SNAPSHOTS


class Header(NamedTuple):
    """What of a qcow2 header is needed to find its snapshots. ``size_bytes`` is the virtual size."""

    version: int
    size_bytes: int
    snapshots: int
    snapshots_offset: int


class InternalSnapshot(NamedTuple):
    """One entry of the table; ``vm_state_bytes`` is 0 where no memory is in it."""

    id: str
    name: str
    vm_state_bytes: int


def parse_header(data: bytes) -> Header | None:
    """The header at the start of ``data``, or None where this is no qcow2 image that can be read."""
    if len(data) < HEADER_SIZE or data[:4] != MAGIC:
        return None
    (version,) = struct.unpack_from(">I", data, 4)
    (size,) = struct.unpack_from(">Q", data, 24)
    count, offset = struct.unpack_from(">IQ", data, 60)
    if version not in (2, 3) or count > MOST_SNAPSHOTS:
        return None
    return Header(version, size, count, offset)


def parse_snapshots(data: bytes, count: int) -> list[InternalSnapshot]:
    """The ``count`` entries of a table that ``data`` begins with.

    Raises KvmctlError where ``data`` ends before they do.
    """
    found: list[InternalSnapshot] = []
    at = 0
    for _ in range(count):
        if at + 40 > len(data):
            raise KvmctlError("the image's snapshot table ends early")
        id_size, name_size = struct.unpack_from(">HH", data, at + 12)
        (state32,) = struct.unpack_from(">I", data, at + 32)
        (extra_size,) = struct.unpack_from(">I", data, at + 36)
        strings = at + 40 + extra_size
        end = strings + id_size + name_size
        if end > len(data):
            raise KvmctlError("the image's snapshot table ends early")
        # Extra data of 8 bytes or more begins with the 64-bit size of the state, which replaces the other.
        state = struct.unpack_from(">Q", data, at + 40)[0] if extra_size >= 8 else state32
        found.append(
            InternalSnapshot(
                data[strings : strings + id_size].decode("utf-8", "replace"),
                data[strings + id_size : end].decode("utf-8", "replace"),
                state,
            )
        )
        at = (end + 7) & ~7
    return found


class ClusterTable(NamedTuple):
    """Where the level 1 table is: if every entry of it is 0, nothing was ever written to the image."""

    offset: int
    entries: int


def level_one(data: bytes) -> ClusterTable | None:
    """The level 1 table of the header at the start of ``data``, or None where it is no qcow2 image."""
    if parse_header(data) is None:
        return None
    entries, offset = struct.unpack_from(">IQ", data, 36)
    # QEMU's own limit, QCOW_MAX_L1_SIZE in block/qcow2.h.
    return ClusterTable(offset, entries) if entries * 8 <= 32 * 1024 * 1024 else None


class Backing(NamedTuple):
    """What an image says it stands on: ``name`` as it stands there (empty: nothing), ``format`` where it is told."""

    name: str
    format: str | None


def backing(data: bytes) -> Backing | None:
    """Of the image that begins with ``data``; None where it is no qcow2 image, or the name is beyond ``data``."""
    header = parse_header(data)
    if header is None:
        return None
    offset, size = struct.unpack_from(">QI", data, 8)
    if not offset:
        return Backing("", None)
    if size > 1023 or offset + size > len(data):
        return None
    name = data[offset : offset + size].decode("utf-8", "replace")
    return Backing(name, _backing_format(data, header.version))


def _backing_format(data: bytes, version: int) -> str | None:
    """From the header's extensions: a type and a length each, 32 bit, and the content, padded to 8 bytes."""
    at = struct.unpack_from(">I", data, 100)[0] if version == 3 and len(data) >= 104 else HEADER_SIZE
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return data[at + 8 : at + 8 + length].decode("utf-8", "replace")
        at += 8 + ((length + 7) & ~7)
    return None
