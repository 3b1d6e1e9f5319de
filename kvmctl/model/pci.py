"""PCI addresses, and the host's PCI devices as a domain names them."""

import re
from typing import NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

# What a VM may be given of the host's PCI devices; kvmctl's own limit, and tested up to it.
MAX_HOSTDEVS = 32

# virt-install's default (num_pcie_root_ports in its guest.py): room to hotplug, and cheap to have.
DEFAULT_ROOT_PORTS = 14

_TEXT = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-9a-f])\Z", re.IGNORECASE)
_NODE_DEVICE = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-9a-f])\Z", re.IGNORECASE)
_NUMBER = re.compile(r"(?:0x[0-9a-f]{1,8}|[0-9]{1,10})\Z", re.IGNORECASE)


class PciAddress(NamedTuple):
    """Where a device sits: four integers. A domain has 32 bits (a VMD's is above 0xffff), a slot 5, a function 3."""

    domain: int
    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        """As the kernel writes it: ``0000:01:00.0``."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"

    @property
    def node_device(self) -> str:
        """libvirt's name of the node device: ``pci_0000_01_00_0``."""
        return f"pci_{self.domain:04x}_{self.bus:02x}_{self.slot:02x}_{self.function:x}"

    @classmethod
    def parse(cls, text: str) -> "PciAddress":
        """``0000:01:00.0``, ``01:00.0`` or ``pci_0000_01_00_0``; UsageProblem for every other shape."""
        match = _TEXT.match(text) or _NODE_DEVICE.match(text)
        if match is None:
            raise UsageProblem(
                f"{text[:60]!a} is not a PCI address",
                "write it like 0000:01:00.0 or 01:00.0; 'kvmctl pci list' shows those there are",
            )
        domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
        if slot > 0x1F or function > 7:
            raise UsageProblem(
                f"{text[:60]!a} is not a PCI address: a slot goes from 00 to 1f and a function from 0 to 7",
                "'kvmctl pci list' shows those there are",
            )
        return cls(domain, bus, slot, function)

    @classmethod
    def from_element(cls, element: xml.Element) -> "PciAddress | None":
        """What an ``<address domain= bus= slot= function=>`` says; None where it is not a whole one."""
        numbers = []
        for name in ("domain", "bus", "slot", "function"):
            value = element.get(name, "0" if name in ("domain", "function") else "")
            if not _NUMBER.match(value):
                return None
            numbers.append(int(value, 16 if value.lower().startswith("0x") else 10))
        return cls(*numbers)

    def to_element(self) -> xml.Element:
        """``<address>`` as libvirt writes it within ``<source>``."""
        return xml.new(
            "address",
            domain=f"0x{self.domain:04x}",
            bus=f"0x{self.bus:02x}",
            slot=f"0x{self.slot:02x}",
            function=f"0x{self.function:x}",
        )


def hostdev_element(address: PciAddress) -> xml.Element:
    """A managed ``<hostdev>``: libvirt binds vfio-pci when the guest starts, and the old driver afterwards."""
    hostdev = xml.new("hostdev", mode="subsystem", type_="pci", managed="yes")
    xml.add(hostdev, "source").append(address.to_element())
    return hostdev


def hostdev_elements(domain: xml.Element) -> list[tuple[PciAddress, xml.Element]]:
    """The host's PCI devices in a ``<domain>``, in its order: ``<hostdev>`` and ``<interface type='hostdev'>``."""
    found = []
    for element in domain.iterfind("devices/*"):
        if element.tag == "hostdev" and element.get("type") == "pci":
            pass
        elif not (element.tag == "interface" and element.get("type") == "hostdev"):
            continue
        source = element.find("source/address")
        address = PciAddress.from_element(source) if source is not None else None
        if address is not None:
            found.append((address, element))
    return found


def hostdevs(domain: xml.Element) -> list[PciAddress]:
    """The addresses of hostdev_elements()."""
    return [address for address, _ in hostdev_elements(domain)]


def check_count(present: int, more: int, vm: str | None = None) -> None:
    """Raises UsageProblem where ``present`` devices and those to add would be more than MAX_HOSTDEVS."""
    total = present + more
    if total <= MAX_HOSTDEVS:
        return
    whose = vm if vm is not None else "a VM"
    detail = f"{present} are there and {more} more would make {total}" if present else f"{more} were asked for"
    raise UsageProblem(
        f"{whose} can have at most {MAX_HOSTDEVS} PCI devices of the host: {detail}",
        "take one away first: kvmctl pci detach" if present else "leave some out",
    )


def root_ports(count: int = DEFAULT_ROOT_PORTS) -> list[xml.Element]:
    """``<controller>`` elements for ``count`` PCIe root ports, for a q35 or virt machine.

    A PCIe device can only be plugged into a running guest where a root port is free, and none can be added
    then. libvirt gives them to the devices of the definition first, adds more as those need, and leaves one
    free: so ask for the devices there will be from the start and as many as may be plugged in later.
    """
    return [
        xml.new("controller", type_="pci", model="pcie-root"),
        *(xml.new("controller", type_="pci", model="pcie-root-port") for _ in range(count)),
    ]


_IDS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})\Z", re.IGNORECASE)


class PciSelector(NamedTuple):
    """Which device is wanted: one at an ``address``, or any with these ``ids`` (vendor, product).

    ``vf``: a free virtual function of the device, not the device. ``group``: all of its IOMMU group.
    """

    text: str
    address: PciAddress | None
    ids: tuple[int, int] | None
    vf: bool = False
    group: bool = False

    @classmethod
    def parse(cls, text: str) -> "PciSelector":
        """``ADDRESS[,vf][,group]`` or ``VENDOR:PRODUCT[,vf][,group]``. Raises UsageProblem."""
        head, *options = text.split(",")
        unknown = [option for option in options if option not in ("vf", "group")]
        if unknown:
            raise UsageProblem(
                f"{text[:60]!a}: no option {unknown[0][:30]!a}", "after a PCI device may come ,vf or ,group"
            )
        vf, group = "vf" in options, "group" in options
        if vf and group:
            raise UsageProblem(f"{text[:60]!a}: a virtual function or a whole group, not both")
        ids = _IDS.match(head)
        if ids is not None:
            return cls(text, None, (int(ids[1], 16), int(ids[2], 16)), vf, group)
        return cls(text, PciAddress.parse(head), None, vf, group)
