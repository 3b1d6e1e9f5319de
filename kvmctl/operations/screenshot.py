"""A picture of a VM's screen, as PNG or PPM, whichever of the two the hypervisor gives."""

import re
import struct
import zlib
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError
from kvmctl.model.state import ACTIVE
from kvmctl.operations.lifecycle import state_of

# More than a screen of 8192 x 8192 with 24 bits: what is larger is no screen but an attack on memory.
LARGEST = 256 * 1024 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"
# Netpbm's ppm(5): "P6", width, height, the largest value of a colour, each after white space or a comment.
_PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d{1,6})(?:\s|#[^\n]*\n)+(\d{1,6})(?:\s|#[^\n]*\n)+255\s")


def take(hypervisor: Hypervisor, name: str, kind: str, screen: int = 0) -> tuple[bytes, dict[str, Any]]:
    """The picture in ``kind`` (png, ppm), and ``{"name", "uuid", "width", "height", "format", "size_bytes"}``.

    Raises NotFound, Conflict where the VM is off or has no screen, KvmctlError for a picture that is none.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        shown, state = domain.name(), state_of(domain)
        if state not in ACTIVE:
            raise Conflict(f"{shown} is {state}, so its screen is dark", f"'kvmctl start {shown}' first")
        data = _received(hypervisor, domain, shown, screen)
        uuid = domain.UUIDString()
    width, height, picture = converted(data, kind)
    row = {
        "name": shown,
        "uuid": uuid,
        "width": width,
        "height": height,
        "format": kind,
        "size_bytes": len(picture),
    }
    return picture, row


def _received(hypervisor: Hypervisor, domain: libvirt.virDomain, name: str, screen: int) -> bytes:
    stream = hypervisor.conn.newStream(0)
    try:
        domain.screenshot(stream, screen, 0)
    except libvirt.libvirtError as error:
        message = error.get_error_message() or ""
        if "no screens" in message or "Unable to take screenshot" in message or "screendump" in message:
            raise Conflict(
                f"{name} has no screen to take a picture of", f"its console may: 'kvmctl console {name}'"
            ) from error
        raise
    pieces = []
    size = 0
    while piece := stream.recv(64 * 1024):
        size += len(piece)
        if size > LARGEST:
            stream.abort()
            raise KvmctlError(f"the picture of {name} is larger than {LARGEST // 1024**2} MiB; it was not kept")
        pieces.append(piece)
    stream.finish()
    return b"".join(pieces)


def converted(data: bytes, kind: str) -> tuple[int, int, bytes]:
    """Width, height and the picture ``data`` (PNG or PPM) in ``kind``. Raises KvmctlError for anything else."""
    if data.startswith(_PNG):
        if kind != "png" or len(data) < 24:
            raise KvmctlError("this hypervisor takes pictures as PNG only", "give a file name ending in .png")
        width, height = struct.unpack(">II", data[16:24])
        return width, height, data
    match = _PPM.match(data[:4096])
    if match is None:
        raise KvmctlError("the hypervisor sent a picture in a format that is neither PNG nor PPM")
    width, height = int(match[1]), int(match[2])
    pixels = data[match.end() :]
    if width == 0 or height == 0 or len(pixels) != width * height * 3:
        raise KvmctlError(f"the picture is broken: {len(pixels)} bytes for {width} x {height} points")
    return width, height, data if kind == "ppm" else png(width, height, pixels)


def png(width: int, height: int, pixels: bytes) -> bytes:
    """8-bit RGB ``pixels``, row after row, as a PNG (W3C PNG specification, sections 11.2 and 9.2)."""
    row = width * 3
    # Each row begins with its filter: 0, none.
    lines = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
