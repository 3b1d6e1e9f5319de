import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import pci, xml
from kvmctl.model.pci import PciAddress


@pytest.mark.parametrize("text", ["0000:01:00.0", "01:00.0", "pci_0000_01_00_0", "00000000:01:00.0"])
def test_an_address_is_parsed_from_each_of_its_shapes(text: str) -> None:
    address = PciAddress.parse(text)
    assert address == PciAddress(0, 1, 0, 0)
    assert str(address) == "0000:01:00.0"
    assert address.node_device == "pci_0000_01_00_0"


def test_hexadecimal_digits_and_wide_domains() -> None:
    assert PciAddress.parse("10000:E1:1f.7") == PciAddress(0x10000, 0xE1, 0x1F, 7)
    assert str(PciAddress(0x10000, 0xE1, 0x1F, 7)) == "10000:e1:1f.7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "01:00",
        "1:0.0",
        "01:00.8",
        "01:20.0",
        "01:00.0 ",
        " 01:00.0",
        "01:00.0\n",
        "0000:01:00.0.0",
        "000:01:00.0",
        "0000:001:00.0",
        "0000:01:00:0",
        "0000-01-00.0",
        "0000:gg:00.0",
        "0x0000:0x01:0x00.0x0",
        "pci_0000_01_00_8",
        "pci_0000_01_00",
        "usb_0000_01_00_0",
        "../0000:01:00.0",
        "٠١:٠٠.٠",
        "0000:01:00.00",
        "8086:10d3",
    ],
)
def test_every_other_shape_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageProblem, match="not a PCI address"):
        PciAddress.parse(text)


def test_hostdev_is_managed_and_reads_back() -> None:
    domain = xml.parse("<domain><devices/></domain>")
    devices = domain.find("devices")
    assert devices is not None
    addresses = [PciAddress(0, 1, 0, 0), PciAddress(0x10000, 0xE1, 0x1F, 7)]
    for address in addresses:
        devices.append(pci.hostdev_element(address))
    assert pci.hostdevs(domain) == addresses
    assert [element.get("managed") for _, element in pci.hostdev_elements(domain)] == ["yes", "yes"]


def test_hostdevs_written_by_others_are_read() -> None:
    domain = xml.parse(
        """<domain><devices>
        <hostdev mode='subsystem' type='pci'><source><address bus='1' slot='0x2'/></source></hostdev>
        <interface type='hostdev'><source><address type='pci' domain='0x0' bus='0x3' slot='0x10' function='0x1'/>
        </source></interface>
        <interface type='network'><source network='default'/></interface>
        <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
        <hostdev mode='subsystem' type='pci'><source><address bus='nonsense' slot='0x2'/></source></hostdev>
        </devices></domain>"""
    )
    assert pci.hostdevs(domain) == [PciAddress(0, 1, 2, 0), PciAddress(0, 3, 0x10, 1)]


def test_thirty_two_are_allowed_and_the_next_is_not() -> None:
    pci.check_count(0, 32)
    pci.check_count(31, 1)
    with pytest.raises(UsageProblem, match=r"at most 32 .* 33 were asked for"):
        pci.check_count(0, 33)
    with pytest.raises(UsageProblem, match=r"^web .* 32 are there and 1 more would make 33"):
        pci.check_count(32, 1, "web")


def test_root_ports_follow_their_root() -> None:
    models = [element.get("model") for element in pci.root_ports(3)]
    assert models == ["pcie-root", "pcie-root-port", "pcie-root-port", "pcie-root-port"]


def test_a_selector_is_an_address_or_ids_with_options() -> None:
    plain = pci.PciSelector.parse("01:00.0")
    assert (plain.address, plain.ids, plain.vf, plain.group) == (PciAddress(0, 1, 0, 0), None, False, False)
    kind = pci.PciSelector.parse("8086:10D3,group")
    assert (kind.address, kind.ids, kind.group) == (None, (0x8086, 0x10D3), True)
    assert pci.PciSelector.parse("0000:01:00.0,vf").vf is True


@pytest.mark.parametrize("text", ["01:00.0,", "01:00.0,all", "01:00.0,vf,group", "8086", "8086:", ",vf", "8086:10d3:1"])
def test_a_selector_that_is_none(text: str) -> None:
    with pytest.raises(UsageProblem):
        pci.PciSelector.parse(text)
