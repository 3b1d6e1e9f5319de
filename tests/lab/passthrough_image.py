"""What the emulated host of the passthrough tests boots, and the guest that it runs in turn.

The host's file system is this machine's own, shared with it read-only: its libvirt, its QEMU, its Python and this
repository are the ones that the tests run with. So there is nothing to install in it; only a kernel and an initramfs.
"""

import lzma
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import images, mtty
from tests.lab.process import run

# Drivers that find the machine's file system, and those of the devices that are passed on.
_HOST_MODULES = [
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "9p", "9pnet_virtio", "overlay"),
    # ext4 asks for its checksum by an alias, which insmod does not follow.
    *("crc32c_generic", "ext4"),
    *("vfio-pci", "vfio_iommu_type1", "e1000", "e1000e", "nvme", "xhci-pci", "usb-storage", "sd_mod", "tun"),
]
_GUEST_MODULES = ["e1000e", "e1000", "nvme", "xhci-pci", "usb-storage", "sd_mod"]
# What only the tests with everything need: a mediated device and vsocks, a bridge and what libvirt limits rates with.
_MORE_HOST_MODULES = [
    *("vhost_vsock", "mtty"),
    *("bridge", "sch_htb", "sch_sfq", "sch_ingress", "cls_u32", "cls_fw", "act_police"),
]
_MORE_GUEST_MODULES = ["virtio_pci", "vmw_vsock_virtio_transport"]


@dataclass(frozen=True)
class Images:
    """The kernel of both, and an initramfs each."""

    kernel: Path
    host: Path
    guest: Path


def passthrough(everything: bool) -> Images:
    """Build them where they are not there yet: the kernel's package is downloaded, which takes some seconds.

    With ``everything`` a driver is compiled, too: see mtty.py.
    """
    kernel = images.kernel_of("linux-image-amd64")
    scripts = [images.HERE / f"passthrough_{name}.sh" for name in ("init", "host", "guest")]
    recipe = [Path(__file__), Path(images.__file__), *scripts]
    sample = mtty.module(kernel[0]) if everything else None
    host_modules = [*_HOST_MODULES, *(_MORE_HOST_MODULES if everything else [])]
    guest_modules = [*_GUEST_MODULES, *(_MORE_GUEST_MODULES if everything else [])]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            work = Path(place)
            unpacked = images.unpack(kernel, work / "kernel")
            (folder / "vmlinux").write_bytes(_decompressed(next((unpacked / "boot").glob("vmlinuz-*")).read_bytes()))
            if sample is not None:
                shutil.copy(sample, unpacked / "lib/modules")
            agent = images.unpack("qemu-guest-agent", work / "agent") / "usr/sbin/qemu-ga"
            host, guest = work / "host", work / "guest"
            _fill(host, unpacked, host_modules, scripts[0], [scripts[1], agent])
            images.pack(host, folder / "host")
            _fill(guest, unpacked, guest_modules, scripts[2])
            if everything:
                images.add_program(guest, agent, "/lab/qemu-ga")
            images.pack(guest, folder / "guest")

    read = [*recipe, *([sample] if sample is not None else [])]
    made = images.kept("passthrough", [*kernel, *(path.read_bytes() for path in read)], build)
    return Images(made / "vmlinux", made / "host", made / "guest")


def _fill(root: Path, kernel: Path, modules: list[str], init: Path, carries: Sequence[Path] = ()) -> None:
    """An initramfs: busybox, these modules in the order in which they load, and in /lab what it carries."""
    for folder in ("bin", "dev", "lab", "modules"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    run(["mknod", "-m", "600", str(root / "dev/console"), "c", "5", "1"])
    images.add_modules(root / "modules", kernel, modules)
    shutil.copy(init, root / "init")
    for path in carries:
        shutil.copy(path, root / "lab")
    for program in (root / "init", *(root / "lab").iterdir()):
        program.chmod(0o755)


def _decompressed(image: bytes) -> bytes:
    """The kernel itself out of a bzImage: QEMU starts that too, and an emulated CPU takes seconds to unpack it."""
    # Where it is: payload_offset and payload_length of the header (the kernel's Documentation/x86/boot.rst),
    # counted from the end of the setup sectors.
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    payload = image[start : start + length]
    # Debian 12 compresses with xz; whatever else it may be, the kernel unpacks by itself.
    return lzma.LZMADecompressor().decompress(payload) if payload.startswith(b"\xfd7zXZ\0") else image
