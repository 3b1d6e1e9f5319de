"""What libvirt says of itself and of what guests get from it. Works the same over a remote URI."""

import grp
import os
import pwd
from collections.abc import Callable

import libvirt

from kvmctl.connection import Hypervisor, is_missing
from kvmctl.model import xml
from kvmctl.model.capabilities import Capabilities, GuestArch
from kvmctl.model.names import harmless
from kvmctl.preflight.check import Check

# libvirt's names for the usual machine type of an architecture; where it is not known QEMU's default is asked.
_MACHINES = {"x86_64": "q35", "aarch64": "virt", "riscv64": "virt"}


def checks(hypervisor: Hypervisor, found: Capabilities) -> list[Check]:
    """Everything that libvirt is asked, each check with libvirt's own words where it fails to answer."""
    return [
        reached(hypervisor),
        version(hypervisor),
        emulators(hypervisor, found),
        *_from_domain_capabilities(hypervisor, found),
        _asked("network-default", default_network, hypervisor),
        _asked("pool-default", default_pool, hypervisor),
    ]


def _asked(name: str, look: Callable[[Hypervisor], Check], hypervisor: Hypervisor) -> Check:
    try:
        return look(hypervisor)
    except libvirt.libvirtError as error:
        return Check(name, "unknown", f"libvirt does not say: {_words(error)}")


def _words(error: libvirt.libvirtError) -> str:
    return harmless(" ".join((error.get_error_message() or str(error)).split()))


def reached(hypervisor: Hypervisor) -> Check:
    """``libvirt``: where the connection leads and with which rights."""
    if hypervisor.is_session:
        rights = "as this user (session): user networking only, no bridges, no PCI devices"
    else:
        rights = "for reading and writing"
    return Check("libvirt", "ok", f"{hypervisor.uri} reached, {rights}")


def version(hypervisor: Hypervisor) -> Check:
    """``libvirt-version``: of libvirt there and of its hypervisor."""
    try:
        conn = hypervisor.conn
        kind = conn.getType()
        words = f"libvirt {dotted(conn.getLibVersion())}, {kind} {dotted(conn.getVersion())}"
    except libvirt.libvirtError as error:
        return Check("libvirt-version", "warn", f"libvirt does not say: {_words(error)}", "install QEMU there")
    if kind != "QEMU":
        return Check("libvirt-version", "fail", f"{words}: kvmctl runs QEMU guests only", "use -c qemu:///system")
    return Check("libvirt-version", "ok", words)


def dotted(number: int) -> str:
    """libvirt's 1000000 * major + 1000 * minor + release as ``major.minor.release``."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def emulators(hypervisor: Hypervisor, found: Capabilities) -> Check:
    """``emulators``: the architectures that guests may have, and with which accelerators."""
    if not found.guests:
        return Check(
            "emulators",
            "fail",
            f"{hypervisor.uri} has no QEMU at all",
            "apt-get install qemu-system-x86 (Fedora: dnf install qemu-kvm), then start libvirtd anew",
        )
    own = found.guest()
    said = ", ".join(f"{guest.arch} ({_types(guest)})" for guest in found.guests)
    if own is None:
        return Check(
            "emulators",
            "warn",
            f"{said}; none for {found.host_arch}, the host's own architecture",
            "apt-get install qemu-system (Fedora: dnf install qemu-kvm), then start libvirtd anew",
        )
    return Check("emulators", "ok", said)


def _types(guest: GuestArch) -> str:
    names = {"qemu": "tcg"}
    return ", ".join(sorted(names.get(name, name) for name in guest.virt_types)) or "-"


def _from_domain_capabilities(hypervisor: Hypervisor, found: Capabilities) -> list[Check]:
    guest = found.guest() or next(iter(found.guests), None)
    if guest is None:
        return []
    machine = _MACHINES.get(guest.arch)
    virt = "kvm" if "kvm" in guest.virt_types else "qemu"
    try:
        text = hypervisor.conn.getDomainCapabilities(
            guest.emulator, guest.arch, machine if machine in guest.machines else None, virt, 0
        )
    except libvirt.libvirtError as error:
        detail = f"libvirt does not say: {_words(error)}"
        return [Check("uefi", "unknown", detail), Check("tpm", "unknown", detail)]
    root = xml.parse(text, "domain capabilities", "domainCapabilities")
    return [uefi(root), tpm(root)]


def uefi(domain_capabilities: xml.Element) -> Check:
    """``uefi``: whether guests may boot by UEFI, and with secure boot."""
    os_ = domain_capabilities.find("os[@supported='yes']")
    firmwares = _values(os_, "enum[@name='firmware']/value")
    loaders = _values(os_, "loader[@supported='yes']/value")
    secure = "yes" in _values(os_, "loader/enum[@name='secure']/value")
    if "efi" not in firmwares:
        return Check(
            "uefi",
            "warn",
            "no UEFI firmware: guests boot by BIOS only",
            "apt-get install ovmf (Fedora: dnf install edk2-ovmf); 'kvmctl host setup' does",
        )
    where = f" ({', '.join(loaders)})" if loaders else ""
    if not secure:
        return Check("uefi", "ok", f"yes, without secure boot{where}", "for secure boot install a newer ovmf")
    return Check("uefi", "ok", f"yes, with secure boot{where}")


def tpm(domain_capabilities: xml.Element) -> Check:
    """``tpm``: whether guests may have an emulated TPM (swtpm)."""
    found = domain_capabilities.find("devices/tpm[@supported='yes']")
    if "emulator" not in _values(found, "enum[@name='backendModel']/value"):
        return Check(
            "tpm",
            "warn",
            "no swtpm: guests get no TPM, which Windows 11 insists on",
            "apt-get install swtpm swtpm-tools (Fedora: dnf install swtpm swtpm-tools); 'kvmctl host setup' does",
        )
    versions = " and ".join(_values(found, "enum[@name='backendVersion']/value"))
    return Check("tpm", "ok", f"swtpm{f', TPM {versions}' if versions else ''}")


def _values(element: xml.Element | None, path: str) -> list[str]:
    if element is None:
        return []
    return [harmless(item.text.strip()) for item in element.iterfind(path) if item.text]


def default_network(hypervisor: Hypervisor) -> Check:
    """``network-default``: libvirt's NAT network, which ``--net nat`` uses."""
    name = "network-default"
    if hypervisor.is_session:
        return Check(name, "ok", "does not apply to a session, whose guests use user networking")
    try:
        network = hypervisor.conn.networkLookupByName("default")
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise
        return Check(name, "warn", "there is no network named default", "kvmctl host setup (on that machine)")
    if not network.isActive():
        return Check(
            name, "warn", "default is defined and not started", "kvmctl net start default, or 'kvmctl host setup'"
        )
    if not network.autostart():
        return Check(
            name,
            "warn",
            f"default is active ({_bridge(network)}), but not started with the host",
            "virsh net-autostart default, or 'kvmctl host setup'",
        )
    return Check(name, "ok", f"default is active ({_bridge(network)}), autostart")


