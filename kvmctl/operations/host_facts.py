"""What ``host setup`` looks at before it does anything: programs, modules, daemons, groups, network, pool."""

import contextlib
import grp
import os
import platform
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.operations import hooks, networks, pools
from kvmctl.preflight import host_cpu, host_kernel, host_kvm
from kvmctl.preflight.host_root import Root

Manager = Literal["apt", "dnf"]
Thing = Literal["missing", "inactive", "by-hand", "ready", "unknown"]

# Programs and folders beside the package that brings them: Debian's and Ubuntu's name, Fedora's name.
# Fedora's were looked up, not tried.
_NEEDED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("libvirtd", "virtqemud"), "libvirt-daemon-system", "libvirt-daemon-kvm"),
    (("virsh",), "libvirt-clients", "libvirt-client"),
    (("qemu-img",), "qemu-utils", "qemu-img"),
    (("dnsmasq",), "dnsmasq-base", "dnsmasq"),
    # libvirt does with iptables alone, and Debian 13's brings no more; kvmctl publishes ports through nft.
    (("nft",), "nftables", "nftables"),
    (("swtpm",), "swtpm", "swtpm"),
    (("swtpm_setup",), "swtpm-tools", "swtpm-tools"),
)
# The same for the emulator of the machine's own architecture, and its UEFI firmware.
_EMULATORS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "x86_64": (("qemu-system-x86_64", "qemu-kvm"), "qemu-system-x86", "qemu-kvm"),
    "aarch64": (("qemu-system-aarch64", "qemu-kvm"), "qemu-system-arm", "qemu-kvm"),
}
_FIRMWARES: dict[str, tuple[str, str, str]] = {
    "x86_64": ("*x86_64*.json", "ovmf", "edk2-ovmf"),
    "aarch64": ("*aarch64*.json", "qemu-efi-aarch64", "edk2-aarch64"),
}
# Where firmware describes itself (QEMU's docs/interop/firmware.json), and where Debian's ovmf puts it.
_FIRMWARE_FOLDERS = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


@dataclass(frozen=True)
class Facts:
    """What is so now. ``user`` is whom guests belong to: the one who called sudo, or who runs this.

    ``error`` is why libvirt was not reached, None where it was; ``network`` and ``pool`` are ``by-hand``
    where they run but do not start with the host.
    """

    root: bool
    user: str
    manager: Manager | None
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    systemd: bool
    modular: bool
    virtlogd: bool
    error: str | None
    session: bool
    groups: tuple[str, ...]
    network: Thing
    pool: Thing
    hooks: tuple[str, ...] = ()
    kvm_for_root_alone: bool = False
    cgroups_for_reading: bool = False


def look(connect: Callable[[], Hypervisor]) -> Facts:
    """Look at this machine and the libvirt that ``connect`` opens.

    Raises UsageProblem where that is another machine's.
    """
    manager = _manager()
    packages = () if manager is None else tuple(_missing_packages(manager))
    error: str | None = None
    network: Thing = "unknown"
    pool: Thing = "unknown"
    session = False
    try:
        with connect() as hypervisor:
            if hypervisor.is_remote:
                raise UsageProblem(
                    f"host setup changes the machine it runs on, and {hypervisor.uri} is another one",
                    "run kvmctl host setup on that machine",
                )
            session = hypervisor.is_session
            network, pool = ("ready" if session else _network(hypervisor)), _pool(hypervisor)
    except UsageProblem:
        raise
    except KvmctlError as problem:
        error = problem.message
    user = _user()
    return Facts(
        root=os.geteuid() == 0,
        user=user,
        manager=manager,
        packages=packages,
        modules=tuple(_modules()),
        systemd=Path("/run/systemd/system").is_dir(),
        modular=_modular(manager),
        virtlogd=_answers("/run/libvirt/virtlogd-sock"),
        error=error,
        session=session,
        groups=tuple(_missing_groups(user, session)),
        network=network,
        pool=pool,
        hooks=tuple(hooks.missing()) if not session and hooks.may_be_installed() else (),
        kvm_for_root_alone=host_kvm.look(Root()).roots_alone,
        cgroups_for_reading=not session and host_kernel.cgroups_for_reading(Root()),
    )


