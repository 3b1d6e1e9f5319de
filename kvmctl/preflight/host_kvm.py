"""What the machine's devices and modules say about KVM, apart from what the CPU says.

The ioctl numbers and the API version are those of Linux's include/uapi/linux/kvm.h.
"""

import errno
import fcntl
import os
import stat
from dataclasses import dataclass, replace
from typing import Literal

from kvmctl.preflight.check import Check
from kvmctl.preflight.host_cpu import CpuInfo
from kvmctl.preflight.host_root import Root

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_API_VERSION = 12  # the only one since Linux 2.6.22

DEVICE = "dev/kvm"
# What udev's own rule does where udev runs.
LET_IN = ("chgrp kvm /dev/kvm", "chmod 660 /dev/kvm")
ROOTS_ALONE = (
    "/dev/kvm lets in root alone: guests run as another user, and libvirt, which can open what they cannot, "
    "starts every emulator anew whenever it is asked what it can do"
)
_INTEL_OR_AMD = {"vmx": "kvm_intel", "svm": "kvm_amd"}


@dataclass(frozen=True)
class Device:
    """/dev/kvm. ``openable`` and ``creates`` are None where that was not tried; ``reason`` says why not.

    ``roots_alone``: it belongs to root, and its mode lets nobody else in.
    """

    present: bool | None
    openable: bool | None = None
    creates: bool | None = None
    reason: str | None = None
    error: int | None = None
    roots_alone: bool = False

    @property
    def usable(self) -> bool:
        """Whether nothing that was seen speaks against it."""
        return self.present is not False and self.openable is not False and self.creates is not False


