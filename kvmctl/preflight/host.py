"""``host check``: everything a host needs to run guests, looked at from where kvmctl runs.

Four judges, one answer: a cpuinfo text alone, a copy of a machine's /proc and /sys, the machine kvmctl
runs on, and a machine that only libvirt's words tell of.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, leads_elsewhere, translated
from kvmctl.errors import ConnectionFailed, KvmctlError, NotFound
from kvmctl.model import capabilities, xml
from kvmctl.model.capabilities import Capabilities
from kvmctl.model.network import from_element
from kvmctl.preflight import accel as accelerators
from kvmctl.preflight import host_cpu, host_firewall, host_kernel, host_kvm, host_libvirt, host_remote
from kvmctl.preflight.accel import Accel
from kvmctl.preflight.check import Check, worst
from kvmctl.preflight.host_cpu import CpuInfo
from kvmctl.preflight.host_root import Root


@dataclass(frozen=True)
class HostReport:
    """What a host is good for: ``accel`` is what guests run with, ``uri`` None where no libvirt was asked."""

    accel: Accel
    cpu: dict[str, str | None]
    checks: tuple[Check, ...]
    uri: str | None = None

    @property
    def verdict(self) -> Literal["ok", "warn", "fail"]:
        """``fail``: no guest can run; ``warn``: guests run, but; ``ok``."""
        found = worst(self.checks)
        return "fail" if found == "refused" else found

    def as_dict(self) -> dict[str, Any]:
        """``{"verdict", "accel", "cpu": {"vendor", "model", "flag"}, "checks": […]}``, each as Check.as_dict()."""
        return {
            "verdict": self.verdict,
            "accel": self.accel,
            "cpu": self.cpu,
            "checks": [check.as_dict() for check in self.checks],
        }


def of_cpuinfo(text: str) -> HostReport:
    """Judge a cpuinfo text alone: ``fail`` where no processor in it has vmx or svm."""
    info = host_cpu.parse(text)
    return HostReport("kvm" if info.flag else "tcg", info.as_dict(), (host_cpu.check(info),))


def of_root(root: Root) -> HostReport:
    """Judge a copy of a machine's /proc, /sys and /dev; libvirt and the network are out of its reach.

    Raises NotFound where it has no proc/cpuinfo.
    """
    text = root.cpuinfo()
    if text is None:
        raise NotFound(f"{root.top} has no proc/cpuinfo", "--root takes a directory that holds proc/ and sys/")
    info = host_cpu.parse(text)
    device = host_kvm.look(root)
    checks = [
        *_kvm_checks(info, device, root),
        *host_kernel.checks(info, root),
        Check("libvirt", "unknown", "not asked: --root judges files only"),
    ]
    accel = host_kvm.accel(device, info)
    return HostReport(accel, info.as_dict(), (*checks, _accel_check(accel, _files_reason(info, device))))


def of_connection(connect: Callable[[bool], Hypervisor], uri: str | None) -> HostReport:
    """Judge the host that ``connect`` leads to; ``uri`` is the one it will use, where one is set.

    ``connect`` takes whether to ask for reading only. Raises ConnectionFailed where another machine is not
    reached: nothing can be judged then, while of this one there is much to say without libvirt.
    """
    try:
        hypervisor = connect(False)
        found = _capabilities(hypervisor)
    except ConnectionFailed as error:
        if uri is not None and leads_elsewhere(uri):
            raise
        return _without_libvirt(error, connect)
    return of_remote(hypervisor, found) if hypervisor.is_remote else of_here(hypervisor, found)


def of_here(hypervisor: Hypervisor, found: Capabilities) -> HostReport:
    """Judge the machine kvmctl runs on and the libvirt there."""
    root, info, device = _this_machine()
    checks = _kvm_checks(info, device, root)
    if device.present and device.openable is False and _serves_kvm(hypervisor, found):
        checks = [_served_by_libvirtd(check) if check.name == "kvm-open" else check for check in checks]
        device = replace(device, openable=None)
    libvirt_checks = host_libvirt.checks(hypervisor, found)
    choice, reason = _accelerator(hypervisor, found, info, device)
    checks += [
        *host_kernel.checks(info, root),
        *libvirt_checks,
        host_libvirt.user_groups(hypervisor, needs_kvm=hypervisor.is_session and info.flag is not None),
        host_firewall.check(root, _forwards(hypervisor), hypervisor.is_session),
        _accel_check(choice, reason),
    ]
    return HostReport(choice, info.as_dict(), tuple(checks), hypervisor.uri)


def _this_machine() -> tuple[Root, CpuInfo, host_kvm.Device]:
    root = Root()
    return root, host_cpu.parse(host_cpu.read_text(str(host_cpu.LOCAL))), host_kvm.look(root)


def of_remote(hypervisor: Hypervisor, found: Capabilities) -> HostReport:
    """Judge the host of ``hypervisor`` by what its libvirt says; what that cannot tell is ``unknown``."""
    flag = accelerators.remote_flag(hypervisor, found)
    guest = found.guest()
    if guest is None:
        choice: Accel = "tcg"
        reason = "there is no emulator for the host's own architecture"
    else:
        obstacle = accelerators.kvm_obstacle(hypervisor, found, guest)
        choice, reason = ("kvm", _GOOD) if obstacle is None else ("tcg", obstacle)
    checks = [
        *host_remote.hardware(hypervisor, found, flag),
        *host_libvirt.checks(hypervisor, found),
        *host_remote.unseen(),
        _accel_check(choice, reason),
    ]
    return HostReport(choice, host_remote.cpu(found, flag), tuple(checks), hypervisor.uri)


_GOOD = "the CPU can virtualize and libvirt offers KVM"


def _capabilities(hypervisor: Hypervisor) -> Capabilities:
    with translated(hypervisor.uri):
        return capabilities.read(hypervisor.conn.getCapabilities())


def _kvm_checks(info: CpuInfo, device: host_kvm.Device, root: Root) -> list[Check]:
    """The CPU's word, then the device's, then where the two disagree."""
    flag = host_cpu.check(info)
    if flag.level == "fail":
        # Without it guests still run, emulated.
        flag = flag._replace(level="warn")
    checks = [flag, *host_kvm.device_checks(device, info, root)]
    checks += [check for check in (host_kvm.contradiction(device, info, root),) if check is not None]
    checks.append(host_kvm.nested(info, root))
    checks += [check for check in (host_kvm.container_check(root),) if check is not None]
    return checks


def _without_libvirt(error: ConnectionFailed, connect: Callable[[bool], Hypervisor]) -> HostReport:
    root, info, device = _this_machine()
    libvirt_checks = [Check("libvirt", "fail", error.message, error.hint or "kvmctl host setup")]
    uri = None
    with contextlib.suppress(KvmctlError):
        # Reading may be allowed where writing is not: that is no missing libvirt but missing rights.
        hypervisor = connect(True)
        uri = hypervisor.uri
        libvirt_checks = [
            Check(
                "libvirt",
                "fail",
                f"{uri} lets this user read only, so no guest can be made",
                f"sudo usermod -aG libvirt {host_libvirt.current_user()}, then log in anew",
            ),
            *host_libvirt.checks(hypervisor, _capabilities(hypervisor))[1:],
        ]
    choice = host_kvm.accel(device, info)
    checks = [
        *_kvm_checks(info, device, root),
        *host_kernel.checks(info, root),
        *libvirt_checks,
        host_libvirt.user_groups(None, needs_kvm=info.flag is not None),
        _accel_check(choice, _files_reason(info, device)),
    ]
    return HostReport(choice, info.as_dict(), tuple(checks), uri)


def _accelerator(
    hypervisor: Hypervisor, found: Capabilities, info: CpuInfo, device: host_kvm.Device
) -> tuple[Accel, str]:
    guest = found.guest()
    if guest is None:
        return "tcg", "there is no emulator for the host's own architecture"
    obstacle = accelerators.kvm_obstacle(hypervisor, found, guest)
    if obstacle is not None:
        return "tcg", obstacle
    accel = host_kvm.accel(device, info)
    return accel, _GOOD if accel == "kvm" else _files_reason(info, device)


def _files_reason(info: CpuInfo, device: host_kvm.Device) -> str:
    if info.other_arch:
        return f"no CPU flag speaks for KVM on {info.other_arch} (--accel kvm uses it where libvirt offers it)"
    if info.flag is None:
        return "the CPU has neither vmx nor svm"
    if device.present is False:
        return f"the CPU has {info.flag}, but /dev/kvm is not there"
    if not device.usable:
        return f"the CPU has {info.flag}, but /dev/kvm cannot be used: {device.reason}"
    return f"the CPU has {info.flag}, and nothing that was seen keeps /dev/kvm from use"


def _accel_check(accel: Accel, reason: str) -> Check:
    if accel == "kvm":
        return Check("accel", "ok", f"kvm: {reason}")
    return Check("accel", "warn", f"tcg: {reason}; guests run, emulated and several times slower")


def _serves_kvm(hypervisor: Hypervisor, found: Capabilities) -> bool:
    guest = found.guest()
    return not hypervisor.is_session and guest is not None and "kvm" in guest.virt_types


def _served_by_libvirtd(check: Check) -> Check:
    return Check("kvm-open", "ok", f"{check.detail} for this user; the system libvirt opens it for its guests")


def _forwards(hypervisor: Hypervisor) -> bool:
    """Whether a network runs whose guests' packets this host forwards."""
    try:
        running = hypervisor.conn.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
        modes = {from_element(xml.parse(network.XMLDesc(0), "network")).mode for network in running}
    except libvirt.libvirtError:
        # Nobody can say: what is off may be off for a reason.
        return False
    return not modes.isdisjoint(("nat", "route", "open"))
