"""What the kernel offers to guests besides KVM: IOMMU, vhost-net, tun, huge pages, cgroups, KSM."""

import errno
import os
import re

from kvmctl.model.units import human_size
from kvmctl.preflight.check import Check
from kvmctl.preflight.host_cpu import CpuInfo
from kvmctl.preflight.host_root import Root

# The controllers that libvirt limits and counts guests with (its virCgroupController).
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "blkio", "pids")
# cgroup v2 counts CPU time without a controller, names blkio "io" and filters devices by eBPF.
V2_CONTROLLERS = ("cpu", "cpuset", "memory", "io", "pids")


def checks(info: CpuInfo, root: Root) -> list[Check]:
    """All of this file, in the order people read them."""
    return [
        iommu(info, root),
        iommu_groups(root),
        device(root, "vhost-net", "dev/vhost-net", "vhost_net", "virtio network cards are served by QEMU, slower"),
        device(root, "tun", "dev/net/tun", "tun", "guests get no tap devices: only user networking and macvtap"),
        hugepages(root),
        cgroups(root),
        ksm(root),
    ]


def iommu(info: CpuInfo, root: Root) -> Check:
    """``iommu``: whether it is on, and what keeps it off."""
    units = root.names("sys/class/iommu")
    words = (root.text("proc/cmdline") or "").split()
    given = [word for word in words if re.match(r"(intel_iommu|amd_iommu|iommu|arm-smmu\S*)=", word)]
    said = f"; kernel command line: {' '.join(given)}" if given else ""
    if units:
        return Check("iommu", "ok", f"on: {_several(units)}{said}")
    if not root.exists("sys/class"):
        return Check("iommu", "unknown", "no /sys/class here")
    seen = f"off{said}; needed only to pass PCI devices to guests"
    tables = [name for name in ("DMAR", "IVRS", "IORT") if root.exists(f"sys/firmware/acpi/tables/{name}")]
    if tables and not any(word.endswith("=off") for word in given):
        amd = "IVRS" in tables
        option = "amd_iommu=on" if amd else "intel_iommu=on"
        return Check(
            "iommu",
            "warn",
            f"{seen} (the firmware has one: ACPI table {tables[0]})",
            f"add {option} iommu=pt to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub (Fedora: "
            f"grubby --update-kernel=ALL --args='{option} iommu=pt') and boot again",
        )
    if tables:
        return Check("iommu", "warn", seen, "remove that option from the kernel command line and boot again")
    if info.hypervisor:
        hint = "this is a VM: give it a virtual IOMMU on the machine it runs on (<iommu model='intel'/>)"
    else:
        hint = "switch on VT-d (Intel) or IOMMU (AMD) in the firmware setup, and intel_iommu=on for the kernel"
    return Check("iommu", "warn", seen, hint)


def iommu_groups(root: Root) -> Check:
    """``iommu-groups``: how many there are."""
    if not root.exists("sys/kernel/iommu_groups"):
        return Check("iommu-groups", "unknown", "no /sys/kernel/iommu_groups here")
    count = len(root.names("sys/kernel/iommu_groups"))
    if count == 0:
        return Check("iommu-groups", "warn", "none: no PCI device can be passed to a guest", "see iommu")
    return Check("iommu-groups", "ok", f"{count} ('kvmctl pci list' shows who is in which)")


def device(root: Root, name: str, path: str, module: str, without: str) -> Check:
    """One device file with its module; ``without`` says what is lost where it is missing."""
    if not root.exists("dev") and not root.exists("sys/module"):
        return Check(name, "unknown", "neither /dev nor /sys/module here")
    if not root.exists(path):
        if not root.exists("dev") and root.exists(f"sys/module/{module}"):
            return Check(name, "ok", f"the module {module} is loaded")
        return Check(name, "warn", f"/{path} is not there: {without}", f"modprobe {module} ('kvmctl host setup' does)")
    if root.is_running and name == "vhost-net":
        failed = _opening("/" + path)
        # The file is made before its module is: opening loads it, and fails where the kernel has none.
        if failed in (errno.ENODEV, errno.ENXIO, errno.ENOENT):
            return Check(name, "warn", f"/{path} does not open: {os.strerror(failed)}; {without}", f"modprobe {module}")
    return Check(name, "ok", f"/{path} is there")


def _opening(path: str) -> int | None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno
    return None


