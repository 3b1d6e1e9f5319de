"""The qcow2 header and snapshot table, against what qemu-img writes and against broken ones."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvmctl.errors import KvmctlError
from kvmctl.model import qcow2


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_snapshots_that_qemu_img_made_are_found(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    for name in ("first", "zwei drei", "s3"):
        subprocess.run(["qemu-img", "snapshot", "-c", name, image], check=True)
    data = image.read_bytes()
    header = qcow2.parse_header(data)
    assert header is not None
    assert (header.size_bytes, header.snapshots) == (8 * 1024 * 1024, 3)
    found = qcow2.parse_snapshots(data[header.snapshots_offset :], header.snapshots)
    assert [(s.name, s.vm_state_bytes) for s in found] == [("first", 0), ("zwei drei", 0), ("s3", 0)]


@pytest.mark.parametrize("data", [b"", b"QFI\xfb", b"\0" * 200, b"QFI\xfb" + struct.pack(">I", 9) + b"\0" * 200])
def test_what_is_no_qcow2_has_no_header(data: bytes) -> None:
    assert qcow2.parse_header(data) is None


def test_a_header_with_too_many_snapshots_is_not_believed() -> None:
    data = bytearray(b"QFI\xfb" + struct.pack(">I", 3) + b"\0" * 100)
    struct.pack_into(">I", data, 60, 70000)
    assert qcow2.parse_header(bytes(data)) is None


@pytest.mark.parametrize("length", [0, 10, 41])
def test_a_table_that_ends_early_is_an_error(length: int) -> None:
    entry = struct.pack(">QIHHIIQII", 0, 0, 1, 2, 0, 0, 0, 0, 0) + b"1ab"
    assert qcow2.parse_snapshots(entry + b"\0" * 8, 1)[0].name == "ab"
    with pytest.raises(KvmctlError):
        qcow2.parse_snapshots(entry[:length], 1)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_what_an_image_stands_on_is_found(tmp_path: Path, compat: str) -> None:
    base, image = tmp_path / "bäse.raw", tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", base, "1M"], check=True)
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}"]
    subprocess.run([*made, "-F", "raw", "-b", base, image], check=True)
    assert qcow2.backing(image.read_bytes()[:4096]) == qcow2.Backing(str(base), "raw")
    # A name that is not among the bytes at hand is not guessed.
    assert qcow2.backing(image.read_bytes()[:120]) is None
    subprocess.run([*made, image, "1M"], check=True)
    assert qcow2.backing(image.read_bytes()[:4096]) == qcow2.Backing("", None)
    assert qcow2.backing(base.read_bytes()) is None
