"""What the guest's operating system means for create: fitting models, and warnings where it gets too little."""

from typing import TYPE_CHECKING

from kvmctl.model import domain as domains
from kvmctl.model.profile import Defaults, Profile, defaults
from kvmctl.model.units import human_size

if TYPE_CHECKING:
    from kvmctl.preflight.osinfo import OperatingSystem


def suited(profile: Profile, hardware: domains.Hardware, system: "OperatingSystem | None") -> Defaults:
    """What suits the guest: its profile's defaults, with what is known of the very system that it runs."""
    found = defaults(profile, hardware.arch, hardware.machine)
    if system is None:
        return found
    if profile == "windows" and system.exact and not system.needs_uefi and hardware.arch in ("x86_64", "i686"):
        # Before Windows 11 nothing insists on these, and the oldest cannot start with them.
        found = found._replace(firmware="bios", tpm=False)
    return found._replace(
        min_memory=system.min_memory or found.min_memory,
        min_vcpus=system.min_vcpus or found.min_vcpus,
    )


def too_little(spec: domains.DomainSpec, disks: list[int], system: "OperatingSystem | None") -> list[str]:
    """Warnings where the guest gets less than its system's maker says it needs."""
    if system is None:
        return []
    said = []
    if not system.exact:
        said.append(f"the osinfo database does not know {system.short_id}: it is taken for what it looks like")
    if system.min_memory and spec.memory_bytes < system.min_memory:
        least = human_size(system.min_memory)
        said.append(f"{system.name} needs {least} of memory, and this guest gets {human_size(spec.memory_bytes)}")
    if system.min_vcpus and spec.vcpus < system.min_vcpus:
        said.append(f"{system.name} needs {system.min_vcpus} vCPUs, and this guest gets {spec.vcpus}")
    if system.min_storage and disks and max(disks) < system.min_storage:
        least = human_size(system.min_storage)
        said.append(f"{system.name} needs a disk of {least}, and the largest here has {human_size(max(disks))}")
    return said
