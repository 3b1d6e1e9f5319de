"""Guests of other kinds that Debian packages: GRUB's rescue CD, memtest86+, and Debian's installer by PXE."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab
from tests.lab.process import CommandFailed, run

PXE = """<network><name>pxe</name><bridge name='pxe0'/><ip address='10.79.0.1' netmask='255.255.255.0'>
<tftp root='{root}'/><dhcp><range start='10.79.0.10' end='10.79.0.20'/><bootp file='pxelinux.0'/></dhcp>
</ip></network>"""
LOADER = """DEFAULT install
LABEL install
  KERNEL debian-installer/amd64/linux
  INITRD debian-installer/amd64/initrd.gz
  APPEND console=ttyS0 TERM=vt102 --- quiet
"""


def _package(name: str) -> Path:
    """The files of a Debian package, unpacked and kept, nothing installed."""

    def build(folder: Path) -> None:
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], cwd=str(folder), timeout=600)
        archive = next(folder.glob("*.deb"))
        run(["dpkg-deb", "-x", str(archive), str(folder)])
        archive.unlink()

    return images.kept(name.replace("+", "-"), [name], build)


def _screen(host: Host, name: str, pattern: str, patience: float = 300) -> re.Match[str]:
    """Wait until the guest's text screen, read from its VGA memory, shows ``pattern``."""
    end = time.monotonic() + patience
    while True:
        dump = host.virsh("qemu-monitor-command", name, "--hmp", "xp /4000xb 0xb8000").stdout
        # Each line is "ADDRESS: 0x41 0x07 ...": a character, then its attribute.
        data = [int(byte, 16) for line in dump.splitlines() for byte in re.findall(r" 0x([0-9a-f]{2})\b", line)]
        text = "".join(chr(code) if 32 <= code < 127 else " " for code in data[::2])
        if found := re.search(pattern, text):
            return found
        if time.monotonic() > end:
            raise CommandFailed(f"{name}: no {pattern!r} on the screen after {patience:g} s:\n{text}")
        time.sleep(1)


@pytest.mark.parametrize(
    ("package", "iso", "shows"),
    [
        ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso", r"GNU GRUB +version 2"),
        ("memtest86+", "usr/lib/memtest86+/memtest86+x64.iso", r"Memtest86\+ v\d.*Errors: 0"),
    ],
)
@pytest.mark.parametrize("machine", ["q35", pytest.param("pc", marks=pytest.mark.full)])
def test_a_live_cd_boots(host_a: Host, package: str, iso: str, shows: str, machine: str) -> None:
    name = f"cd-{machine}"
    host_a.kvmctl(
        *("create", name, "--cdrom", str(_package(package) / iso), "--profile", "generic", "--machine", machine),
        *("--memory", "128M", "--vcpus", "1", "--net", "none", "-q"),
    )
    _screen(host_a, name, shows)
    host_a.kvmctl("delete", name, "-y")


@pytest.mark.full
def test_debians_installer_boots_by_pxe(lab: Lab, host_a: Host, console: Callable[[Host, str], Guest]) -> None:
    files = _package("debian-installer-12-netboot-amd64") / "usr/lib/debian-installer/images/12/amd64/text"
    root = lab.shared / "tftp"
    try:
        shutil.copytree(files / "debian-installer", root / "debian-installer")
        installer = root / "debian-installer/amd64"
        shutil.copy(installer / "pxelinux.0", root)
        shutil.copy(installer / "boot-screens/ldlinux.c32", root)
        (root / "pxelinux.cfg").mkdir()
        (root / "pxelinux.cfg/default").write_text(LOADER)
        # dnsmasq serves as a user of its own, who must be able to read.
        run(["chmod", "-R", "a+rX", str(root)])
        host_a.virsh("net-create", "/dev/stdin", input=PXE.format(root=f"{host_a.shared}/tftp"))
        host_a.kvmctl(
            *("create", "pxe", "--pxe", "--net", "network:pxe", "--disk", "1G", "--memory", "1G", "--vcpus", "1", "-q"),
        )
        console(host_a, "pxe").expect(r"Choose language|Select a language|English", timeout=900)
        host_a.kvmctl("delete", "pxe", "-y")
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.full
def test_a_32_bit_guest_boots(host_a: Host) -> None:
    host_a.kvmctl(
        *("create", "old", "--arch", "i686", "--profile", "generic", "--memory", "128M", "--vcpus", "1", "-q"),
        *("--cdrom", str(_package("memtest86+") / "usr/lib/memtest86+/memtest86+ia32.iso"), "--net", "none"),
    )
    _screen(host_a, "old", r"Memtest86\+ v\d.*Errors: 0")
    host_a.kvmctl("delete", "old", "-y")


@pytest.mark.full
def test_an_arm64_debian_kernel_boots_with_uefi(host_a: Host, console: Callable[[Host, str], Guest]) -> None:
    if shutil.which("qemu-system-aarch64") is None or not Path("/usr/share/AAVMF/AAVMF_CODE.fd").exists():
        pytest.skip("qemu-system-arm and qemu-efi-aarch64 are not installed")
    files = images.kept("arm64", [_ARM_INIT], _build_arm64)
    host_a.kvmctl(
        *("create", "arm", "--arch", "aarch64", "--kernel", str(files / "vmlinuz"), "--initrd", str(files / "initrd")),
        *("--cmdline", "console=ttyAMA0", "--memory", "512M", "--vcpus", "1", "--net", "none", "--graphics", "none"),
        "-q",
    )
    console(host_a, "arm").expect(r"inside aarch64", timeout=600)
    info = host_a.kvmctl("info", "arm", "-o", "json").json()
    assert (info["arch"], info["firmware"]) == ("aarch64", "uefi")
    host_a.kvmctl("delete", "arm", "-y")


_ARM_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs d /dev
while :; do echo "inside $(/bin/busybox uname -m)"; /bin/busybox sleep 1; done
"""


def _build_arm64(folder: Path) -> None:
    """Debian's arm64 kernel and busybox, from lists and a cache of their own: this machine's apt stays as it is."""
    (folder / "lists/partial").mkdir(parents=True)
    apt = ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", "APT::Sandbox::User=root"]
    apt += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    apt += ["-o", "Dir::State::status=/dev/null"]
    run(["apt-get", "-q", *apt, "update"], timeout=300)
    depends = run(["apt-cache", *apt, "depends", "--important", "linux-image-arm64"]).stdout
    kernel = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
    assert kernel is not None, depends
    run(["apt-get", *apt, "download", f"{kernel[1]}:arm64", "busybox-static:arm64"], cwd=str(folder), timeout=600)
    for archive in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", str(archive), str(folder / "files")])
        archive.unlink()
    root = folder / "root"
    for name in ("bin", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(folder / "files/bin/busybox", root / "bin")
    run(["mknod", "-m", "600", str(root / "dev/console"), "c", "5", "1"])
    (root / "init").write_text(_ARM_INIT)
    (root / "init").chmod(0o755)
    images.pack(root, folder / "initrd")
    shutil.copy(next((folder / "files/boot").glob("vmlinuz-*")), folder / "vmlinuz")
    for name in ("files", "lists", "cache", "root"):
        shutil.rmtree(folder / name, ignore_errors=True)
