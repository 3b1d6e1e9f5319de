"""Building a Debian guest image with mmdebstrap: bootable by itself, ready for a cloud-init seed.

Works as root and as a plain user (in a user namespace), without loop devices or mounts on the host, and
needs no libvirt. What goes into the guest is in ``kvmctl/data/image-*``.
"""

import contextlib
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmctl.errors import KvmctlError, Refused, UsageProblem
from kvmctl.model.units import GIB, MIB, human_size
from kvmctl.operations import apt_sources, disk_layout
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo

DATA = Path(__file__).parent.parent / "data"
DEFAULT_SIZE = 4 * GIB
SMALLEST = 2 * GIB
# What a build was seen to need in the temporary folder at its peak: the tree, and a filesystem made of it.
NEEDED_SPACE = 3 * GIB
# Seconds between two requests to end, to an mmdebstrap that cleans up behind an interrupted build.
SIGNAL_INTERVAL = 30.0

KERNELS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}
PACKAGES = (
    "systemd-sysv",
    "dbus",
    "udev",
    "initramfs-tools",
    "zstd",
    "cloud-init",
    "cloud-guest-utils",
    "openssh-server",
    "qemu-guest-agent",
    "sudo",
    "ca-certificates",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "netbase",
    "less",
    "nano",
    "grub2-common",
    "grub-pc-bin",
    "grub-efi-amd64-signed",
    "shim-signed",
    "shim-helpers-amd64-signed",
)
# Program: the package that has it, on Debian and Ubuntu, and on Fedora.
TOOLS = {
    "mmdebstrap": ("mmdebstrap", "mmdebstrap"),
    "mke2fs": ("e2fsprogs", "e2fsprogs"),
    "mformat": ("mtools", "mtools"),
    "mcopy": ("mtools", "mtools"),
    "qemu-img": ("qemu-utils", "qemu-img"),
}
USER_TOOLS = {"newuidmap": ("uidmap", "shadow-utils")}
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?\Z")


@dataclass(frozen=True)
class Suite:
    """A Debian suite: its archive name, the image's usual name, and its libosinfo short id."""

    codename: str
    image: str
    os: str


def suite(name: str) -> Suite:
    """The suite that ``name`` means: ``debian-12``, ``debian12``, ``12``, ``bookworm``, ``debian-bookworm``, ``sid``.

    Raises UsageProblem for any other.
    """
    key = re.sub(r"\Adebian-?", "", name.lower())
    releases = apt_sources.RELEASES
    if key in apt_sources.UNSTABLE:
        return Suite("sid", "debian-sid", "debiantesting")
    for number, codename in releases.items():
        if key in (number, codename):
            return Suite(codename, f"debian-{number}", f"debian{number}")
    known = ", ".join(f"debian-{number} ({codename})" for number, codename in releases.items())
    raise UsageProblem(f"no Debian suite {name[:60]!a} can be built", f"there are {known} and debian-sid")


@dataclass(frozen=True)
class Plan:
    """What a build will do; everything that can be refused was checked when it was made."""

    suite: Suite
    size: int
    kernel: str
    packages: tuple[str, ...]
    mirrors: apt_sources.Mirrors
    folder: Path