def look(root: Root) -> Device:
    """Look at /dev/kvm, and on the running machine make a VM with it (which is gone again at once)."""
    if not root.is_running:
        return _look_at_copy(root)
    try:
        device = os.open("/" + DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        present = error.errno not in (errno.ENOENT, errno.ENOTDIR)
        return Device(present, openable=False if present else None, reason=error.strerror, error=error.errno)
    try:
        seen = os.fstat(device)
        alone = seen.st_uid == 0 and not seen.st_mode & (stat.S_IRGRP | stat.S_IROTH)
        return replace(_try(device), roots_alone=alone)
    finally:
        os.close(device)


def _try(device: int) -> Device:
    try:
        version = fcntl.ioctl(device, KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            return Device(True, True, False, f"its API version is {version}, not {KVM_API_VERSION}")
        os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError as error:
        return Device(True, True, False, error.strerror, error.errno)
    return Device(True, True, True)


def _look_at_copy(root: Root) -> Device:
    reason = "not tried on a copy"
    if root.exists("dev"):
        return Device(root.exists(DEVICE), reason=reason)
    # A copy of /proc and /sys alone: the driver's own entry says whether it is there.
    if root.exists("sys/class/misc"):
        return Device(root.exists("sys/class/misc/kvm"), reason=reason)
    return Device(None, reason="neither /dev nor /sys/class/misc is in the copy")


def device_checks(device: Device, info: CpuInfo, root: Root) -> list[Check]:
    """``kvm-device``, ``kvm-open`` and ``kvm-create-vm``."""
    if device.present is None:
        return [Check("kvm-device", "unknown", device.reason or "not seen")]
    if not device.present:
        return [Check("kvm-device", "warn", "/dev/kvm is not there", _load(info, root))]
    checks = [Check("kvm-device", "ok", "/dev/kvm is there")]
    if device.roots_alone:
        checks.append(Check("kvm-access", "warn", ROOTS_ALONE, f"{'; '.join(LET_IN)} ('kvmctl host setup' does it)"))
    if device.openable is None:
        return [*checks, Check("kvm-open", "unknown", device.reason or "not tried")]
    if not device.openable:
        return [*checks, Check("kvm-open", "warn", f"/dev/kvm does not open: {device.reason}", _allow(device))]
    checks.append(Check("kvm-open", "ok", "this user opens /dev/kvm for reading and writing"))
    if device.creates:
        return [*checks, Check("kvm-create-vm", "ok", "/dev/kvm made a VM (KVM_CREATE_VM)")]
    return [
        *checks,
        Check(
            "kvm-create-vm",
            "warn",
            f"/dev/kvm makes no VM: {device.reason}",
            "another hypervisor may hold the CPU (VirtualBox, VMware): end it; 'dmesg | grep -i kvm' says more",
        ),
    ]


def _load(info: CpuInfo, root: Root) -> str:
    if info.flag is not None:
        module = _INTEL_OR_AMD[info.flag]
        if container(root):
            return "give the container the device (docker run --device /dev/kvm, or the like)"
        return (
            f"modprobe {module} ('kvmctl host setup' does); if that fails, virtualization is locked in the "
            "firmware setup"
        )
    if info.other_arch:
        return "modprobe kvm; if that fails, the firmware or the outer hypervisor keeps the CPU's EL2 or its like"
    return "the CPU flag comes first, see cpu-flag"


def _allow(device: Device) -> str:
    if device.error in (errno.EACCES, errno.EPERM):
        if os.geteuid() == 0:
            return "this looks like a container without the device: allow it there (docker run --device /dev/kvm)"
        return "sudo usermod -aG kvm $USER, then log in anew ('sudo kvmctl host setup' does it)"
    if device.error == errno.EBUSY:
        return "another hypervisor (VirtualBox, VMware) uses the CPU: end it"
    return "modprobe kvm_intel or kvm_amd; 'dmesg | grep -i kvm' says more"


def contradiction(device: Device, info: CpuInfo, root: Root) -> Check | None:
    """``kvm-evidence``: a check where the CPU and the device say different things, else None."""
    if info.flag is None and not info.other_arch and device.present:
        what = "makes VMs" if device.creates else "opens" if device.openable else "is there"
        others = [name for name in root.names("sys/module") if name.startswith("kvm_") and name not in _BY_HARDWARE]
        by = f" by the module {', '.join(others)}" if others else " by something other than the CPU"
        return Check(
            "kvm-evidence",
            "warn",
            f"/dev/kvm {what}, yet no processor has vmx or svm: it is served{by}, without the CPU's "
            "virtualization; ordinary guests are known to hang under such a KVM, so kvmctl uses TCG",
            "nothing to do for TCG guests; for KVM use a machine (or VM with nested virtualization) that has the flag",
        )
    if info.flag is not None and device.present is False:
        return Check(
            "kvm-evidence",
            "warn",
            f"the CPU has {info.flag}, yet /dev/kvm is not there: its module is not loaded, locked by the "
            "firmware, or this is a container",
            _load(info, root),
        )
    return None


_BY_HARDWARE = ("kvm_intel", "kvm_amd", "kvm_hv", "kvm_pr")


def nested(info: CpuInfo, root: Root) -> Check:
    """``nested``: whether guests may themselves be KVM hosts."""
    for module in ("kvm_intel", "kvm_amd"):
        value = root.text(f"sys/module/{module}/parameters/nested")
        if value is None:
            continue
        if value in ("Y", "y", "1"):
            return Check("nested", "ok", f"{module} lets guests run KVM guests of their own")
        return Check(
            "nested",
            "ok",
            f"off in {module}: guests cannot run KVM guests of their own",
            f"if they shall: echo 'options {module} nested=1' > /etc/modprobe.d/kvm.conf, and load {module} anew",
        )
    if info.flag is None:
        return Check("nested", "unknown", "does not apply without the CPU's own virtualization")
    return Check("nested", "unknown", f"{_INTEL_OR_AMD[info.flag]} is not loaded")


# The process namespace that a kernel starts with (PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h).
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def container(root: Root) -> str | None:
    """Which kind of container this is, or None."""
    if root.link("proc/self/ns/pid") == _FIRST_PID_NAMESPACE:
        # Not one, though a machine made from a container's image may still carry its marks.
        return None
    if root.exists("run/.containerenv"):
        return "podman"
    if root.exists(".dockerenv"):
        return "docker"
    named = root.text("run/systemd/container") or root.text("run/host/container-manager")
    return named[:40] if named else None


# What lets a container run guests and networks of libvirt's, in the words of the program that starts it.
_GIVEN = {
    "systemd-nspawn": "--private-network --bind=/dev/net/tun --bind=/dev/kvm --property='DeviceAllow=/dev/kvm rw'",
}
_GIVEN_ELSE = "--device /dev/kvm --device /dev/net/tun --cap-add NET_ADMIN"


def container_check(root: Root) -> Check | None:
    """``container``: a warning inside of one, else None."""
    kind = container(root)
    if kind is None:
        return None
    return Check(
        "container",
        "warn",
        f"this is a {kind} container: its devices, modules and cgroups are the outer machine's to give",
        f"give it {_GIVEN.get(kind, _GIVEN_ELSE)}, or run kvmctl on the machine itself",
    )


Accel = Literal["kvm", "tcg"]


def accel(device: Device, info: CpuInfo) -> Accel:
    """kvm only where the CPU has the flag and nothing seen of /dev/kvm speaks against it."""
    return "kvm" if info.flag is not None and device.usable else "tcg"
