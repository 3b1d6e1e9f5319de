"""Images as qemu-img makes them are taken; every way of naming another file, or of being none, is refused."""

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.errors import Refused
from kvmctl.preflight.image_header import Header, compression, examine

QEMU_IMG = shutil.which("qemu-img")
MIB = 1024 * 1024
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")


def run(*arguments: object) -> None:
    assert QEMU_IMG is not None
    subprocess.run([QEMU_IMG, *map(str, arguments)], check=True, capture_output=True)


def judge(data: bytes, name: str = "it") -> Header:
    return examine(io.BytesIO(data), len(data), name)


def refused(data: bytes) -> str:
    with pytest.raises(Refused) as error:
        judge(data)
    assert "\n" not in error.value.message
    return error.value.message


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A raw disk with a partition table and some bytes here and there."""
    path = tmp_path / "content.raw"
    with path.open("wb") as out:
        out.write(bytes(446) + struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 6144) + bytes(48) + b"\x55\xaa")
        out.seek(2 * MIB)
        out.write(b"data" * 50000)
        out.truncate(4 * MIB)
    return path


@pytest.fixture
def qcow2(tmp_path: Path, content: Path) -> bytearray:
    path = tmp_path / "x.qcow2"
    run("convert", "-f", "raw", "-O", "qcow2", content, path)
    return bytearray(path.read_bytes())


# ---------------------------------------------------------------- taken


@needs_qemu_img
@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("qcow2", ""),
        ("qcow2", "compat=0.10"),
        ("qcow2", "cluster_size=512"),
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "extended_l2=on,cluster_size=128k"),
        ("qcow2", "compression_type=zstd"),
        ("qcow2", "lazy_refcounts=on"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", ""),
        ("vdi", "static=on"),
        ("vhdx", ""),
        ("vhdx", "subformat=fixed"),
        ("vpc", "force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
    ],
)
def test_what_qemu_img_makes_is_taken(tmp_path: Path, content: Path, format_: str, options: str) -> None:
    path = tmp_path / "image"
    run("convert", "-f", "raw", "-O", format_, *(["-o", options] if options else []), content, path)
    with path.open("rb") as source:
        found = examine(source, path.stat().st_size, "image")
    assert (found.format, found.virtual_size_bytes) == (format_, 4 * MIB)


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "compression_type=zstd"])
def test_a_compressed_qcow2_is_taken(tmp_path: Path, content: Path, options: str) -> None:
    path = tmp_path / "image"
    run("convert", "-c", "-f", "raw", "-O", "qcow2", *(["-o", options] if options else []), content, path)
    with path.open("rb") as source:
        assert examine(source, path.stat().st_size, "image").format == "qcow2"


def test_a_disk_with_a_partition_table_is_raw(content: Path) -> None:
    assert judge(content.read_bytes()) == Header("raw", 4 * MIB)


def test_a_bare_filesystem_is_raw() -> None:
    data = bytearray(MIB)
    data[1080:1082] = b"\x53\xef"
    assert judge(bytes(data)) == Header("raw", MIB)


def test_an_iso() -> None:
    data = bytearray(0x8000 + 4096)
    data[0x8000:0x8006] = b"\x01CD001"
    struct.pack_into("<I", data, 0x8000 + 80, len(data) // 2048)
    assert judge(bytes(data)) == Header("iso", len(data))
    assert "truncated" in refused(bytes(data[:-2048]))


# ---------------------------------------------------------------- naming other files


@needs_qemu_img
@pytest.mark.parametrize("backing", ["base.qcow2", "/etc/shadow", 'json:{"driver":"file","filename":"/etc/shadow"}'])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_backing_file_is_refused(tmp_path: Path, backing: str, compat: str) -> None:
    path = tmp_path / "x.qcow2"
    run("create", "-u", "-f", "qcow2", "-o", f"compat={compat}", "-b", backing, "-F", "raw", path, "1M")
    message = refused(path.read_bytes())
    assert "backing file" in message
    assert backing[:12] in message


@needs_qemu_img
def test_a_data_file_is_refused_with_and_without_its_feature_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    run("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'elsewhere.raw'},data_file_raw=on", path, "1M")
    data = bytearray(path.read_bytes())
    assert "a data file outside itself" in refused(bytes(data))
    assert "elsewhere.raw" in refused(bytes(data))
    (features,) = struct.unpack_from(">Q", data, 72)
    struct.pack_into(">Q", data, 72, features & ~4)
    assert "a data file outside itself" in refused(bytes(data))


def test_hidden_text_in_a_backing_name_is_made_visible(qcow2: bytearray) -> None:
    name = "\x9b31m\u202eevil".encode()
    struct.pack_into(">QI", qcow2, 8, 512, len(name))
    qcow2[512 : 512 + len(name)] = name
    message = refused(bytes(qcow2))
    assert "\x9b" not in message
    assert "\u202e" not in message


@needs_qemu_img
@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_vmdk_descriptors_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.vmdk"
    run("create", "-f", "vmdk", "-o", f"subformat={kind}", path, "1M")
    assert "other files" in refused(path.read_bytes())


@needs_qemu_img
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'createType="monolithicSparse"', b'createType="monolithicFlat"  ', "other files"),
        (b"parentCID=ffffffff", b"parentCID=12345678", "parent disk"),
        (b"# The Disk Data Base", b'parentFileNameHint="/etc/shadow"\n#', "/etc/shadow"),
        (b"RW 8192 SPARSE", b"RW 8192 FLAT  ", "extents"),
    ],
)
def test_vmdk_with_a_descriptor_that_leads_elsewhere(
    tmp_path: Path, content: Path, old: bytes, new: bytes, reason: str
) -> None:
    path = tmp_path / "x.vmdk"
    run("convert", "-f", "raw", "-O", "vmdk", content, path)
    data = path.read_bytes()
    assert old in data
    assert reason in refused(data.replace(old, new, 1))


@needs_qemu_img
def test_vmdk_whose_header_stands_for_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "x.vmdk"
    run("create", "-f", "vmdk", path, "4M")
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 12, 0)
    assert "stands for other files" in refused(bytes(data))


def change(offset: int, text: bytes) -> Callable[[bytearray], None]:
    def apply(data: bytearray) -> None:
        data[offset : offset + len(text)] = text

    return apply


@needs_qemu_img
def test_differencing_disks_are_refused(tmp_path: Path) -> None:
    vdi, vhd, vhdx = tmp_path / "x.vdi", tmp_path / "x.vhd", tmp_path / "x.vhdx"
    for format_, path in (("vdi", vdi), ("vpc", vhd), ("vhdx", vhdx)):
        run("create", "-f", format_, path, "4M")
    data = bytearray(vdi.read_bytes())
    data[0x4C] = 4
    assert "parent disk" in refused(bytes(data))
    data = bytearray(vhd.read_bytes())
    data[0x3F] = 4
    assert "parent disk" in refused(bytes(data))
    data = bytearray(vhdx.read_bytes())
    parameters = data.index(struct.pack("<IIHH", 0xCAA16737, 0, 0, 0)[:4])
    region = data.index(b"metadata")
    (offset,) = struct.unpack_from("<I", data, parameters + 16)
    data[region + offset + 4] |= 2
    assert "parent disk" in refused(bytes(data))


# ---------------------------------------------------------------- not whole


@needs_qemu_img
def test_every_truncation_of_a_qcow2_is_noticed(qcow2: bytearray) -> None:
    data = bytes(qcow2)
    for length in (4, 50, 71, 80, 103, 512, 65536, 65537, 131072, 200000, 262144, 330000, len(data) - 65536):
        assert "truncated" in refused(data[:length]), length


@needs_qemu_img
def test_a_truncated_compressed_qcow2_is_noticed(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "x.qcow2"
    raw.write_bytes(bytes(446) + bytes(64) + b"\x55\xaa" + bytes(range(256)) * 4096)
    run("convert", "-c", "-f", "raw", "-O", "qcow2", raw, path)
    # The first data cluster is written ahead of the L2 table, which is what the shortened file lacks.
    data = path.read_bytes()
    assert "truncated" in refused(data[: len(data) - 65536])


@needs_qemu_img
@pytest.mark.parametrize("format_", ["vmdk", "vdi", "vhdx", "vpc"])
def test_truncated_images_of_other_kinds(tmp_path: Path, content: Path, format_: str) -> None:
    path = tmp_path / "image"
    run("convert", "-f", "raw", "-O", format_, content, path)
    data = path.read_bytes()
    assert "truncated" in refused(data[:400])


@needs_qemu_img
def test_a_vdi_without_its_last_block(tmp_path: Path, content: Path) -> None:
    path = tmp_path / "image"
    run("convert", "-f", "raw", "-O", "vdi", content, path)
    assert "truncated" in refused(path.read_bytes()[:-MIB])


def test_a_raw_disk_that_ends_within_its_partition(content: Path) -> None:
    assert "truncated" in refused(content.read_bytes()[: 3 * MIB])


def test_a_gpt_disk_that_ends_within_its_partitions() -> None:
    data = bytearray(MIB)
    data[510:512] = b"\x55\xaa"
    data[512:520] = b"EFI PART"
    struct.pack_into("<QQQQ", data, 512 + 24, 1, 2047, 34, 2014)
    assert judge(bytes(data)) == Header("raw", MIB)
    assert "truncated" in refused(bytes(data[: MIB // 2]))


# ---------------------------------------------------------------- damaged


@needs_qemu_img
@pytest.mark.parametrize(
    ("what", "apply"),
    [
        ("version", change(4, struct.pack(">I", 99))),
        ("cluster bits 0", change(20, struct.pack(">I", 0))),
        ("cluster bits huge", change(20, struct.pack(">I", 0xFFFFFFFF))),
        ("size 0", change(24, struct.pack(">Q", 0))),
        ("size huge", change(24, struct.pack(">Q", 2**63))),
        ("size beyond its tables", change(24, struct.pack(">Q", 2**50))),
        ("encrypted", change(32, struct.pack(">I", 1))),
        ("L1 huge", change(36, struct.pack(">I", 0xFFFFFFFF))),
        ("L1 beyond the file", change(40, struct.pack(">Q", 2**62))),
        ("L1 askew", change(40, struct.pack(">Q", 3))),
        ("refcounts at 0", change(48, struct.pack(">Q", 0))),
        ("refcounts huge", change(56, struct.pack(">I", 0xFFFFFFFF))),
        ("snapshots", change(60, struct.pack(">I", 0xFFFFFFFF))),
        ("unknown feature", change(72, struct.pack(">Q", 1 << 40))),
        ("corrupt", change(72, struct.pack(">Q", 2))),
        ("header length 0", change(100, struct.pack(">I", 0))),
        ("header length huge", change(100, struct.pack(">I", 0xFFFFFFF8))),
    ],
)
def test_damaged_qcow2_headers(qcow2: bytearray, what: str, apply: Callable[[bytearray], None]) -> None:
    apply(qcow2)
    assert refused(bytes(qcow2)), what


@needs_qemu_img
def test_no_byte_of_the_header_makes_it_fail_otherwise(qcow2: bytearray) -> None:
    for at in range(112):
        for value in (0x00, 0x7F, 0xFF):
            data = bytearray(qcow2)
            data[at] = value
            try:
                judge(bytes(data))
            except Refused:
                continue


# ---------------------------------------------------------------- not an image


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"#!/bin/sh\necho no image\n", "text file"),
        (b"\0" * 100000, "only zeros"),
        (bytes(range(256)) * 100, "no disk image"),
        (b"\xff\xfe", "no disk image"),
        (b"\x7fELF" + bytes(1000), "program"),
        (b"%PDF-1.7\x00\xff", "PDF"),
        (b"PK\x03\x04" + bytes(1000), "ZIP"),
        (b"LUKS\xba\xbe\x00\x02" + bytes(5000), "encrypted"),
        (b"QED\0" + bytes(5000), "QED"),
        (bytes(257) + b"ustar" + bytes(500), "tar archive"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
        (b"QFI\xfb\0\0\0\1" + bytes(100), "version 1"),
        (b"# Disk DescriptorFile\nversion=1\n", "other files"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str) -> None:
    assert reason in refused(data)


def test_compression_is_told_by_its_magic() -> None:
    assert compression(b"\xfd7zXZ\x00") == "xz"
    assert compression(b"\x1f\x8b\x08\x00") == "gzip"
    assert compression(b"BZh9") == "bzip2"
    assert compression(b"QFI\xfb") is None
