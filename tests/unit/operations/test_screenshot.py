import struct
import zlib

import pytest

from kvmctl.errors import KvmctlError
from kvmctl.operations import screenshot

PIXELS = bytes(range(18))


def test_a_ppm_becomes_a_png_with_the_same_points() -> None:
    width, height, data = screenshot.converted(b"P6\n# made by QEMU\n3 2\n255\n" + PIXELS, "png")
    assert (width, height) == (3, 2)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks = {}
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0" + PIXELS[:9] + b"\0" + PIXELS[9:]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]


def test_a_ppm_stays_one_where_that_is_wanted() -> None:
    data = b"P6 3 2 255 " + PIXELS
    assert screenshot.converted(data, "ppm") == (3, 2, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"P6\n3 2\n255\n" + PIXELS[:-1],
        b"P6\n0 2\n255\n",
        b"P6\n99999999 99999999\n255\n",
        b"P6\n3 2\n65535\n" + PIXELS * 2,
        b"\x89PNG\r\n\x1a\nshort",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(KvmctlError):
        screenshot.converted(data, "png")
