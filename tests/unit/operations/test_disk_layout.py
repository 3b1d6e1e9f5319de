"""The disk that build makes, read back by sfdisk and by hand."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvmctl.errors import KvmctlError
from kvmctl.model.units import MIB
from kvmctl.operations import disk_layout

SFDISK = shutil.which("sfdisk") or shutil.which("sfdisk", path="/usr/sbin:/sbin")


def make(tmp_path: Path, size: int = 256 * MIB, core: bytes = b"C" * 2000) -> Path:
    esp, root, disk = tmp_path / "esp", tmp_path / "root", tmp_path / "disk"
    esp.write_bytes(b"E" * 5000)
    with root.open("wb") as out:
        out.write(b"R" * 4096)
        out.seek(10 * MIB)
        out.write(b"r" * 4096)
    disk_layout.write_disk(disk, size, b"B" * 512, core, esp, root)
    return disk


def test_partitions_as_sfdisk_reads_them(tmp_path: Path) -> None:
    if SFDISK is None:
        pytest.skip("sfdisk is not installed")
    disk = make(tmp_path)
    said = subprocess.run([SFDISK, "--json", str(disk)], capture_output=True, text=True, check=True)
    assert said.stderr == ""
    table = json.loads(said.stdout)["partitiontable"]
    assert table["label"] == "gpt"
    found = {
        part["node"].removeprefix(str(disk)): (part["start"], part["size"], part["type"])
        for part in table["partitions"]
    }
    assert found == {
        "1": (64 * 2048, 191 * 2048, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
        "14": (2048, 3 * 2048, "21686148-6449-6E6F-744E-656564454649"),
        "15": (4 * 2048, 60 * 2048, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    }
    verified = subprocess.run([SFDISK, "--verify", str(disk)], capture_output=True, text=True, check=True)
    assert "No errors detected" in verified.stdout


def test_the_boot_code_finds_its_next_part(tmp_path: Path) -> None:
    data = make(tmp_path).read_bytes()
    assert data[510:512] == b"\x55\xaa"
    assert struct.unpack_from("<Q", data, 0x5C) == (2048,)
    assert data[0x66:0x68] == b"\x90\x90"
    assert struct.unpack_from("<Q", data, MIB + 0x1F4) == (2049,)
    # The protective MBR's entry is still there: type 0xEE from sector 1.
    assert data[446 + 4] == 0xEE


def test_filesystems_are_where_their_partitions_are_and_holes_stay_holes(tmp_path: Path) -> None:
    disk = make(tmp_path)
    data = disk.read_bytes()
    assert data[4 * MIB : 4 * MIB + 446] == b"E" * 446
    assert data[4 * MIB + 446 : 4 * MIB + 510] == bytes(64)
    assert data[64 * MIB : 64 * MIB + 4096] == b"R" * 4096
    assert data[74 * MIB : 74 * MIB + 4096] == b"r" * 4096
    assert disk.stat().st_blocks * 512 < 2 * MIB


def test_a_core_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvmctlError, match=r"core\.img"):
        make(tmp_path, core=b"C" * (3 * MIB + 1))