def plan(name: str, *, size: int = DEFAULT_SIZE, include: Sequence[str] = (), kernel: str = "cloud") -> Plan:
    """Decide how ``name`` is built: ``size`` in bytes, ``include`` more packages, ``kernel`` cloud or generic.

    Raises UsageProblem for a suite, package name, kernel or size that cannot be, and Refused where this
    machine lacks a tool, the architecture or the room.
    """
    found = suite(name)
    if kernel not in KERNELS:
        raise UsageProblem(f"no kernel {kernel[:40]!a}", f"choose {' or '.join(KERNELS)}")
    for package in include:
        if not _PACKAGE.match(package):
            raise UsageProblem(f"{package[:60]!a} is not the name of a Debian package")
    if size < SMALLEST:
        raise UsageProblem(f"an image of {human_size(size)} is too small for Debian", "give it at least 2 GiB")
    if platform.machine() != "x86_64":
        raise Refused(f"images are built for x86_64, and this machine is {platform.machine()}")
    check_tools()
    folder = Path(os.environ.get("TMPDIR") or "/var/tmp")
    free = shutil.disk_usage(folder).free
    if free < NEEDED_SPACE:
        raise Refused(
            f"{folder} has {human_size(free)} free, and a build needs {human_size(NEEDED_SPACE)}",
            "make room, or name another folder with TMPDIR",
        )
    # In Debian 11 systemd-resolved is part of the package systemd, and its cloud-init writes no files for
    # systemd-networkd itself, but through netplan.
    network = "netplan.io" if found.codename == "bullseye" else "systemd-resolved"
    packages = (KERNELS[kernel], *PACKAGES, network, *include)
    mirrors = apt_sources.for_suite(found.codename, apt_sources.configured())
    check_keyring(mirrors)
    return Plan(found, size // MIB * MIB, kernel, packages, mirrors, folder)


def check_keyring(mirrors: apt_sources.Mirrors) -> None:
    """Raise Refused, with the command that installs it, where Debian's keys are not here: not so on a bare Ubuntu."""
    if mirrors.keyring is None or Path(mirrors.keyring).exists():
        return
    hint = None
    if mirrors.keyring == apt_sources.DEBIAN_KEYRING:
        hint = f"run '{_installer('debian-archive-keyring', 'debian-keyring')}'"
    raise Refused(f"the keys that {mirrors.origin} is verified with are not here: there is no {mirrors.keyring}", hint)


def check_tools() -> None:
    """Raise Refused, with the command that installs them, where programs are missing that a build runs."""
    needed = TOOLS | (USER_TOOLS if os.geteuid() != 0 else {})
    missing = [program for program in needed if _program(program) is None]
    if not missing:
        return
    debian = " ".join(dict.fromkeys(needed[program][0] for program in missing))
    fedora = " ".join(dict.fromkeys(needed[program][1] for program in missing))
    raise Refused(
        f"building an image needs {', '.join(missing)}, not installed here", f"run '{_installer(debian, fedora)}'"
    )


def _installer(debian: str, fedora: str) -> str:
    """The command that installs packages here, of these names in Debian and Ubuntu, and in Fedora."""
    installer = f"dnf install {fedora}" if shutil.which("dnf") else f"apt-get install {debian}"
    return installer if os.geteuid() == 0 else f"sudo {installer}"


def _program(name: str) -> str | None:
    # A plain user's PATH often lacks the sbin directories, where mke2fs is.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def build(
    suite: str,
    output_path: Path,
    *,
    size: int = DEFAULT_SIZE,
    include: Sequence[str] = (),
    kernel: str = "cloud",
    progress: Progress | None = None,
) -> Plan:
    """Build the image of ``suite`` as an uncompressed qcow2 at ``output_path``, which must not exist yet.

    Takes a minute or two. If it fails or Ctrl-C arrives nothing is left. See plan() for the other
    arguments and errors; KvmctlError where mmdebstrap fails, with what it said.
    """
    planned = plan(suite, size=size, include=include, kernel=kernel)
    run(planned, output_path, progress)
    return planned


