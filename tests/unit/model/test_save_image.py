"""The head of a save image: read, changed in place, and refused where it is not known."""

import struct
from dataclasses import replace

import pytest

from kvmctl.errors import Refused
from kvmctl.model import save_image


def made(order: str = "<", version: int = 2, cookie: bytes | None = b"<cookie/>") -> bytes:
    text = b"<domain><name>a</name></domain>\0"
    body = text + (cookie + b"\0" if cookie is not None else b"")
    body += b"\0" * (65536 - len(body))
    at = len(text) if cookie is not None else 0
    header = b"LibvirtQemudSave" + struct.pack(f"{order}5I", version, len(body), 1, 0, at) + b"\0" * 56
    return header + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("cookie", [b"<cookie/>", None])
def test_reading_and_writing_gives_the_same_bytes(order: str, cookie: bytes | None) -> None:
    data = made(order, cookie=cookie)
    image = save_image.parse(data + b"QEVM and more")
    assert (image.xml, image.was_running) == ("<domain><name>a</name></domain>", True)
    assert image.cookie == (cookie.decode() if cookie else None)
    assert image.head_length == len(data)
    assert save_image.head(image) == data


def test_a_longer_xml_moves_the_cookie_and_not_the_stream() -> None:
    image = save_image.parse(made())
    changed = save_image.with_xml(image, "<domain>" + "x" * 5000 + "</domain>")
    data = save_image.head(changed)
    assert len(data) == image.head_length
    again = save_image.parse(data)
    assert again == replace(changed)
    assert again.cookie == "<cookie/>"


def test_what_has_no_room_is_refused() -> None:
    with pytest.raises(Refused, match="does not fit"):
        save_image.with_xml(save_image.parse(made()), "x" * 65536)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "shorter"),
        (b"\x7fELF" + b"\0" * 200, "does not begin"),
        (b"LibvirtQemudPart" + b"\0" * 200, "not finished"),
        (made(version=3), "version 3"),
        (made()[:1000], "ends before"),
        (b"LibvirtQemudSave" + struct.pack("<5I", 2, 2**31, 1, 0, 0) + b"\0" * 56, "cannot be"),
        (b"LibvirtQemudSave" + struct.pack("<5I", 2, 0, 1, 0, 0) + b"\0" * 56, "cannot be"),
        (b"LibvirtQemudSave" + struct.pack("<5I", 2, 8, 1, 0, 0) + b"\0" * 56 + b"x" * 8, "no end"),
        (b"LibvirtQemudSave" + struct.pack("<5I", 2, 8, 1, 0, 2) + b"\0" * 56 + b"xxxx\0yy\0", "cookie"),
        (b"LibvirtQemudSave" + struct.pack("<5I", 2, 8, 1, 0, 0) + b"\0" * 56 + b"\xff\xfe\0xxxxx", "not text"),
    ],
)
def test_what_is_no_known_save_image_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        save_image.parse(data)