def program(name: str) -> str | None:
    """Where the program ``name`` is, the folders for administrators included."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/libexec")


def _manager() -> Manager | None:
    if program("apt-get"):
        return "apt"
    return "dnf" if program("dnf") else None


def _missing_packages(manager: Manager) -> list[str]:
    arch = platform.machine()
    needed = list(_NEEDED)
    if arch in _EMULATORS:
        needed.insert(1, _EMULATORS[arch])
    missing = [
        debian if manager == "apt" else fedora
        for programs, debian, fedora in needed
        if not any(program(name) for name in programs)
    ]
    if arch in _FIRMWARES:
        pattern, debian, fedora = _FIRMWARES[arch]
        if not any(any(Path(folder).glob(pattern)) for folder in _FIRMWARE_FOLDERS):
            missing.append(debian if manager == "apt" else fedora)
    return missing


def _modules() -> list[str]:
    """The modules that are neither at work nor missing from this kernel altogether."""
    root = Root()
    info = host_cpu.parse(host_cpu.read_text(str(host_cpu.LOCAL)))
    wanted = []
    if info.flag is not None and not root.exists("dev/kvm"):
        wanted.append("kvm_intel" if info.flag == "vmx" else "kvm_amd")
    wanted += [name for name, path in (("vhost_net", "dev/vhost-net"), ("tun", "dev/net/tun")) if not root.exists(path)]
    modprobe = program("modprobe")
    if modprobe is None or host_kvm.container(root):
        return []
    # -n only looks: a kernel without the module has nothing to load.
    return [name for name in wanted if _quiet(modprobe, "-n", "-q", name)]


def _quiet(*command: str) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _modular(manager: Manager | None) -> bool:
    """Whether libvirt's daemons come one a driver here (virtqemud), as on Fedora, or as one libvirtd."""
    if program("libvirtd") or program("virtqemud"):
        units = {name for name in ("libvirtd", "virtqemud") if any(Path(d, f"{name}.service").exists() for d in _UNITS)}
        return "virtqemud" in units and "libvirtd" not in units
    return manager == "dnf"


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _user() -> str:
    if os.geteuid() == 0:
        return os.environ.get("SUDO_USER") or "root"
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _missing_groups(user: str, session: bool) -> list[str]:
    """The groups that would open something to ``user``: a plain user's own session needs but /dev/kvm."""
    wanted = []
    if os.geteuid() == 0:
        wanted = [] if user == "root" else ["libvirt", "kvm"]
    else:
        wanted += [] if session else ["libvirt"]
        wanted += ["kvm"] if _closed_kvm() else []
    try:
        primary = pwd.getpwnam(user).pw_gid
    except KeyError:
        return []
    missing = []
    for name in wanted:
        with contextlib.suppress(KeyError):
            group = grp.getgrnam(name)
            if user not in group.gr_mem and group.gr_gid != primary:
                missing.append(name)
    return missing


def _closed_kvm() -> bool:
    info = host_cpu.parse(host_cpu.read_text(str(host_cpu.LOCAL)))
    return info.flag is not None and host_kvm.look(Root()).openable is False


def _network(hypervisor: Hypervisor) -> Thing:
    with translated(hypervisor.uri):
        names = {network.name(): network for network in hypervisor.conn.listAllNetworks(0)}
    found = names.get("default")
    if found is None:
        return "missing"
    return _state(hypervisor, found)


def _pool(hypervisor: Hypervisor) -> Thing:
    found = pools.find_pool(hypervisor, pools.DEFAULT)
    return "missing" if found is None else _state(hypervisor, found)


def _state(hypervisor: Hypervisor, found: libvirt.virNetwork | libvirt.virStoragePool) -> Thing:
    with translated(hypervisor.uri):
        if not found.isActive():
            return "inactive"
        if found.isPersistent() and not found.autostart():
            return "by-hand"
    return "ready"


def make_network(hypervisor: Hypervisor) -> str:
    """Make, start and autostart the network ``default``; what was done, in words."""
    if _network(hypervisor) == "missing":
        made = networks.create(hypervisor, networks.plan(hypervisor, networks.Request("default")))
        return f"made, {made['subnet']}"
    network = networks.find(hypervisor, "default")
    with translated(hypervisor.uri):
        if not network.isActive():
            network.create()
        if network.isPersistent():
            network.setAutostart(1)
    return "started, autostart"


def make_pool(hypervisor: Hypervisor) -> str:
    """Make, start and autostart the pool ``default``; where it is, in words."""
    pool = pools.default_pool(hypervisor)
    with translated(hypervisor.uri):
        if pool.isPersistent():
            pool.setAutostart(1)
        return f"{pool.name()} is active, at {pools.target_path(pool)}"
