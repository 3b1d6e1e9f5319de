"""The record of the last change, in the metadata of the VM itself."""

from kvmctl.model import undo_record, xml
from kvmctl.model.metadata import Metadata, OwnedVolume, from_domain, from_element, put, to_element
from kvmctl.model.undo_record import UndoRecord

DEFINITION = "<domain><name>a</name><title>x &amp; ]]&gt; y</title></domain>"


def test_a_definition_comes_back_as_it_was() -> None:
    record = UndoRecord("set a --vcpus 2", "2026-01-01T00:00:00+00:00", definition=DEFINITION)
    kept = undo_record.put(Metadata(created="now"), record)
    again = from_element(xml.parse(xml.raw(to_element(kept))))
    assert undo_record.read(again) == record
    assert again.created == "now"


def test_there_is_one_record_and_it_can_go() -> None:
    first = undo_record.put(Metadata(), UndoRecord("a", "1", snapshot=True))
    second = undo_record.put(first, UndoRecord("b", "2", snapshot=True))
    assert len(second.extra) == 1
    assert undo_record.read(second) == UndoRecord("b", "2", snapshot=True)
    assert undo_record.read(undo_record.put(second, None)) is None


def test_a_definition_is_kept_without_the_records_in_it() -> None:
    domain = xml.parse(DEFINITION)
    put(domain, undo_record.put(Metadata(created="now"), UndoRecord("a", "1", definition="<domain/>")))
    kept = undo_record.without(xml.raw(domain))
    assert "undo" not in kept
    assert "created" in kept


def test_a_record_that_leads_nowhere_is_none() -> None:
    assert undo_record.read(undo_record.put(Metadata(), UndoRecord("a", "1"))) is None


def test_a_change_that_leads_nowhere_back_says_why() -> None:
    record = UndoRecord("disk resize a vda 2G", "1", never="it cannot shrink")
    assert undo_record.read(undo_record.put(Metadata(), record)) == record


def test_what_another_tool_copied_with_the_metadata_is_not_the_copys() -> None:
    original = xml.parse("<domain><name>a</name><uuid>11111111-1111-4111-8111-111111111111</uuid></domain>")
    put(original, Metadata(created="now", volumes=(OwnedVolume("default", "a.qcow2", "/p/a.qcow2"),)))
    assert len(from_domain(original).volumes) == 1
    uuid = original.find("uuid")
    assert uuid is not None
    uuid.text = "22222222-2222-4222-8222-222222222222"
    assert from_domain(original) == Metadata(created="now")


def test_what_was_for_one_run_alone_keeps_how_it_ran_before_and_after() -> None:
    record = UndoRecord("nic attach a x --live", "1", definition=DEFINITION, run="<domain><name>a</name></domain>")
    kept = undo_record.put(Metadata(), record)
    assert undo_record.read(from_element(xml.parse(xml.raw(to_element(kept))))) == record


def test_a_present_that_was_kept_by_name_is_found_by_it() -> None:
    record = UndoRecord("snapshot revert a x", "1", snapshot=True, kept="side")
    assert undo_record.read(undo_record.put(Metadata(), record)) == record
