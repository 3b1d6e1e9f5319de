"""The head of a file that libvirt saved a running guest to: header, XML, cookie, and then QEMU's own stream.

Layout: struct _virQEMUSaveHeader in libvirt's src/qemu/qemu_saveimage.h (92 bytes, the host's byte order, the magic
says by its reading which); ``data_len`` bytes follow it for the XML (with its NUL), the cookie (with its NUL) and
padding up to a multiple of 64 KiB. Pure: bytes in, bytes out.
"""

import struct
from dataclasses import dataclass, replace

from kvmctl.errors import Refused

MAGIC = b"LibvirtQemudSave"
PARTIAL = b"LibvirtQemudPart"
HEADER_SIZE = 16 + 5 * 4 + 14 * 4
# QEMU_SAVE_VERSION. Another one may have another layout.
VERSION = 2
# The XML is at most 4 MiB (VIR_NET_MESSAGE_STRING_MAX), the cookie a few KiB, the padding 64 KiB.
LARGEST_HEAD = 8 * 1024 * 1024


@dataclass(frozen=True)
class SaveImage:
    """A head, taken apart. ``data_length`` is the room for XML and cookie, ``was_running`` whether it then ran."""

    order: str
    data_length: int
    was_running: bool
    compressed: int
    xml: str
    cookie: str | None

    @property
    def head_length(self) -> int:
        """How many bytes of the file are the head; QEMU's stream begins behind them."""
        return HEADER_SIZE + self.data_length


def head_length(data: bytes) -> int:
    """How long the head is of which ``data`` is the header at least.

    Raises Refused where this is no finished save image of the one version that is known.
    """
    if len(data) < HEADER_SIZE:
        raise Refused("the memory file is shorter than its header")
    magic = data[:16]
    if magic == PARTIAL:
        raise Refused("the memory file was not finished", "the guest may have been stopped while it was written")
    if magic != MAGIC:
        raise Refused("the memory file does not begin as libvirt's do")
    order = _order(data)
    (length,) = struct.unpack_from(f"{order}I", data, 20)
    if not 0 < length <= LARGEST_HEAD:
        raise Refused(f"the memory file's header says that {length} bytes of XML follow, which cannot be")
    return HEADER_SIZE + int(length)


def parse(data: bytes) -> SaveImage:
    """The head at the start of ``data``; Refused where it is none, of another version, or ends early."""
    end = head_length(data)
    if len(data) < end:
        raise Refused("the memory file ends before its XML does")
    order = _order(data)
    _version, length, running, compressed, cookie_at = struct.unpack_from(f"{order}5I", data, 16)
    body = data[HEADER_SIZE:end]
    text, nul, _rest = body.partition(b"\0")
    if not nul:
        raise Refused("the memory file's XML has no end")
    cookie = None
    if cookie_at:
        raw, nul, _rest = body[cookie_at:].partition(b"\0")
        if cookie_at < len(text) + 1 or not nul:
            raise Refused("the memory file's cookie is not where its header says")
        cookie = raw.decode("utf-8", "strict")
    try:
        return SaveImage(order, length, bool(running), compressed, text.decode("utf-8"), cookie)
    except UnicodeDecodeError:
        raise Refused("the memory file's XML is not text") from None


def _order(data: bytes) -> str:
    """``<`` or ``>``: whichever makes the version the one that is known (libvirt's own test, bswap_header())."""
    for order in ("<", ">"):
        if struct.unpack_from(f"{order}I", data, 16)[0] == VERSION:
            return order
    (version,) = struct.unpack_from("<I", data, 16)
    raise Refused(
        f"the memory file has version {version} of libvirt's format, and only version {VERSION} is known here",
        "stop the guest and clone it without --live",
    )


def with_xml(image: SaveImage, text: str) -> SaveImage:
    """The same with another XML, Refused where that has no room."""
    changed = replace(image, xml=text)
    if len(_body(changed)) > image.data_length:
        raise Refused(
            f"the copy's definition has {len(text.encode())} bytes and does not fit into the memory file",
            "shorten its description, or stop the guest and clone it without --live",
        )
    return changed


def head(image: SaveImage) -> bytes:
    """The whole head, exactly as long as it was: it can be written over the old one."""
    body = _body(image)
    cookie_at = len(image.xml.encode()) + 1 if image.cookie is not None else 0
    header = struct.pack(
        f"{image.order}16s5I56x",
        MAGIC,
        VERSION,
        image.data_length,
        int(image.was_running),
        image.compressed,
        cookie_at,
    )
    return header + body + b"\0" * (image.data_length - len(body))


def _body(image: SaveImage) -> bytes:
    body = image.xml.encode() + b"\0"
    return body + image.cookie.encode() + b"\0" if image.cookie is not None else body