def _bridge(network: libvirt.virNetwork) -> str:
    try:
        return harmless(network.bridgeName())
    except libvirt.libvirtError:
        return "no bridge"


def default_pool(hypervisor: Hypervisor) -> Check:
    """``pool-default``: the storage pool that disks go to unless another is named."""
    name = "pool-default"
    try:
        pool = hypervisor.conn.storagePoolLookupByName("default")
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise
        return Check(name, "ok", "there is no storage pool named default yet: 'kvmctl create' makes it")
    path = xml.parse(pool.XMLDesc(0), "storage pool").findtext("target/path") or "-"
    if not pool.isActive():
        return Check(name, "warn", f"default ({harmless(path)}) is not started", "virsh pool-start default")
    _state, _capacity, _allocation, available = pool.info()
    free = f"{available / 2**30:.1f} GiB free"
    if not pool.autostart():
        return Check(
            name,
            "warn",
            f"default is active ({harmless(path)}, {free}), but not started with the host",
            "virsh pool-autostart default, or 'kvmctl host setup'",
        )
    return Check(name, "ok", f"default is active ({harmless(path)}, {free}), autostart")


def user_groups(hypervisor: Hypervisor | None, needs_kvm: bool) -> Check:
    """``user-groups``: whether this user is in the groups that open libvirt's socket and /dev/kvm."""
    user = current_user()
    if os.geteuid() == 0:
        return Check("user-groups", "ok", "root needs none")
    wanted = ["libvirt", *(["kvm"] if needs_kvm else [])]
    there = [name for name in wanted if _group(name) is not None]
    process = {_name_of(gid) for gid in {os.getgid(), *os.getgroups()}}
    missing = [name for name in there if name not in process]
    if not missing:
        return Check("user-groups", "ok", f"{user} is in {', '.join(there)}" if there else "no such groups here")
    recorded = [name for name in missing if user in (_group(name) or [])]
    if recorded == missing:
        return Check(
            "user-groups",
            "warn",
            f"{user} was added to {', '.join(missing)}, but this login began before",
            "log out and in again (or: newgrp libvirt)",
        )
    detail = f"{user} is not in {', '.join(missing)}"
    if hypervisor is not None and not hypervisor.is_session and "kvm" not in missing:
        return Check("user-groups", "ok", f"{detail}, and gets in all the same")
    return Check(
        "user-groups",
        "warn",
        detail,
        f"sudo usermod -aG {','.join(missing)} {user}, then log in anew ('sudo kvmctl host setup' does it)",
    )


def current_user() -> str:
    """The name of the user this process runs as, or the number where it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group(name: str) -> list[str] | None:
    try:
        return grp.getgrnam(name).gr_mem
    except KeyError:
        return None


def _name_of(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
