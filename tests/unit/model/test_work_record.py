"""The note of who is at work on a VM's disks, and which moment its slot holds."""

from kvmctl.model import slot_record, work_record, xml
from kvmctl.model.metadata import Creator, Metadata, from_element, to_element
from kvmctl.model.work_record import WorkRecord

PROCESS = Creator("machine", "boot", 12, 345)


def again(metadata: Metadata) -> Metadata:
    """As libvirt gives it back."""
    return from_element(xml.parse(xml.raw(to_element(metadata))))


def test_the_note_comes_back_as_it_was_and_goes() -> None:
    noted = work_record.begin(Metadata(created="now"), PROCESS, ["/p/a b.qcow2", None, "/p/<c>", "/p/a b.qcow2"])
    assert work_record.read(again(noted)) == WorkRecord(PROCESS, ("/p/a b.qcow2", "/p/<c>"))
    assert work_record.put(noted, None) == Metadata(created="now")
    assert work_record.read(Metadata()) is None


def test_what_was_noted_before_is_not_forgotten() -> None:
    first = work_record.begin(Metadata(), Creator("machine", "boot", 1, 1), ["/p/a"])
    assert work_record.read(work_record.begin(first, PROCESS, ["/p/b"])) == WorkRecord(PROCESS, ("/p/a", "/p/b"))


def test_a_note_that_somebody_edited_is_none() -> None:
    text = work_record.begin(Metadata(), PROCESS, ["/p/a"]).extra[0]
    assert work_record.read(Metadata(extra=(text.replace('pid="12"', 'pid="x"'),))) is None


def test_the_slot() -> None:
    assert slot_record.settled(Metadata()) is None
    settled = slot_record.settle(Metadata(created="now"), "2026-01-01T00:00:00+00:00")
    assert slot_record.settled(again(settled)) == "2026-01-01T00:00:00+00:00"
    assert slot_record.settle(settled, None) == Metadata(created="now")
