"""Snapshots: what libvirt says of one, the tree of several, names."""

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import snapshot, xml
from kvmctl.model.snapshot import Snapshot

INTERNAL = """
<domainsnapshot>
  <name>s1</name><description>good</description><state>running</state>
  <parent><name>s0</name></parent><creationTime>1700000000</creationTime>
  <memory snapshot='internal'/>
  <disks><disk name='vda' snapshot='internal'/><disk name='sda' snapshot='no'/></disks>
  <domain type='qemu'><name>web</name></domain>
</domainsnapshot>
"""
EXTERNAL = """
<domainsnapshot>
  <name>e1</name><state>running</state><creationTime>1700000000</creationTime>
  <memory snapshot='external' file='/pool/web.e1.memory'/>
  <disks><disk name='vda' snapshot='external' type='file'><source file='/pool/web.e1.vda.qcow2'/></disk></disks>
</domainsnapshot>
"""


def one(name: str, parent: str | None = None, current: bool = False, created: str = "2026") -> Snapshot:
    return Snapshot(name, parent, created, "running", True, "internal", current)


def test_an_internal_snapshot_is_read() -> None:
    found = snapshot.from_xml(INTERNAL, current="s1")
    assert found.as_dict() == {
        "name": "s1",
        "parent": "s0",
        "children": [],
        "created": "2023-11-14T22:13:20+00:00",
        "state": "running",
        "current": True,
        "memory": True,
        "location": "internal",
    }
    assert found.description == "good"


def test_an_external_snapshot_names_its_files() -> None:
    found = snapshot.from_xml(EXTERNAL)
    assert (found.location, found.memory, found.memory_file) == ("external", True, "/pool/web.e1.memory")
    assert found.disks[0].overlay == "/pool/web.e1.vda.qcow2"
    assert found.current is False


@pytest.mark.parametrize("stamp", ["", "soon", "-5", "9" * 30])
def test_a_time_that_is_none_is_not_known(stamp: str) -> None:
    text = f"<domainsnapshot><name>a</name><creationTime>{stamp}</creationTime></domainsnapshot>"
    assert snapshot.from_xml(text).created is None


def test_children_come_after_their_parents_and_by_age() -> None:
    found = snapshot.related([one("c", "a", created="2"), one("b", "a", created="1"), one("a")])
    assert [(s.name, s.children) for s in found] == [("a", ("b", "c")), ("b", ()), ("c", ())]


def test_a_snapshot_whose_parent_is_gone_is_a_root() -> None:
    assert [s.name for s in snapshot.related([one("a", "lost"), one("b", "b")])] == ["a", "b"]


def test_descendants_are_all_below() -> None:
    tree = [one("a"), one("b", "a"), one("c", "b"), one("d")]
    assert snapshot.descendants(tree, "a") == ["b", "c"]
    assert snapshot.descendants(tree, "d") == []


def test_the_tree_shows_where_the_guest_stands() -> None:
    tree = [one("a"), one("b", "a", current=True), one("c", "a", created="2027"), one("before-revert-2", "c")]
    assert snapshot.draw(tree, "you are here", {"b": "then"}) == [
        "└─ a",
        "   ├─ b  then",
        "   │  └─ ● you are here",
        "   └─ c",
        "      └─ before-revert",
    ]


def test_without_a_current_one_the_guest_stands_at_the_root() -> None:
    assert snapshot.draw([one("a")], "here", {}) == ["├─ a", "└─ ● here"]
    assert snapshot.draw([], "here", {}) == ["└─ ● here"]


def test_a_chain_longer_than_pythons_stack_is_drawn() -> None:
    chain = [one("s0"), *(one(f"s{i}", f"s{i - 1}") for i in range(1, 2000))]
    assert len(snapshot.draw(chain, "here", {})) == 2001


@pytest.mark.parametrize("name", ["a", "before upgrade", "2026-11-23_02:20", "v1.2+x@y", "x" * 128])
def test_names_that_may_be_given(name: str) -> None:
    assert snapshot.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "../x",
        "-rf",
        "a\nb",
        "a\x1b[31m",
        "x" * 300,
        "12345",
        "before-revert",
        "before-revert-2",
        "a ",
        "\u202ea",
    ],
)
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(UsageProblem) as raised:
        snapshot.check_name(name)
    assert raised.value.message.isprintable()


def test_a_request_names_memory_and_disks() -> None:
    root = snapshot.request("e", "why", memory_file="/m", disks={"vda": "/o", "vdb": None})
    assert xml.raw(root) == (
        '<domainsnapshot><name>e</name><description>why</description><memory snapshot="external" file="/m"/>'
        '<disks><disk name="vda" snapshot="external"><driver type="qcow2"/><source file="/o"/></disk>'
        '<disk name="vdb" snapshot="no"/></disks></domainsnapshot>'
    )
