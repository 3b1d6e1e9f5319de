"""The note of a migration, and a domain with its disks' new places."""

from kvmctl.model import migration, xml
from kvmctl.model.migration import DiskMove, Note


def test_note_survives_both_forms() -> None:
    """libvirt shows it with its namespace in the domain, and gives it back alone without one."""
    note = Note("qemu:///system", "qemu+ssh://b/system", (("default", "a.qcow2"), ("other", "b")), autostart=True)
    element = migration.to_element(note)
    assert migration.from_element(element) == note
    bare = xml.raw(element).replace(f' xmlns="{migration.NAMESPACE}"', "")
    assert "xmlns" not in bare and migration.from_element(xml.parse(bare)) == note


def test_note_that_was_edited() -> None:
    odd = xml.parse("<migration><volume/><volume pool='p'/><volume pool='p' name='n'/><other/></migration>")
    assert migration.from_element(odd) == Note("", "", (("p", "n"),))


DOMAIN = """<domain><metadata><x xmlns='urn:example'/></metadata><devices>
<disk type='file'><source file='/old/a'/><backingStore type='file'><source file='/base'/></backingStore>
<target dev='vda'/></disk>
<disk type='file'><source file='/old/b'/><backingStore/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk></devices></domain>"""


def test_disks_get_their_places_there() -> None:
    moves = (
        DiskMove("vda", "/old/a", "copy", pool="p", path="/new/a"),
        DiskMove("vdb", "/old/b", "shared"),
    )
    root = migration.moved_disks(xml.parse(DOMAIN), moves)
    assert [e.get("file") for e in root.iter("source")] == ["/new/a", "/old/b"]
    # Copied whole, it stands on nothing.
    assert root.find("devices/disk[1]/backingStore") is None
    assert root.find("devices/disk[2]/backingStore") is not None


def test_a_top_overlay_keeps_what_it_stands_on() -> None:
    moves = (DiskMove("vda", "/old/a", "copy", pool="p", path="/new/a", backing="/base"),)
    root = migration.moved_disks(xml.parse(DOMAIN), moves)
    assert root.find("devices/disk[1]/backingStore/source") is not None


def test_strip_leaves_others_metadata() -> None:
    root = xml.parse(DOMAIN)
    holder = root.find("metadata")
    assert holder is not None
    holder.append(migration.to_element(Note("a", "b")))
    migration.strip(root)
    assert len(holder) == 1 and holder[0].tag == "{urn:example}x"
    migration.strip(xml.parse("<domain/>"))