def run(planned: Plan, output_path: Path, progress: Progress | None = None) -> None:
    """Carry out ``planned``; see build()."""
    progress = progress or Progress()
    if output_path.exists():
        raise UsageProblem(f"{output_path} is there already", "name another file")
    with _workplace(planned.folder) as work, Undo() as undo:
        environment = _environment(planned, work)
        _bootstrap(planned, environment, work, progress)
        progress.step("making the disk")
        _make_esp(work, environment)
        raw = work / "disk.raw"
        disk_layout.write_disk(
            raw,
            planned.size,
            (work / "boot.img").read_bytes(),
            (work / "core.img").read_bytes(),
            work / "esp.img",
            work / "root.img",
        )
        (work / "root.img").unlink()
        progress.step("converting to qcow2")
        undo.add(f"delete {output_path}", lambda: output_path.unlink(missing_ok=True))
        _call(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(output_path)], environment)
        undo.keep()


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder that mmdebstrap's user namespace can write to and that nobody else can find.

    There, root is one of the user's subordinate ids, to which the user's own files are somebody else's.
    So the inner folder is open to all, but has an unguessable name in one that cannot be listed.
    """
    outer = Path(tempfile.mkdtemp(prefix="kvmctl-build-", dir=folder))
    try:
        outer.chmod(0o711)
        work = outer / secrets.token_hex(16)
        work.mkdir()
        work.chmod(0o777)
        yield work
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _environment(planned: Plan, work: Path) -> dict[str, str]:
    """What the scripts in kvmctl/data are told. The folder's name is passed only here: others cannot read it."""
    for source in DATA.glob("image-*"):
        copy = work / source.name
        shutil.copyfile(source, copy)
        copy.chmod(0o644)
    serial = secrets.token_hex(4).upper()
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        # mmdebstrap keeps its tree there; its own choice, /tmp, is often in memory.
        "TMPDIR": str(planned.folder),
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        "KVMCTL_BUILD": str(work),
        "KVMCTL_OUT": str(work),
        "KVMCTL_ROOT_UUID": str(uuid.uuid4()),
        "KVMCTL_ESP_UUID": f"{serial[:4]}-{serial[4:]}",
        "KVMCTL_ROOT_KIB": f"{disk_layout.root_size(planned.size) // 1024}k",
        # loglevel: a screen full of kernel messages takes an emulated CPU seconds to draw.
        "KVMCTL_CMDLINE": "console=tty0 console=ttyS0,115200 loglevel=4",
    }
    if (proxy := _apt_setting("Acquire::http::Proxy")) and re.match("https?://", proxy):
        environment.setdefault("http_proxy", proxy)
    return environment


def _apt_setting(name: str) -> str | None:
    """What this machine's apt is set to use: mmdebstrap does not read apt's configuration."""
    if shutil.which("apt-config") is None:
        return None
    found = subprocess.run(["apt-config", "shell", "FOUND", name], capture_output=True, text=True, check=False)
    match = re.search(r"FOUND='([^']+)'", found.stdout)
    return match[1] if match else None


def _apt_options() -> list[str]:
    """What a mirror needs that keeps a moment of the past, if this machine's apt is set for one (apt.conf(5))."""
    names = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")
    off = [name for name in names if (_apt_setting(name) or "").lower() in ("false", "no", "0", "off", "without")]
    return [f'--aptopt={name} "false"' for name in off]


def _bootstrap(planned: Plan, environment: dict[str, str], work: Path, progress: Progress) -> None:
    """Run mmdebstrap with the two scripts as hooks; they leave the boot loaders and root.img in ``work``."""
    root = os.geteuid() == 0
    command = [
        # As root it mounts this machine's /dev/shm in its tree, and where it is killed leaves it there, for whoever
        # then removes the tree to empty. What is mounted in a namespace of its own goes with its processes.
        *(("unshare", "--mount", "--propagation", "private", "--") if root else ()),
        "mmdebstrap",
        "--mode=root" if root else "--mode=unshare",
        "--variant=minbase",
        "--format=null",
        f"--include={','.join(planned.packages)}",
        '--essential-hook=sh "$KVMCTL_BUILD/image-early.sh" "$1"',
        '--customize-hook=sh "$KVMCTL_BUILD/image-customize.sh" "$1"',
    ]
    command += _apt_options()
    if planned.mirrors.keyring:
        command.append(f"--keyring={planned.mirrors.keyring}")
    command += [planned.suite.codename, "/dev/null", *planned.mirrors.lines]
    progress.step(f"building {planned.suite.image}")
    said = _watch(command, environment, planned.suite.image, progress)
    if not (work / "root.img").exists():
        raise KvmctlError(f"mmdebstrap made no {planned.suite.image}: {_reason(said)}", _hint(said))


