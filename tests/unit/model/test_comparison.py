"""When two definitions are the same, and when nobody has changed one since."""

import pytest

from kvmctl.model import undo_record, xml
from kvmctl.model.comparison import comparable, fingerprint
from kvmctl.model.metadata import Metadata, OwnedVolume, put
from kvmctl.model.undo_record import UndoRecord

OWN = OwnedVolume("default", "a.qcow2", "/p/a.qcow2")
OVERLAY = OwnedVolume("default", "a-vda-1.qcow2", "/p/a-vda-1.qcow2")


def domain(source: str = "/p/a.qcow2", name: str = "a", remembered: Metadata | None = None) -> str:
    """A definition with one disk."""
    tree = xml.parse(
        f"<domain><name>{name}</name><memory>1</memory><os><type>hvm</type></os><devices>"
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{source}'/><target dev='vda'/></disk>"
        "<controller type='usb'/><controller type='pci'/></devices></domain>"
    )
    put(tree, remembered or Metadata(volumes=(OWN,)))
    return xml.raw(tree)


@pytest.mark.parametrize(
    "other",
    [
        domain(name="renamed"),
        domain(source=OVERLAY.path or "", remembered=Metadata(volumes=(OVERLAY, OWN._replace(role="base")))),
        domain(remembered=Metadata(volumes=(OWN,), protected=True)),
        domain().replace("<os>", "<os><loader>/x</loader><nvram>/y</nvram>"),
        domain().replace("<devices>", "\n  <devices>"),
    ],
    ids=["name", "overlay", "metadata", "firmware", "white space"],
)
def test_what_is_no_change(other: str) -> None:
    assert fingerprint(other) == fingerprint(domain())


@pytest.mark.parametrize(
    "other",
    [
        domain(source="/elsewhere/b.qcow2"),
        domain().replace("<memory>1", "<memory>2"),
        domain().replace("vda", "vdb"),
        domain().replace('<controller type="usb"/>', ""),
    ],
    ids=["disk", "memory", "target", "controller"],
)
def test_what_is_a_change(other: str) -> None:
    assert other != domain()
    assert fingerprint(other) != fingerprint(domain())


def test_controllers_may_stand_in_any_order_and_records_do_not_count() -> None:
    turned = domain().replace('<controller type="usb"/><controller type="pci"/>', "")
    turned = turned.replace("</devices>", '<controller type="pci"/><controller type="usb"/></devices>')
    assert turned != domain()
    assert comparable(turned) == comparable(domain())
    kept = undo_record.put(Metadata(volumes=(OWN,)), UndoRecord("set a", "now", definition="<domain/>", after="x"))
    assert comparable(domain(remembered=kept)) == comparable(domain())
