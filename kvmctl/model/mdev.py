"""Mediated devices (mdev): slices of a host's device, such as a graphics card's vGPU, each for one VM."""

import re
from typing import NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Mdev(NamedTuple):
    """One that was made: its ``type`` (``i915-GVTg_V5_4``), and the device that it is a slice of."""

    uuid: str
    type: str | None
    parent: str | None
    iommu_group: int | None
    driver: str | None = None


class MdevType(NamedTuple):
    """A kind that ``parent`` can make: ``available`` is how many more, None where it does not say."""

    parent: str
    type: str
    name: str | None
    device_api: str | None
    available: int | None


def parse_uuid(text: str) -> str:
    """A mediated device's UUID in small letters. Raises UsageProblem."""
    uuid = text.strip().lower()
    if not _UUID.fullmatch(uuid):
        raise UsageProblem(
            f"{text[:60]!a} is no UUID of a mediated device", "'kvmctl pci list --mdev' shows those there are"
        )
    return uuid


def hostdev_element(uuid: str, device_api: str = "vfio-pci", display: bool = False) -> xml.Element:
    """``<hostdev type='mdev'>``; ``display`` shows its screen in the VM's graphics."""
    hostdev = xml.new("hostdev", mode="subsystem", type_="mdev", model=device_api, display="on" if display else None)
    xml.add(xml.add(hostdev, "source"), "address", uuid=uuid)
    return hostdev


def uuid_of(hostdev: xml.Element) -> str | None:
    """The UUID that a ``<hostdev>`` names, where it is one of type mdev."""
    address = hostdev.find("source/address") if hostdev.get("type") == "mdev" else None
    uuid = address.get("uuid") if address is not None else None
    return uuid.lower() if uuid else None


def from_node_device(device: xml.Element) -> Mdev | None:
    """The one that libvirt's ``<device>`` with an mdev capability describes."""
    capability = device.find("capability[@type='mdev']")
    # libvirt before 7.3 says the UUID only in the device's name: mdev_UUID_PARENT, with _ for -.
    if capability is None:
        return None
    said = capability.findtext("uuid") or device.findtext("name", "").removeprefix("mdev_")[:36].replace("_", "-")
    type_, group = capability.find("type"), capability.find("iommuGroup")
    number = group.get("number", "") if group is not None else ""
    return Mdev(
        said.lower(),
        type_.get("id") if type_ is not None else None,
        capability.findtext("parent_addr") or device.findtext("parent"),
        int(number) if number.isascii() and number.isdigit() else None,
        device.findtext("driver/name"),
    )


def types_of_node_device(device: xml.Element) -> list[MdevType]:
    """The kinds that libvirt's ``<device>`` of a parent can make."""
    # A parent that is no PCI device is called by its place in sysfs, as its slices call it.
    parent = (device.findtext("path") or device.findtext("name") or "").rpartition("/")[2]
    domain, bus, slot, function = (
        device.findtext(f"capability[@type='pci']/{part}", "") for part in ("domain", "bus", "slot", "function")
    )
    if all(part.isascii() and part.isdigit() for part in (domain, bus, slot, function)):
        parent = f"{int(domain):04x}:{int(bus):02x}:{int(slot):02x}.{int(function):x}"
    found = []
    for element in device.iterfind(".//capability[@type='mdev_types']/type"):
        available = element.findtext("availableInstances", "")
        found.append(
            MdevType(
                parent,
                element.get("id", ""),
                element.findtext("name"),
                element.findtext("deviceAPI"),
                int(available) if available.isascii() and available.isdigit() else None,
            )
        )
    return found
