"""One PCI device of a host: what sysfs and libvirt's node devices say of it."""

from dataclasses import dataclass, field
from typing import Literal

from kvmctl.model import xml
from kvmctl.model.pci import PciAddress

# Base classes of the PCI Code and ID Assignment Specification.
BRIDGE = 0x06
PCI_TO_PCI_BRIDGE = 0x0604

# Drivers that only hold a device for a guest, or hold it back from the others.
STUB_DRIVERS = frozenset({"vfio-pci", "pci-stub"})


@dataclass(frozen=True)
class HostUse:
    """What the host itself does with a device.

    ``vital``: without it the host would lose a mounted file system, its swap or its default route.
    ``unseen``: whether it is vital cannot be seen from here. The rest is only worth a warning.
    """

    kind: Literal["vital", "unseen", "mild"]
    text: str


@dataclass(frozen=True)
class HostPci:
    """A device. Ids are 16 bits, ``class_code`` the upper 16 bits of the class (0x0200 is Ethernet).

    Names are None where no database has them, ``driver`` where none is bound, ``iommu_group`` where the
    host has no IOMMU at work. ``express``: it is a PCI Express device, not a conventional one.
    """

    address: PciAddress
    vendor_id: int
    product_id: int
    class_code: int
    vendor: str | None = None
    product: str | None = None
    class_name: str | None = None
    driver: str | None = None
    iommu_group: int | None = None
    physical_function: PciAddress | None = None
    virtual_functions: tuple[PciAddress, ...] = ()
    max_virtual_functions: int = 0
    numa_node: int | None = None
    express: bool = True
    interfaces: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    uses: tuple[HostUse, ...] = field(default=())

    @property
    def is_bridge(self) -> bool:
        """Whether it is any kind of bridge: those belong to the host."""
        return self.class_code >> 8 == BRIDGE

    @property
    def ids(self) -> str:
        """``8086:10d3``."""
        return f"{self.vendor_id:04x}:{self.product_id:04x}"

    @property
    def title(self) -> str:
        """A few words for a message: ``0000:01:00.0 (82574L Gigabit Network Connection)``."""
        return f"{self.address} ({self.product or self.class_name or self.ids})"


def from_node_device(element: xml.Element) -> HostPci | None:
    """The PCI device in a ``<device>`` of libvirt's node devices; None where it is none."""
    capability = element.find("capability[@type='pci']")
    if capability is None:
        return None
    numbers = [_number(capability.findtext(tag)) for tag in ("domain", "bus", "slot", "function")]
    if any(number is None for number in numbers):
        return None
    address = PciAddress(*(number or 0 for number in numbers))
    vendor, product = capability.find("vendor"), capability.find("product")
    group = capability.find("iommuGroup")
    functions = capability.find("capability[@type='virt_functions']")
    parent = capability.find("capability[@type='phys_function']/address")
    numa = capability.find("numa")
    return HostPci(
        address=address,
        vendor_id=_number(vendor.get("id")) or 0 if vendor is not None else 0,
        product_id=_number(product.get("id")) or 0 if product is not None else 0,
        class_code=(_number(capability.findtext("class")) or 0) >> 8,
        vendor=(vendor.text or None) if vendor is not None else None,
        product=(product.text or None) if product is not None else None,
        driver=element.findtext("driver/name"),
        iommu_group=_number(group.get("number")) if group is not None else None,
        physical_function=PciAddress.from_element(parent) if parent is not None else None,
        virtual_functions=_addresses(functions),
        max_virtual_functions=_number(functions.get("maxCount")) or 0 if functions is not None else 0,
        numa_node=_number(numa.get("node")) if numa is not None else None,
        express=capability.find("pci-express") is not None,
    )


def _addresses(element: xml.Element | None) -> tuple[PciAddress, ...]:
    found = (PciAddress.from_element(a) for a in element.iterfind("address")) if element is not None else ()
    return tuple(address for address in found if address is not None)


def _number(text: str | None) -> int | None:
    try:
        return int((text or "").strip(), 0)
    except ValueError:
        return None
