"""Guests to boot: a tiny one that is up in seconds, the same with every driver, and a whole Debian.

All are built from Debian's packages, once, and kept outside the repository, in a folder whose name
holds a digest of everything they are made of: a changed recipe is another folder.
"""

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.process import run

HERE = Path(__file__).parent

# Drivers of the tiny guest, in Debian's cloud kernel (what is built in there is skipped).
TINY_MODULES = [
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
    "virtio_mem",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "qemu_fw_cfg",
    "sd_mod",
    "sr_mod",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859-1",
    "button",
    "evdev",
    "ext4",
    "loop",
]
# What else the full kernel has: all seven NIC models, the disk buses and USB.
FULL_MODULES = [
    *TINY_MODULES,
    "9p",
    "9pnet_virtio",
    "e1000",
    "e1000e",
    "8139cp",
    "8139too",
    "pcnet32",
    "ne2k-pci",
    "vmxnet3",
    "ahci",
    "nvme",
    "xhci-pci",
    "ehci-pci",
    "uhci-hcd",
    "usb-storage",
    "uas",
    "usbhid",
    "hid-generic",
    "ata_piix",
    "ata_generic",
    "sym53c8xx",
    "mptspi",
    "megaraid_sas",
    "vmw_pvscsi",
]
# Kernel parameters that every guest here is started with; more may follow ("lab...": see guest_init.sh).
# no_timer_check: on a busy machine the emulated timer ticks too late for the kernel's test of it.
CMDLINE = "console=ttyS0 loglevel=3 panic=-1 net.ifnames=0 memhp_default_state=online no_timer_check"


# Debian's kernels, and what Ubuntu has in their place.
_UBUNTUS = {"linux-image-cloud-amd64": "linux-image-virtual", "linux-image-amd64": "linux-image-generic"}

# Not at once: another checkout, at another recipe, may be using them.
_KEPT = 14 * 86400


@dataclass(frozen=True)
class Tiny:
    """A kernel and an initramfs that boot without a disk, and the parameters to start them with."""

    kernel: Path
    initrd: Path
    cmdline: str = CMDLINE