def hugepages(root: Root) -> Check:
    """``hugepages``: those reserved, by size. None is not a fault: they are for who wants them."""
    base = "sys/kernel/mm/hugepages"
    pools = []
    for name in root.names(base):
        match = re.fullmatch(r"hugepages-(\d{1,12})kB", name)
        if match:
            total = root.number(f"{base}/{name}/nr_hugepages") or 0
            free = root.number(f"{base}/{name}/free_hugepages") or 0
            pools.append((int(match[1]) * 1024, total, free))
    if not pools:
        return Check("hugepages", "unknown" if not root.exists("sys/kernel/mm") else "ok", "this kernel has none")
    pools.sort()
    reserved = [f"{total} of {human_size(size)} ({free} free)" for size, total, free in pools if total]
    thp = re.search(r"\[(\w+)\]", root.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    also = f"; transparent huge pages: {thp[1]}" if thp else ""
    if not reserved:
        sizes = ", ".join(human_size(size) for size, _total, _free in pools)
        return Check("hugepages", "ok", f"none reserved (sizes: {sizes}){also}", "to reserve: sysctl vm.nr_hugepages=N")
    return Check("hugepages", "ok", f"reserved: {', '.join(reserved)}{also}")


# What qemu.conf of libvirt says to have no control groups used.
NO_CGROUPS = "cgroup_controllers = [ ]"


def cgroups(root: Root) -> Check:
    """``cgroups``: the controllers that libvirt limits guests with, version 1 or 2."""
    if cgroups_for_reading(root):
        return Check(
            "cgroups",
            "warn",
            "mounted for reading only, as in many containers: the system's libvirt starts no guest with them",
            f"give the container control groups of its own, or have libvirt use none ('kvmctl host setup' does): "
            f"echo '{NO_CGROUPS}' >> /etc/libvirt/qemu.conf, and restart libvirtd",
        )
    v2 = root.text("sys/fs/cgroup/cgroup.controllers")
    if v2 is not None:
        return _controllers("v2", set(v2.split()), V2_CONTROLLERS)
    found = _mounted_v1(root)
    if found:
        return _controllers("v1", found, CONTROLLERS)
    if not root.exists("proc/mounts") and not root.exists("proc/self/mounts"):
        return Check("cgroups", "unknown", "neither cgroup v2 nor a list of mounts here")
    return Check(
        "cgroups",
        "warn",
        "no cgroup controllers are mounted: guests run, but nothing limits or counts their CPU and memory",
        "mount -t cgroup2 none /sys/fs/cgroup",
    )


def cgroups_for_reading(root: Root) -> bool:
    """Whether libvirt's control groups are mounted read-only, and libvirt is not told to do without."""
    if re.search(r"^\s*cgroup_controllers\s*=\s*\[\s*\]", root.text("etc/libvirt/qemu.conf") or "", re.MULTILINE):
        return False
    # Beside version 1, version 2 has no controllers: only where it has the folder for itself does libvirt use it.
    return any(
        "ro" in options and (options & set(CONTROLLERS) if kind == "cgroup" else folder == "/sys/fs/cgroup")
        for folder, kind, options in _mounted(root)
    )


def _controllers(version: str, found: set[str], wanted: tuple[str, ...]) -> Check:
    missing = [name for name in wanted if name not in found]
    present = ", ".join(name for name in wanted if name in found) or "none"
    if not missing:
        return Check("cgroups", "ok", f"{version}: {present}")
    return Check(
        "cgroups",
        "warn",
        f"{version}: {present}; missing: {', '.join(missing)} (limits of that kind do not work)",
        "look for cgroup_disable= on the kernel command line; on v2 see /sys/fs/cgroup/cgroup.subtree_control",
    )


def _mounted_v1(root: Root) -> set[str]:
    options: set[str] = set()
    for _folder, kind, more in _mounted(root):
        if kind == "cgroup":
            options |= more
    return options & set(CONTROLLERS)


def _mounted(root: Root) -> list[tuple[str, str, set[str]]]:
    """The mounted control groups: folder, kind (cgroup or cgroup2), options."""
    mounts = root.text("proc/self/mounts") or root.text("proc/mounts") or ""
    fields = [line.split() for line in mounts.splitlines()]
    return [(f[1], f[2], set(f[3].split(","))) for f in fields if len(f) >= 4 and f[2] in ("cgroup", "cgroup2")]


def ksm(root: Root) -> Check:
    """``ksm``: whether the kernel merges equal pages of guests, and what that saves."""
    run = root.number("sys/kernel/mm/ksm/run")
    if run is None:
        return Check("ksm", "unknown", "this kernel has no KSM, or /sys is not readable")
    if run != 1:
        return Check("ksm", "ok", "off: equal pages of guests are not merged", "echo 1 > /sys/kernel/mm/ksm/run")
    saved = (root.number("sys/kernel/mm/ksm/pages_sharing") or 0) * os.sysconf("SC_PAGE_SIZE")
    return Check("ksm", "ok", f"on; saves {human_size(saved)}")


def _several(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
