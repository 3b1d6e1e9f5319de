"""A Debian with libvirt and QEMU inside, for the tests of passing PCI devices on, and a guest for it to run."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvmctl.operations import apt_sources
from tests.lab import images
from tests.lab.process import run

_SUITE = "bookworm"
_PACKAGES = [
    "linux-image-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "qemu-guest-agent",
    "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
    "python3-libvirt",
    "python3-click",
    "python3-lxml",
    "python3-rich",
    "python3-yaml",
    "python3-bcrypt",
    "python3-pycdlib",
    "pci.ids",
    "busybox-static",
]
# What would only cost time while it starts. The serial console is where its kernel writes.
_MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "libvirt-guests.service",
]
# Only what finds the root disk: the emulated CPU takes seconds to unpack and probe the rest.
_INITRAMFS_MODULES = "virtio_pci virtio_blk ext4"
# Drivers of the devices that are passed on.
_INNER_MODULES = ["e1000e", "e1000", "nvme", "xhci-pci", "usb-storage", "sd_mod"]
_INNER_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t sysfs s /sys
/bin/busybox mount -t devtmpfs d /dev
exec >/dev/ttyS0 2>&1 </dev/null
for m in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$m.ko; done
while :; do
    nics=; nvmes=0; sticks=0; passed=0
    for n in /sys/class/net/e*/address; do [ -f $n ] && read mac <$n && nics="$nics $mac"; done
    for b in /sys/block/nvme*; do [ -d $b ] && nvmes=$((nvmes+1)); done
    for b in /sys/block/sd*; do [ -d $b ] && sticks=$((sticks+1)); done
    for c in /sys/bus/pci/devices/*/class; do
        read class <$c
        case $class in 0x0200*|0x0108*) passed=$((passed+1)) ;; esac
    done
    echo "INNER pci=$passed nvme=$nvmes usb=$sticks nics=$nics END"
    /bin/busybox sleep 1
done
"""


@dataclass(frozen=True)
class Outer:
    """The disk image (raw, ext4, read-only to all who use it) with its kernel and initramfs."""

    disk: Path
    kernel: Path
    initrd: Path


def outer() -> Outer:
    """Build it where it is not there yet: about two minutes, and 1 GiB in the cache."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            root = Path(work) / "root"
            _bootstrap(root)
            _configure(root)
            kernel = next((root / "boot").glob("vmlinuz-*"))
            initrd = next((root / "boot").glob("initrd.img-*"))
            _inner_guest(root, kernel)
            shutil.copy(kernel, folder / "vmlinuz")
            shutil.copy(initrd, folder / "initrd")
            disk = folder / "disk.raw"
            run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "2500M"], timeout=300)

    made = images.kept("passthrough", [Path(__file__).read_bytes()], build)
    return Outer(made / "disk.raw", made / "vmlinuz", made / "initrd")


def _bootstrap(root: Path) -> None:
    """Unpack a Debian 12, from the mirror that the machine's own apt uses."""
    mirrors = apt_sources.for_suite(_SUITE, apt_sources.configured())
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"',
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--customize-hook=echo MODULES=list >$1/etc/initramfs-tools/conf.d/small",
            f"--customize-hook=printf '%s\\n' {_INITRAMFS_MODULES} >>$1/etc/initramfs-tools/modules",
            "--customize-hook=chroot $1 update-initramfs -u",
            *([f"--keyring={mirrors.keyring}"] if mirrors.keyring else []),
            _SUITE,
            str(root),
            "-",
        ],
        input="\n".join(mirrors.lines) + "\n",
        timeout=900,
    )


def _configure(root: Path) -> None:
    for unit in _MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root / "etc/hostname").write_text("outer\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 noatime 0 1\nrepo /repo 9p trans=virtio,version=9p2000.L,ro 0 0\n")
    (root / "repo").mkdir()
    kvmctl = root / "usr/local/bin/kvmctl"
    kvmctl.write_text('#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/repo exec python3 -m kvmctl "$@"\n')
    kvmctl.chmod(0o755)


def _inner_guest(root: Path, kernel: Path) -> None:
    """A kernel and an initramfs in /srv that prints what it has of devices, again and again."""
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work)
        for folder in ("bin", "proc", "sys", "dev", "modules"):
            (tree / folder).mkdir()
        shutil.copy(root / "bin/busybox", tree / "bin/busybox")
        images.add_modules(tree / "modules", root / "lib/modules", _INNER_MODULES)
        (tree / "init").write_text(_INNER_INIT)
        (tree / "init").chmod(0o755)
        images.pack(tree, root / "srv/inner-initrd")
    shutil.copy(kernel, root / "srv/inner-vmlinuz")
