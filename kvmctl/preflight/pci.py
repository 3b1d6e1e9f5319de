"""Which PCI devices of a host can be passed to a guest, and why the others cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvmctl.model.host_pci import PCI_TO_PCI_BRIDGE, STUB_DRIVERS, HostPci
from kvmctl.model.pci import PciAddress


@dataclass(frozen=True)
class User:
    """A VM with a device in its definition, and whether it holds it right now."""

    name: str
    running: bool


@dataclass(frozen=True)
class Verdict:
    """Whether a device can be passed alone, as it is; ``assignable`` None: it cannot be seen from here.

    ``with_group``: it could be, together with the others of its IOMMU group, which are ``others``.
    """

    assignable: bool | None
    reason: str | None
    others: tuple[PciAddress, ...] = ()
    with_group: bool = False


class Judge:
    """Judges the devices of one host."""

    def __init__(self, devices: Sequence[HostPci], users: Mapping[PciAddress, Sequence[User]] | None = None) -> None:
        self.devices = {device.address: device for device in devices}
        self.users = users or {}
        self.groups: dict[int, list[HostPci]] = {}
        for device in devices:
            if device.iommu_group is not None:
                self.groups.setdefault(device.iommu_group, []).append(device)

    def members(self, device: HostPci) -> list[HostPci]:
        """All devices of its IOMMU group, itself too; empty where it has none."""
        return self.groups.get(device.iommu_group, []) if device.iommu_group is not None else []

    def verdict(self, device: HostPci) -> Verdict:
        """Whether ``device`` can be passed to a guest now, and if not, why."""
        alone = self._alone(device)
        if alone is not None:
            return alone
        # Bridges between buses belong to nobody: vfio takes a group that has one bound to the host's driver.
        others = [m for m in self.members(device) if m is not device and m.class_code != PCI_TO_PCI_BRIDGE]
        held = [m for m in others if m.driver not in STUB_DRIVERS]
        # A group is one unit to the IOMMU: whoever has one of it could reach what the others reach.
        taken = [(m, user.name) for m in others for user in self.users.get(m.address, ()) if user.running]
        addresses = tuple(m.address for m in others)
        if taken:
            other, vm = taken[0]
            return Verdict(
                False, f"{other.title} of its IOMMU group {device.iommu_group} is used by VM {vm}", addresses
            )
        if not held:
            return Verdict(True, None, addresses)
        shared = ", ".join(_described(m) for m in held)
        why = f"shares IOMMU group {device.iommu_group} with {shared}"
        hindered = [(m, found) for m in held if (found := self._alone(m)) is not None]
        if hindered:
            other, found = hindered[0]
            return Verdict(False, f"{why}; and {other.address} cannot go: {found.reason}", addresses)
        return Verdict(False, f"{why}; all of them can go to one VM together", addresses, with_group=True)

    def _alone(self, device: HostPci) -> Verdict | None:
        """What speaks against it whatever its group; None where nothing does."""
        if device.is_bridge:
            return Verdict(False, "a bridge: it belongs to the host's own buses")
        vital = [use.text for use in device.uses if use.kind == "vital"]
        if vital:
            more = f" (and {len(vital) - 1} more like that)" if len(vital) > 1 else ""
            return Verdict(False, f"the host needs it: {vital[0]}{more}")
        running = [user.name for user in self.users.get(device.address, ()) if user.running]
        if running:
            return Verdict(False, f"in use by VM {running[0]}")
        if device.virtual_functions:
            return Verdict(
                False, f"{len(device.virtual_functions)} virtual functions are enabled on it: pass one of those"
            )
        if device.iommu_group is None:
            return Verdict(False, "no IOMMU group: the host's IOMMU is off, or there is none")
        unseen = [use.text for use in device.uses if use.kind == "unseen"]
        return Verdict(None, unseen[0]) if unseen else None


def _described(device: HostPci) -> str:
    driver = f", driver {device.driver}" if device.driver else ""
    return f"{device.address} ({device.class_name or device.product or device.ids}{driver})"
