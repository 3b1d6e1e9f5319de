"""Which accelerator a guest gets: KVM where the CPU says so and libvirt offers it, else TCG.

/dev/kvm alone decides nothing: it exists on machines whose CPU has no vmx or svm, and ordinary guests
hang there.
"""

import contextlib
from typing import Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import Refused, UsageProblem
from kvmctl.model import capabilities, xml
from kvmctl.model.capabilities import Capabilities
from kvmctl.preflight import host_cpu

Accel = Literal["kvm", "tcg"]
X86 = frozenset({"x86_64", "i686"})
SLOW = "guests run emulated (TCG), several times slower; 'kvmctl host check' says why and what to do"


class AccelChoice(NamedTuple):
    """The accelerator, why it is that one, and what the user should be warned of (or None)."""

    accel: Accel
    reason: str
    warning: str | None = None

    @property
    def virt_type(self) -> Literal["kvm", "qemu"]:
        """The same as libvirt's ``<domain type=…>``."""
        return "kvm" if self.accel == "kvm" else "qemu"


def choose_accel(hypervisor: Hypervisor, requested: str = "auto", arch: str | None = None) -> AccelChoice:
    """The accelerator for a guest of ``arch`` (by default the host's) on ``hypervisor``.

    ``requested`` is ``auto``, ``kvm`` or ``tcg``. Raises Refused where kvm was asked for and cannot be had,
    or where no emulator for ``arch`` is there.
    """
    if requested not in ("auto", "kvm", "tcg"):
        raise UsageProblem(f"{requested!a} is no accelerator", "give auto, kvm or tcg")
    found = capabilities.read(hypervisor.capabilities)
    guest = found.guest(arch)
    if guest is None:
        raise Refused(
            f"{hypervisor.uri} has no emulator for {arch or found.host_arch or 'its own architecture'} guests",
            f"install one there (qemu-system-{_package(arch or found.host_arch)}), or choose another --arch",
        )
    if requested == "tcg":
        return AccelChoice("tcg", "asked for with --accel tcg")
    obstacle = kvm_obstacle(hypervisor, found, guest)
    if requested == "kvm":
        # Outside x86 no CPU flag can speak for KVM; there who asks for it gets what libvirt offers.
        if obstacle is not None and (found.host_arch in X86 or "kvm" not in guest.virt_types):
            raise Refused(f"no KVM on {hypervisor.uri}: {obstacle}", "use --accel tcg, or see 'kvmctl host check'")
        return AccelChoice("kvm", "asked for with --accel kvm")
    if obstacle is None:
        return AccelChoice("kvm", "the CPU can virtualize and libvirt offers KVM")
    if found.host_arch != guest.arch and not {found.host_arch, guest.arch} <= X86:
        # Nobody expects a foreign architecture to run on the CPU itself.
        return AccelChoice("tcg", obstacle)
    return AccelChoice("tcg", obstacle, f"no KVM: {obstacle}; {SLOW}")


def kvm_obstacle(hypervisor: Hypervisor, found: Capabilities, guest: capabilities.GuestArch) -> str | None:
    """What keeps ``guest`` from KVM, in a few words; None where nothing does."""
    if found.host_arch != guest.arch and not (guest.arch == "i686" and found.host_arch == "x86_64"):
        return f"{guest.arch} guests cannot run on {found.host_arch} CPUs but emulated"
    if found.host_arch not in X86:
        return f"{found.host_arch} CPUs have no flag that speaks for KVM (--accel kvm uses it all the same)"
    if hypervisor.is_remote:
        flag = remote_flag(hypervisor, found)
    else:
        flag = host_cpu.parse(host_cpu.read_text(str(host_cpu.LOCAL))).flag
    if flag is None:
        return "the CPU has neither vmx nor svm"
    if "kvm" not in guest.virt_types:
        return f"the CPU has {flag}, but libvirt cannot use /dev/kvm there"
    if not hypervisor.is_remote:
        # Imported late: without the flag there is nothing to look at.
        from kvmctl.preflight import host_kvm
        from kvmctl.preflight.host_root import Root

        device = host_kvm.look(Root())
        if device.creates is False:
            # Another hypervisor may hold the CPU: libvirt's capabilities do not know that.
            return f"the CPU has {flag}, but /dev/kvm makes no VM: {device.reason}"
    return None


def remote_flag(hypervisor: Hypervisor, found: Capabilities) -> host_cpu.Flag | None:
    """``vmx`` or ``svm`` where the CPU that ``hypervisor`` describes has it, by name or within its model."""
    listed = set(found.cpu_features)
    if found.cpu_xml is not None:
        # A model may imply the flag; some hypervisors cannot expand models, then what is listed counts.
        with contextlib.suppress(libvirt.libvirtError):
            expanded = hypervisor.conn.baselineCPU([found.cpu_xml], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES)
            root = xml.parse(expanded, "CPU", "cpu")
            listed |= {
                item.get("name", "")
                for item in root.iterfind("feature")
                if item.get("policy", "require") not in ("disable", "forbid")
            }
    if "vmx" in listed:
        return "vmx"
    return "svm" if "svm" in listed else None


def _package(arch: str | None) -> str:
    return {"x86_64": "x86", "i686": "x86", "aarch64": "arm", "armv7l": "arm"}.get(arch or "", "misc")
