"""The host's USB devices, and how a domain names them."""

import re
from dataclasses import dataclass

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

_IDS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})\Z", re.IGNORECASE)
_PLACE = re.compile(r"([0-9]{1,3})[:.]([0-9]{1,3})\Z")


@dataclass(frozen=True)
class UsbSelector:
    """Which device is wanted: by vendor and product, or by bus and device number as lsusb shows them."""

    text: str
    ids: tuple[int, int] | None
    place: tuple[int, int] | None

    @classmethod
    def parse(cls, text: str) -> "UsbSelector":
        """``VENDOR:PRODUCT`` (four hexadecimal digits each) or ``BUS:DEVICE``. Raises UsageProblem."""
        ids, place = _IDS.match(text), _PLACE.match(text)
        if ids is not None:
            return cls(text, (int(ids[1], 16), int(ids[2], 16)), None)
        if place is not None:
            return cls(text, None, (int(place[1]), int(place[2])))
        raise UsageProblem(
            f"{text[:60]!a} is no USB device",
            "write VENDOR:PRODUCT (046d:c52b) or BUS:DEVICE (001:004); 'kvmctl usb list' shows them",
        )


@dataclass(frozen=True)
class UsbDevice:
    """A device; ``bus`` and ``device`` are numbers that change when it is plugged in anew. ``path`` is in /sys."""

    bus: int
    device: int
    vendor_id: int
    product_id: int
    vendor: str | None = None
    product: str | None = None
    driver: str | None = None
    path: str | None = None

    @property
    def place(self) -> str:
        """``001:004``."""
        return f"{self.bus:03d}:{self.device:03d}"

    @property
    def ids(self) -> str:
        """``046d:c52b``."""
        return f"{self.vendor_id:04x}:{self.product_id:04x}"

    @property
    def title(self) -> str:
        """A few words for a message."""
        return f"{self.place} ({self.product or self.ids})"

    def chosen_by(self, selector: UsbSelector) -> bool:
        """Whether ``selector`` means this one."""
        return selector.ids == (self.vendor_id, self.product_id) or selector.place == (self.bus, self.device)


def from_node_device(element: xml.Element) -> UsbDevice | None:
    """The USB device in a ``<device>`` of libvirt's node devices; None where it is none."""
    capability = element.find("capability[@type='usb_device']")
    if capability is None:
        return None
    vendor, product = capability.find("vendor"), capability.find("product")
    bus, device = _number(capability.findtext("bus")), _number(capability.findtext("device"))
    if bus is None or device is None or vendor is None or product is None:
        return None
    return UsbDevice(
        bus,
        device,
        _number(vendor.get("id")) or 0,
        _number(product.get("id")) or 0,
        (vendor.text or "").strip() or None,
        (product.text or "").strip() or None,
        element.findtext("driver/name"),
        element.findtext("path"),
    )


def hostdev_element(device: UsbDevice, by_place: bool) -> xml.Element:
    """``<hostdev>``: by ids, which stay when it is plugged in anew, and by its place where the ids name several."""
    hostdev = xml.new("hostdev", mode="subsystem", type_="usb", managed="yes")
    source = xml.add(hostdev, "source")
    xml.add(source, "vendor", id=f"0x{device.vendor_id:04x}")
    xml.add(source, "product", id=f"0x{device.product_id:04x}")
    if by_place:
        xml.add(source, "address", bus=device.bus, device=device.device)
    return hostdev


def is_of(hostdev: xml.Element, device: UsbDevice) -> bool:
    """Whether a ``<hostdev type='usb'>`` names ``device``."""
    source = hostdev.find("source")
    if source is None:
        return False
    address, vendor, product = source.find("address"), source.find("vendor"), source.find("product")
    if address is not None:
        place = (_number(address.get("bus")), _number(address.get("device")))
        return place == (device.bus, device.device)
    if vendor is None or product is None:
        return False
    return (_number(vendor.get("id")), _number(product.get("id"))) == (device.vendor_id, device.product_id)


def told(hostdev: xml.Element) -> str:
    """How a ``<hostdev type='usb'>`` names its device: ``0627:0001``, or by its place, ``001:003``."""
    source = hostdev.find("source")
    vendor, product, address = (
        source.find(tag) if source is not None else None for tag in ("vendor", "product", "address")
    )
    if vendor is not None and product is not None:
        return ":".join(f"{_number(element.get('id')) or 0:04x}" for element in (vendor, product))
    if address is None:
        return "?"
    return ":".join(f"{_number(address.get(key)) or 0:03d}" for key in ("bus", "device"))


def hostdevs(domain: xml.Element | None) -> list[xml.Element]:
    """The ``<hostdev type='usb'>`` of a domain."""
    return domain.findall("devices/hostdev[@type='usb']") if domain is not None else []


def _number(text: str | None) -> int | None:
    try:
        return int((text or "").strip(), 0)
    except ValueError:
        pass
    try:
        return int((text or "").strip())
    except ValueError:
        return None
