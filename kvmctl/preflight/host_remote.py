"""A host that kvmctl does not run on, judged by what its libvirt says of it."""

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.model.capabilities import Capabilities
from kvmctl.model.names import harmless
from kvmctl.model.units import human_size
from kvmctl.preflight.check import Check
from kvmctl.preflight.host_cpu import Flag

# libvirt's words for CPU vendors, and the vendor_id that the same CPU has in /proc/cpuinfo.
_VENDOR_IDS = {"Intel": "GenuineIntel", "AMD": "AuthenticAMD", "Hygon": "HygonGenuine"}
_X86 = ("x86_64", "i686")


def cpu(found: Capabilities, flag: Flag | None) -> dict[str, str | None]:
    """``{"vendor", "model", "flag"}``; the model is libvirt's name for it."""
    vendor = found.cpu_vendor
    return {
        "vendor": harmless(_VENDOR_IDS.get(vendor, vendor)) if vendor else None,
        "model": harmless(found.cpu_model) if found.cpu_model else None,
        "flag": flag,
    }


def hardware(hypervisor: Hypervisor, found: Capabilities, flag: Flag | None) -> list[Check]:
    """What corresponds to the CPU's, the device's and the kernel's checks of a local host."""
    guest = found.guest()
    offered = guest is not None and "kvm" in guest.virt_types
    checks = [_flag(found, flag), _device(offered, flag)]
    if offered and flag is None and found.host_arch in _X86:
        checks.append(
            Check(
                "kvm-evidence",
                "warn",
                "libvirt there offers KVM, yet its CPU has neither vmx nor svm: something other than the CPU serves "
                "/dev/kvm, and ordinary guests are known to hang under such a KVM, so kvmctl uses TCG",
                "run 'kvmctl host check' on that machine for more",
            )
        )
    return [*checks, _iommu(found), _ksm(hypervisor)]


def _flag(found: Capabilities, flag: Flag | None) -> Check:
    if flag is not None:
        return Check("cpu-flag", "ok", f"{flag} in the CPU that libvirt describes ({harmless(found.cpu_model or '-')})")
    if found.host_arch not in _X86:
        return Check(
            "cpu-flag",
            "warn",
            f"the host is {found.host_arch}: vmx and svm are flags of x86",
            "create --accel kvm uses KVM where libvirt offers it",
        )
    if found.cpu_model is None:
        return Check("cpu-flag", "unknown", "libvirt does not describe the host's CPU")
    nested = "; that host is itself a VM" if "hypervisor" in found.cpu_features else ""
    return Check(
        "cpu-flag",
        "warn",
        f"neither vmx nor svm in the CPU that libvirt describes{nested}",
        "switch virtualization on in that machine's firmware setup"
        if not nested
        else "allow nested virtualization on the machine that VM runs on",
    )


def _device(offered: bool, flag: Flag | None) -> Check:
    if offered:
        return Check("kvm-device", "ok", "libvirt there can use /dev/kvm (it offers domains of type kvm)")
    hint = f"there: modprobe {'kvm_amd' if flag == 'svm' else 'kvm_intel'}, then start libvirtd anew" if flag else None
    return Check("kvm-device", "warn", "libvirt there offers no domains of type kvm", hint or "see cpu-flag")


def _iommu(found: Capabilities) -> Check:
    if found.iommu is None:
        return Check("iommu", "unknown", "libvirt does not say")
    if found.iommu:
        return Check("iommu", "ok", "on, says libvirt")
    return Check("iommu", "warn", "off; needed only to pass PCI devices to guests", "run 'kvmctl host check' there")


def _ksm(hypervisor: Hypervisor) -> Check:
    try:
        values = hypervisor.conn.getMemoryParameters()
    except libvirt.libvirtError:
        return Check("ksm", "unknown", "libvirt does not say")
    sharing = values.get("shm_pages_sharing")
    if not sharing:
        return Check("ksm", "ok", "saves nothing now: off, or no pages are equal")
    # Pages of KSM are of the smallest size, 4 KiB on nearly all machines; libvirt does not tell theirs.
    return Check("ksm", "ok", f"on; saves about {human_size(sharing * 4096)}")


def unseen() -> list[Check]:
    """What nobody can see from here."""
    detail = "cannot be seen over a remote connection"
    hint = "run 'kvmctl host check' on that machine"
    names = (
        "kvm-open",
        "kvm-create-vm",
        "nested",
        "iommu-groups",
        "vhost-net",
        "tun",
        "hugepages",
        "cgroups",
        "user-groups",
        "forwarding",
    )
    return [Check(name, "unknown", detail, hint) for name in names]
