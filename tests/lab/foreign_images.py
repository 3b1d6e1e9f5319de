"""A Debian of another architecture, unpacked from its packages: nothing of it runs until a guest boots it."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvmctl.operations import apt_sources
from tests.lab import images
from tests.lab.process import run

_SUITE = "bookworm"
_KERNELS = {"i386": "linux-image-686", "arm64": "linux-image-arm64"}
_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
_INITRAMFS = """#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /new
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod /modules/$module.ko; done
until $bb mount -t ext4 -o ro /dev/vda /new; do $bb sleep 1; done
$bb mount -o move /dev /new/dev
exec $bb switch_root /new /bin/bash /inside
"""
_INSIDE = """#!/bin/bash
exec </dev/console >/dev/console 2>&1
while :; do
    echo "inside Debian $(cat /etc/debian_version) $(dpkg --print-architecture) on $(uname -m)"
    sleep 1
done
"""


@dataclass(frozen=True)
class Debian:
    """Its root file system (raw, ext4), its kernel, and an initramfs that finds the one for the other."""

    disk: Path
    kernel: Path
    initrd: Path


def debian(arch: str) -> Debian:
    """Build it where it is not there yet: its essential packages and its kernel, a minute or two."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            root, small = Path(place) / "root", Path(place) / "small"
            _unpack(arch, root)
            kernel = next((root / "boot").glob("vmlinuz-*"))
            shutil.copy(kernel, folder / "vmlinuz")
            for name in ("bin", "dev", "modules"):
                (small / name).mkdir(parents=True)
            shutil.copy(next(p for p in (root / "bin/busybox", root / "usr/bin/busybox") if p.exists()), small / "bin")
            run(["mknod", "-m", "600", str(small / "dev/console"), "c", "5", "1"])
            images.add_modules(small / "modules", root / "lib/modules", _MODULES)
            (small / "init").write_text(_INITRAMFS)
            (small / "init").chmod(0o755)
            images.pack(small, folder / "initrd")
            (root / "inside").write_text(_INSIDE)
            run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(folder / "disk.raw"), "1200M"], timeout=300)

    made = images.kept(f"debian-{arch}", [Path(__file__).read_bytes()], build)
    return Debian(made / "disk.raw", made / "vmlinuz", made / "initrd")


def _unpack(arch: str, root: Path) -> None:
    mirrors = apt_sources.for_suite(_SUITE, apt_sources.configured())
    run(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            # Unpacked alone, no program of the other architecture has to run here.
            *("mmdebstrap", "--mode=root", "--variant=extract", f"--architectures={arch}"),
            # Not even what is essential comes by itself then.
            f"--include={_KERNELS[arch]},busybox-static,base-files,bash,coreutils,dpkg",
            *([f"--keyring={mirrors.keyring}"] if mirrors.keyring else []),
            *(_SUITE, str(root), "-"),
        ],
        # The release alone: what it is patched with since is no matter here, and not every mirror has it for them.
        input="\n".join(line for line in mirrors.lines if "security" not in line) + "\n",
        timeout=900,
    )
