"""The PCI devices of this host, or of a copied tree, from /sys/bus/pci/devices."""

import dataclasses
from pathlib import Path

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model.host_pci import HostPci, HostUse
from kvmctl.model.pci import PciAddress
from kvmctl.preflight.host_uses import HostUses
from kvmctl.preflight.pci_ids import PciNames


def read(root: Path) -> list[HostPci]:
    """Every PCI device below ``root``, by address; raises NotFound where it has no /sys/bus/pci."""
    place = root / "sys/bus/pci/devices"
    if not root.is_dir():
        raise NotFound(f"{str(root)!a} is no directory", "name one that has sys/ and proc/ in it")
    if not place.is_dir():
        raise NotFound(f"there is no {str(place)!a}: no PCI bus to look at")
    uses = HostUses(root)
    devices = []
    for path in sorted(place.iterdir()):
        try:
            address = PciAddress.parse(path.name)
        except UsageProblem:
            continue
        devices.append(_device(address, path, uses))
    names = PciNames((root, Path("/")), ((d.vendor_id, d.product_id) for d in devices))
    return sorted((_named(device, names) for device in devices), key=lambda device: device.address)


def _device(address: PciAddress, path: Path, uses: HostUses) -> HostPci:
    group = _link(path / "iommu_group")
    found = list(uses.uses.get(address, []))
    if _number(path / "boot_vga") == 1:
        found.append(HostUse("mild", "it is the display that the host started with"))
    numa = _number(path / "numa_node")
    return HostPci(
        address=address,
        vendor_id=_number(path / "vendor") or 0,
        product_id=_number(path / "device") or 0,
        class_code=(_number(path / "class") or 0) >> 8,
        driver=_link(path / "driver"),
        iommu_group=int(group) if group is not None and group.isascii() and group.isdigit() else None,
        physical_function=_linked_address(path / "physfn"),
        virtual_functions=_virtual_functions(path),
        max_virtual_functions=_number(path / "sriov_totalvfs") or 0,
        numa_node=numa if numa is not None and numa >= 0 else None,
        # The kernel has this attribute for PCI Express devices alone (pci_dev_attrs in its pci-sysfs.c).
        express=(path / "max_link_speed").exists(),
        interfaces=tuple(uses.interfaces.get(address, [])),
        disks=tuple(uses.disks.get(address, [])),
        uses=tuple(found),
    )


def _named(device: HostPci, names: PciNames) -> HostPci:
    return dataclasses.replace(
        device,
        vendor=names.vendor(device.vendor_id),
        product=names.product(device.vendor_id, device.product_id),
        class_name=names.class_name(device.class_code),
    )


def class_names(devices: list[HostPci]) -> list[HostPci]:
    """``devices`` with the names of their classes, which libvirt does not tell, from this machine's pci.ids."""
    names = PciNames((Path("/"),), ())
    return [dataclasses.replace(device, class_name=names.class_name(device.class_code)) for device in devices]


def _virtual_functions(path: Path) -> tuple[PciAddress, ...]:
    found = []
    index = 0
    while (address := _linked_address(path / f"virtfn{index}")) is not None:
        found.append(address)
        index += 1
    return tuple(found)


def _linked_address(path: Path) -> PciAddress | None:
    name = _link(path)
    try:
        return PciAddress.parse(name) if name is not None else None
    except UsageProblem:
        return None


def _link(path: Path) -> str | None:
    """The last part of a symlink's target: the target itself need not be in a copied tree."""
    try:
        return path.readlink().name
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii", errors="replace").strip(), 0)
    except (OSError, ValueError):
        return None
