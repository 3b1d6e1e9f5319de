"""What libvirt says a hypervisor and its machine can do (its capabilities XML)."""

from typing import NamedTuple

from kvmctl.model import xml

# Several names for one architecture: what uname says on the left, libvirt's name on the right.
_ARCH_NAMES = {"amd64": "x86_64", "i386": "i686", "i486": "i686", "i586": "i686", "arm64": "aarch64", "armhf": "armv7l"}


class GuestArch(NamedTuple):
    """One architecture that guests may have: its emulator, machine types, and domain types (``qemu``, ``kvm``)."""

    arch: str
    emulator: str | None
    machines: tuple[str, ...]
    virt_types: frozenset[str]


class Capabilities(NamedTuple):
    """The parts of ``<capabilities>`` that kvmctl decides by.

    ``cpu_features`` are those that libvirt lists beside the model, not those the model implies;
    ``cpu_xml`` is the whole ``<cpu>`` element as text, None where there is none. ``iommu`` is None where
    libvirt does not say.
    """

    host_arch: str | None
    cpu_vendor: str | None
    cpu_model: str | None
    cpu_features: frozenset[str]
    cpu_xml: str | None
    iommu: bool | None
    guests: tuple[GuestArch, ...]
    security_models: tuple[str, ...]

    def guest(self, arch: str | None = None) -> GuestArch | None:
        """What guests of ``arch`` (by default the host's own) get here, or None where they cannot run."""
        wanted = self.host_arch if arch is None else canonical_arch(arch)
        return next((guest for guest in self.guests if guest.arch == wanted), None)


def canonical_arch(arch: str) -> str:
    """libvirt's name for ``arch``: ``amd64`` is ``x86_64``."""
    return _ARCH_NAMES.get(arch, arch)


def read(text: str) -> Capabilities:
    """``text``, as virConnectGetCapabilities gives it.

    Raises UsageProblem where it is no capabilities XML.
    """
    root = xml.parse(text, "capabilities", "capabilities")
    cpu = root.find("host/cpu")
    iommu = root.find("host/iommu")
    return Capabilities(
        host_arch=root.findtext("host/cpu/arch"),
        cpu_vendor=root.findtext("host/cpu/vendor"),
        cpu_model=root.findtext("host/cpu/model"),
        cpu_features=frozenset(item.get("name", "") for item in root.iterfind("host/cpu/feature")),
        cpu_xml=None if cpu is None else xml.raw(cpu).strip(),
        iommu=None if iommu is None else iommu.get("support") == "yes",
        guests=tuple(_guest(arch) for arch in root.iterfind("guest/arch")),
        security_models=tuple(name for item in root.iterfind("host/secmodel/model") if (name := item.text)),
    )


def _guest(arch: xml.Element) -> GuestArch:
    machines = {(item.text or "").strip() for item in arch.iterfind("machine")}
    return GuestArch(
        arch=arch.get("name", ""),
        emulator=arch.findtext("emulator") or arch.findtext("domain/emulator"),
        machines=tuple(sorted(machines - {""})),
        virt_types=frozenset(item.get("type", "") for item in arch.iterfind("domain")),
    )
