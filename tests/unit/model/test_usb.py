import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import usb, xml
from kvmctl.model.usb import UsbDevice, UsbSelector

STICK = """<device><name>usb_2_1</name><path>/sys/devices/pci0000:00/usb2/2-1</path>
<driver><name>usb</name></driver><capability type='usb_device'><bus>2</bus><device>8</device>
<product id='0x5567'>Cruzer</product><vendor id='0x0781'>SanDisk</vendor></capability></device>"""


def test_a_node_device_is_read() -> None:
    device = usb.from_node_device(xml.parse(STICK))
    assert device == UsbDevice(2, 8, 0x0781, 0x5567, "SanDisk", "Cruzer", "usb", "/sys/devices/pci0000:00/usb2/2-1")
    assert (device.place, device.ids) == ("002:008", "0781:5567")
    assert usb.from_node_device(xml.parse("<device><capability type='pci'/></device>")) is None
    assert usb.from_node_device(xml.parse(STICK.replace("<bus>2", "<bus>two"))) is None


def test_a_selector_is_ids_or_a_place() -> None:
    device = usb.from_node_device(xml.parse(STICK))
    assert device is not None
    for text in ("0781:5567", "002:008", "2:8", "2.8"):
        assert device.chosen_by(UsbSelector.parse(text))
    for text in ("0781:5568", "002:009"):
        assert not device.chosen_by(UsbSelector.parse(text))


@pytest.mark.parametrize("text", ["", "0781", "0781:", "g781:5567", "0781:5567:1", "-1:2", "1:2:3", "00781:5567"])
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(UsageProblem):
        UsbSelector.parse(text)


@pytest.mark.parametrize("by_place", [True, False])
def test_an_element_names_its_device_and_no_other(by_place: bool) -> None:
    device = UsbDevice(2, 8, 0x0781, 0x5567)
    twin = UsbDevice(2, 9, 0x0781, 0x5567)
    element = usb.hostdev_element(device, by_place)
    assert usb.is_of(element, device)
    assert usb.is_of(element, twin) is not by_place
    assert not usb.is_of(xml.parse("<hostdev type='usb'/>"), device)
