import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import mdev, xml
from kvmctl.model.mdev import Mdev, MdevType

UUID = "4b20d080-1b54-4048-85b3-a6a62d165c01"
# As libvirt 9 writes them (its tests/nodedevschemadata has such files).
DEVICE = f"""<device><name>mdev_{UUID.replace("-", "_")}_0000_00_02_0</name><parent>pci_0000_00_02_0</parent>
<driver><name>vfio_mdev</name></driver><capability type='mdev'><type id='i915-GVTg_V5_4'/>
<uuid>{UUID}</uuid><parent_addr>0000:00:02.0</parent_addr><iommuGroup number='12'/></capability></device>"""
PARENT = """<device><name>pci_0000_00_02_0</name><capability type='pci'><domain>0</domain><bus>0</bus><slot>2</slot>
<function>0</function><capability type='mdev_types'><type id='i915-GVTg_V5_4'><name>GVTg</name>
<deviceAPI>vfio-pci</deviceAPI><availableInstances>1</availableInstances></type><type id='odd'/></capability>
</capability></device>"""


def test_a_node_device_is_read() -> None:
    expected = Mdev(UUID, "i915-GVTg_V5_4", "0000:00:02.0", 12, "vfio_mdev")
    assert mdev.from_node_device(xml.parse(DEVICE)) == expected
    # libvirt 6 has the UUID in the name alone, and no address of the parent.
    old = xml.parse(DEVICE.replace(f"<uuid>{UUID}</uuid><parent_addr>0000:00:02.0</parent_addr>", ""))
    assert mdev.from_node_device(old) == Mdev(UUID, "i915-GVTg_V5_4", "pci_0000_00_02_0", 12, "vfio_mdev")
    assert mdev.from_node_device(xml.parse(PARENT)) is None


def test_what_a_parent_can_make() -> None:
    assert mdev.types_of_node_device(xml.parse(PARENT)) == [
        MdevType("0000:00:02.0", "i915-GVTg_V5_4", "GVTg", "vfio-pci", 1),
        MdevType("0000:00:02.0", "odd", None, None, None),
    ]
    assert mdev.types_of_node_device(xml.parse(DEVICE)) == []


def test_a_parent_that_is_no_pci_device_is_called_as_its_slices_call_it() -> None:
    # libvirt 9 of the kernel's sample driver mtty.
    parent = """<device><name>mtty_mtty</name><path>/sys/devices/virtual/mtty/mtty</path><parent>computer</parent>
<capability type='mdev_types'><type id='mtty-1'><name>Single port serial</name><deviceAPI>vfio-pci</deviceAPI>
<availableInstances>23</availableInstances></type></capability></device>"""
    made = f"""<device><name>mdev_{UUID.replace("-", "_")}_mtty</name><parent>mtty_mtty</parent><capability type='mdev'>
<type id='mtty-1'/><uuid>{UUID}</uuid><parent_addr>mtty</parent_addr></capability></device>"""
    (kind,) = mdev.types_of_node_device(xml.parse(parent))
    assert kind == MdevType("mtty", "mtty-1", "Single port serial", "vfio-pci", 23)
    device = mdev.from_node_device(xml.parse(made))
    assert device is not None and device.parent == kind.parent


def test_a_hostdev_and_its_uuid() -> None:
    element = mdev.hostdev_element(UUID, display=True)
    assert xml.raw(element) == (
        f'<hostdev mode="subsystem" type="mdev" model="vfio-pci" display="on"><source><address uuid="{UUID}"/>'
        "</source></hostdev>"
    )
    assert mdev.uuid_of(element) == UUID
    assert mdev.uuid_of(xml.parse("<hostdev type='mdev'/>")) is None
    assert mdev.uuid_of(xml.parse(f"<hostdev type='pci'><source><address uuid='{UUID}'/></source></hostdev>")) is None


@pytest.mark.parametrize("text", ["", "x", UUID[:-1], UUID + "0", UUID.replace("-", ""), "../" + UUID, UUID + "\n\n-"])
def test_what_is_no_uuid(text: str) -> None:
    with pytest.raises(UsageProblem, match="UUID of a mediated device"):
        mdev.parse_uuid(text)


def test_a_uuid_in_capitals_is_the_same() -> None:
    assert mdev.parse_uuid(UUID.upper()) == UUID