def _watch(command: list[str], environment: dict[str, str], name: str, progress: Progress) -> list[str]:
    """Run ``command``, telling its "I:" lines as steps, and return the last lines it said if it failed."""
    said: list[str] = []
    # In a session of its own: Ctrl-C reaches only kvmctl, which then stops mmdebstrap and waits until it
    # has unmounted and removed its tree.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        with Undo() as undo:
            undo.add("stop mmdebstrap", lambda: _stop(process))
            for line in process.stderr:
                line = line.strip()
                said = [*said[-200:], line]
                if line.startswith("I: ") and " --" not in line and "/" not in line:
                    progress.step(f"building {name}: {line[3:].rstrip('.')}")
            undo.keep()
    if process.returncode != 0:
        raise KvmctlError(f"mmdebstrap could not build {name}: {_reason(said)}", _hint(said))
    return said


def _stop(process: "subprocess.Popen[str]") -> None:
    """End mmdebstrap, all of it as a terminal's Ctrl-C would, and wait until it has cleaned up behind itself."""
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        # A program that was only just being started may miss the signal; it gets another one, not so soon
        # that it would disturb the cleaning up. What is still said must be read, or the speaker would wait.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=SIGNAL_INTERVAL)
            return


def _reason(said: Sequence[str]) -> str:
    """The first line that speaks of an error: what follows it is only its consequence."""
    for index, line in enumerate(said):
        if line.startswith("Err:"):
            # apt says why on the next line.
            return " ".join(said[index : index + 2])[:300]
        if line.startswith(("E: ", "dpkg: error", "newuidmap", "mke2fs:")):
            return line.removeprefix("E: ")[:300]
    return said[-1][:300] if said else "it said nothing"


def _hint(said: Sequence[str]) -> str | None:
    text = "\n".join(said)
    if "NO_PUBKEY" in text:
        return "install the keys of that archive; the package debian-archive-keyring has Debian's"
    if "Unable to locate package" in text or "has no installation candidate" in text:
        return "is the package's name right, and is it in this suite?"
    if "Temporary failure resolving" in text or "Could not connect" in text or "Failed to fetch" in text:
        return "is the mirror in /etc/apt/sources.list reachable from here?"
    if "subuid" in text or "newuidmap" in text or "unshare" in text:
        ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        return f"does this user have subordinate ids? 'sudo usermod {ids} USER' gives some"
    if "404  Not Found" in text:
        return "the mirror lists what it does not have: is it being updated just now, or has the suite left it?"
    if "is expired" in text or "is not valid yet" in text:
        return (
            'is the clock right? For a mirror of the past set Acquire::Check-Valid-Until "false" in /etc/apt/apt.conf.d'
        )
    if "No space left" in text:
        return "make room, or name another folder with TMPDIR; or give the image a larger --size"
    return None


def _make_esp(work: Path, environment: dict[str, str]) -> None:
    """The EFI system partition: shim, which firmware with secure boot trusts, GRUB, and where its menu is."""
    esp = work / "esp.img"
    with esp.open("xb") as out:
        out.truncate(disk_layout.ESP_SIZE)
    serial = environment["KVMCTL_ESP_UUID"].replace("-", "")
    (work / "grub.cfg").write_text(
        f"search.fs_uuid {environment['KVMCTL_ROOT_UUID']} root\n"
        "set prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n",
        encoding="ascii",
    )
    _call(["mformat", "-i", str(esp), "-F", "-v", "ESP", "-N", serial, "::"], environment)
    _call(["mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT", "::/EFI/debian"], environment)
    loaders = [str(work / name) for name in ("BOOTX64.EFI", "grubx64.efi", "mmx64.efi")]
    _call(["mcopy", "-i", str(esp), *loaders, "::/EFI/BOOT/"], environment)
    # Debian's signed GRUB looks here, and nowhere else, for what to do.
    _call(["mcopy", "-i", str(esp), str(work / "grub.cfg"), "::/EFI/debian/grub.cfg"], environment)


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise KvmctlError(f"{command[0]} failed: {lines[-1][:300] if lines else done.returncode}")
