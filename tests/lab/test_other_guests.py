"""Guests of other kinds: GRUB's rescue CD, memtest86+, Debian's installer, Debian on other architectures."""

import io
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pycdlib
import pytest

from tests.lab import foreign_images, images
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
@pytest.mark.parametrize(
    ("arch", "machine", "serial", "told"),
    [("i686", "i386", "ttyS0", r"i386 on i686"), ("aarch64", "arm64", "ttyAMA0", r"arm64 on aarch64")],
)
def test_a_debian_of_another_architecture_boots(
    lab: Lab, host_a: Host, console: Callable[[Host, str], Guest], arch: str, machine: str, serial: str, told: str
) -> None:
    if arch == "aarch64" and (
        shutil.which("qemu-system-aarch64") is None or not Path("/usr/share/AAVMF/AAVMF_CODE.fd").exists()
    ):
        pytest.skip("qemu-system-arm and qemu-efi-aarch64 are not installed")
    system = foreign_images.debian(machine)
    disk = lab.shared / "other.raw"
    try:
        shutil.copy(system.disk, disk)
        host_a.kvmctl(
            *("create", "other", "--arch", arch, "--kernel", str(system.kernel), "--initrd", str(system.initrd)),
            *("--cmdline", f"console={serial}", "--import", f"{host_a.shared}/other.raw", "--memory", "512M"),
            *("--vcpus", "1", "--net", "none", "--graphics", "none", "-q"),
        )
        console(host_a, "other").expect(rf"inside Debian 12\S* {told}", timeout=900)
        info = host_a.kvmctl("info", "other", "-o", "json").json()
        assert (info["arch"], info["firmware"]) == (arch, "uefi" if arch == "aarch64" else "bios")
        host_a.kvmctl("delete", "other", "-y")
    finally:
        disk.unlink(missing_ok=True)


def _installer_iso(target: Path) -> None:
    """A CD of Debian's installer: its netboot kernel and initramfs behind ISOLINUX."""
    text = _package("debian-installer-12-netboot-amd64") / "usr/lib/debian-installer/images/12/amd64/text"
    installer = text / "debian-installer/amd64"
    loader = _package("isolinux") / "usr/lib/ISOLINUX/isolinux.bin"
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, vol_ident="INSTALLER")
    disc.add_directory("/ISOLINUX")
    files = {
        "ISOLINUX.BIN": loader.read_bytes(),
        "LDLINUX.C32": (installer / "boot-screens/ldlinux.c32").read_bytes(),
        "ISOLINUX.CFG": LOADER.replace("debian-installer/amd64/", "").encode(),
        "LINUX": (installer / "linux").read_bytes(),
        "INITRD.GZ": (installer / "initrd.gz").read_bytes(),
    }
    for name, content in files.items():
        disc.add_fp(io.BytesIO(content), len(content), f"/ISOLINUX/{name};1")
    disc.add_eltorito("/ISOLINUX/ISOLINUX.BIN;1", "/ISOLINUX/BOOT.CAT;1", boot_load_size=4, boot_info_table=True)
    disc.write(str(target))
    disc.close()


@pytest.mark.full
def test_debians_installer_boots_from_a_cd(host_a: Host, console: Callable[[Host, str], Guest], tmp_path: Path) -> None:
    _installer_iso(tmp_path / "installer.iso")
    host_a.kvmctl(
        *("create", "cd", "--cdrom", str(tmp_path / "installer.iso"), "--disk", "1G", "--os", "debian12", "-q"),
        *("--memory", "1G", "--vcpus", "1", "--net", "none"),
    )
    console(host_a, "cd").expect(r"Choose language|Select a language|English", timeout=900)
    host_a.kvmctl("delete", "cd", "-y")