def cache() -> Path:
    """The folder that images are kept in: KVMCTL_TEST_CACHE, or kvmctl-tests in the user's cache."""
    chosen = os.environ.get("KVMCTL_TEST_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmctl-tests"
    base.mkdir(parents=True, exist_ok=True)
    return base.resolve()


def tiny() -> Tiny:
    """The tiny guest: Debian's cloud kernel, busybox, the virtio drivers, the guest agent and an SSH server."""
    return _initramfs("tiny", "linux-image-cloud-amd64", TINY_MODULES)


def tiny_full() -> Tiny:
    """The tiny guest with Debian's full kernel: every NIC model's driver, and the disk buses'."""
    return _initramfs("tiny-full", "linux-image-amd64", FULL_MODULES)


def debian(suite: str = "debian-12", kernel: str = "cloud") -> Path:
    """A whole Debian as a qcow2, built by kvmctl itself; a minute or two the first time. Do not write to it."""
    from kvmctl.operations import image_build

    sources = [Path(image_build.__file__), Path(image_build.__file__).with_name("disk_layout.py")]
    recipe = [path.read_bytes() for path in [*sources, *sorted(image_build.DATA.glob("image-*"))]]
    kind = suite if kernel == "cloud" else f"{suite}-{kernel}"
    made = kept(kind, recipe, lambda folder: _build_debian(suite, kernel, folder / f"{suite}.qcow2"))
    return made / f"{suite}.qcow2"


def _build_debian(suite: str, kernel: str, target: Path) -> None:
    from kvmctl.operations import image_build

    image_build.build(suite, target, kernel=kernel)
    target.chmod(0o444)


def kept(kind: str, ingredients: Iterable[str | bytes], build: Callable[[Path], None]) -> Path:
    """The folder of ``kind`` made of ``ingredients``; ``build`` fills it where it is not there yet.

    Processes that want the same one wait for the first; a build that fails or is killed leaves nothing
    that would be taken for done. Those of the kind that nobody wanted for two weeks are removed.
    """
    digest = hashlib.sha256()
    for part in ingredients:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    folder = cache() / f"{kind}-{digest.hexdigest()[:16]}"
    with _lock(kind):
        if folder.is_dir():
            os.utime(folder)
            return folder
        unwanted = [
            path for path in cache().glob(f"{kind}-????????????????") if path.stat().st_mtime < time.time() - _KEPT
        ]
        for stale in [*cache().glob(f".{kind}-new-*"), *unwanted]:
            _refuse_mounts(stale)
            shutil.rmtree(stale)
        fresh = Path(tempfile.mkdtemp(prefix=f".{kind}-new-", dir=cache()))
        try:
            build(fresh)
            fresh.chmod(0o755)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _refuse_mounts(folder: Path) -> None:
    """A build that was killed may have left this machine's /proc or /dev/shm mounted in its tree: not to be emptied."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [mount for mount in mounts if mount.startswith(f"{folder}/")]
    if inside:
        raise OSError(f"left mounted by a build that was killed: run 'umount {' '.join(inside)}'")


@contextlib.contextmanager
def _lock(kind: str) -> Iterator[None]:
    with (cache() / f".{kind}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _initramfs(kind: str, kernel_package: str, modules: list[str]) -> Tiny:
    real = kernel_of(kernel_package)
    recipe = [Path(__file__).read_bytes(), *(path.read_bytes() for path in sorted(HERE.glob("guest_*.sh")))]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            kernel = unpack(real, Path(work) / "kernel")
            vmlinuz = next((kernel / "boot").glob("vmlinuz-*"))
            vmlinuz.rename(folder / "vmlinuz")
            root = Path(work) / "root"
            _fill_root(root, kernel, modules, Path(work))
            pack(root, folder / "initrd")

    made = kept(kind, [*real, *modules, *recipe], build)
    return Tiny(made / "vmlinuz", made / "initrd")


def kernel_of(package: str) -> tuple[str, ...]:
    """``NAME=VERSION`` of what Debian's kernel metapackage ``package`` (or Ubuntu's) stands for: the image first."""
    depends = run(["apt-cache", "depends", "--important", package], check=False).stdout
    if "Depends: linux-image-" not in depends:
        depends = run(["apt-cache", "depends", "--important", _UBUNTUS[package]], check=False).stdout
    found = re.findall(r"Depends: (linux-(?:image|modules-extra)-[0-9]\S*)", depends)
    if not found:
        raise LookupError(f"apt knows no kernel behind {package} or {_UBUNTUS[package]}: run 'apt-get update'")
    # On Ubuntu the modules are in packages of their own.
    found += re.findall(
        r"Depends: (linux-modules-[0-9]\S*)", run(["apt-cache", "depends", "--important", found[0]]).stdout
    )
    return tuple(f"{name}={_candidate(name)}" for name in found)


def _candidate(package: str) -> str:
    version = re.search(r"Candidate: (\S+)", run(["apt-cache", "policy", package]).stdout)
    assert version is not None
    return version[1]


def unpack(packages: str | tuple[str, ...], into: Path) -> Path:
    """Download packages and unpack their files, installing nothing."""
    into.mkdir()
    names = [packages] if isinstance(packages, str) else packages
    # As the user apt drops to may not write there, it would warn; this says at once that root does it.
    run(["apt-get", "-o", "APT::Sandbox::User=root", "download", *names], cwd=str(into), timeout=600)
    for archive in list(into.glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive), str(into)])
        archive.unlink()
    return into


def _fill_root(root: Path, kernel: Path, modules: list[str], work: Path) -> None:
    for folder in ("bin", "sbin", "dev", "modules", "usr/sbin", "usr/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for source, target in (("guest_init.sh", "init"), ("guest_dhcp.sh", "bin/dhcp-event")):
        shutil.copy(HERE / source, root / target)
        (root / target).chmod(0o755)
    for name, command in (("shutdown", ""), ("poweroff", "-P"), ("reboot", "-r"), ("halt", "-P")):
        # Process 1 is a shell: nothing stops in order, so the file systems are flushed and that is it.
        script = root / "sbin" / name
        script.write_text(
            f'#!/bin/sh\nsync\ncase "$* {command}" in *-r*) exec busybox reboot -f ;; esac\nexec busybox poweroff -f\n'
        )
        script.chmod(0o755)
    run(["mknod", "-m", "600", str(root / "dev/console"), "c", "5", "1"])
    add_modules(root / "modules", kernel, modules)
    for package, program in (
        ("qemu-guest-agent", "usr/sbin/qemu-ga"),
        ("dropbear-bin", "usr/sbin/dropbear"),
        ("openssh-sftp-server", "usr/lib/openssh/sftp-server"),
    ):
        unpacked = unpack(package, work / package)
        add_program(root, unpacked / program, f"/{program}")


def add_modules(target: Path, kernel: Path, wanted: list[str]) -> None:
    """Copy the modules and what they need, and write the order in which they load."""
    # Debian compresses them from 13 on, and Ubuntu does; what a tiny guest loads is not.
    known = {path.name.partition(".")[0].replace("-", "_"): path for path in kernel.rglob("*.ko*")}
    order: dict[str, None] = {}

    def add(name: str) -> None:
        path = known.get(name.replace("-", "_"))
        if path is None or (stem := path.name.partition(".")[0]) in order:
            return
        data = _uncompressed(path)
        # The section .modinfo holds "key=value" strings, each ended by a zero byte.
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (needs[1].decode() if needs else "").split(","):
            add(other)
        for other in re.findall(rb"\0softdep=pre: ([^\0]*)\0", data):
            for softly in other.decode().split():
                add(softly)
        order[stem] = None
        (target / f"{stem}.ko").write_bytes(data)

    for name in wanted:
        add(name)
    (target / "order").write_text("".join(f"{name}\n" for name in order))


def _uncompressed(module: Path) -> bytes:
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        # Python has no Zstandard before 3.14.
        return subprocess.run(["zstd", "-dcq", str(module)], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    return module.read_bytes()


def add_program(root: Path, program: Path, place: str) -> None:
    """Copy a program and the libraries that the machine's own loader finds for it."""
    target = root / place.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    libraries = run(["ldd", str(program)]).stdout
    missing = re.findall(r"(\S+) => not found", libraries)
    if missing:
        raise LookupError(f"{place} needs {', '.join(missing)}: install the packages in tests/packages.txt")
    for library in re.findall(r"(/\S+) \(0x", libraries):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copy(library, copy)


def pack(root: Path, target: Path) -> None:
    """Write an initramfs. Not compressed: an emulated CPU takes longer to unpack it than QEMU to load it."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with target.open("wb") as out:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            input="\n".join(names).encode() + b"\n",
            stdout=out,
            cwd=root,
            check=True,
        )
