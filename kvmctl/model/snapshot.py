"""A snapshot as libvirt describes it, the tree that snapshots make, and the XML that asks for one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

Location = Literal["internal", "external"]

# The one slot that a revert keeps the present in. libvirt cannot rename a snapshot, so while the guest goes
# back to the slot itself the newer present stands under the second name; both are shown as the first.
SLOT = "before-revert"
SLOT_NAMES = (SLOT, "before-revert-2")

# The name is stored inside qcow2 images (a 16-bit length) and becomes part of file names: this many characters
# fit everywhere.
LONGEST_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+@ -]*\Z")


class SnapshotDisk(NamedTuple):
    """One disk within a snapshot: ``how`` is ``no``, ``internal``, ``external`` or ``manual``.

    ``overlay`` is the file that the guest went on with, of an external one.
    """

    target: str
    how: str
    overlay: str | None = None


class Snapshot(NamedTuple):
    """A moment that a guest can go back to.

    ``state`` is libvirt's word for the guest then (``running``, ``paused``, ``shutoff``,
    ``disk-snapshot``); ``created`` is ISO 8601 in UTC; ``memory`` says whether the guest's memory is in it,
    ``memory_file`` where that is, of an external one.
    """

    name: str
    parent: str | None
    created: str | None
    state: str
    memory: bool
    location: Location
    current: bool = False
    description: str | None = None
    memory_file: str | None = None
    disks: tuple[SnapshotDisk, ...] = ()
    children: tuple[str, ...] = ()

    @property
    def shown_name(self) -> str:
        """The name for people and JSON: the slot has one, whichever of its two it stands under."""
        return SLOT if self.name in SLOT_NAMES else self.name

    def as_dict(self) -> dict[str, object]:
        """``{name, parent, children, created, state, current, memory, location}``."""
        return {
            "name": self.shown_name,
            "parent": shown(self.parent),
            "children": [shown(child) for child in self.children],
            "created": self.created,
            "state": self.state,
            "current": self.current,
            "memory": self.memory,
            "location": self.location,
        }


def shown(name: str | None) -> str | None:
    """The name that a snapshot's name is shown as; see SLOT."""
    return SLOT if name in SLOT_NAMES else name


def check_name(name: str) -> str:
    """``name`` if a new snapshot may have it; UsageProblem says what is wrong with another."""
    shown_name = name if len(name) <= 60 else name[:57] + "..."
    if name in SLOT_NAMES:
        raise UsageProblem(
            f"the snapshot name {name!a} is the slot that 'snapshot revert' keeps the present in",
            "choose another name",
        )
    if not name:
        raise UsageProblem("a snapshot needs a name", "leave it out and one is made from the time")
    if len(name) > LONGEST_NAME:
        raise UsageProblem(f"the snapshot name {shown_name!a} has {len(name)} characters, at most {LONGEST_NAME} work")
    if not _NAME.match(name) or name.endswith(" "):
        raise UsageProblem(
            f"{shown_name!a} cannot be the name of a snapshot",
            "use letters, digits, spaces and any of _ . : + @ -, beginning with a letter or a digit",
        )
    if name.isdigit():
        # QEMU and qemu-img take a number for the snapshot with that id in the image, whichever name it has.
        raise UsageProblem(f"the snapshot name {name!a} is all digits and would be taken for an id", "add a letter")
    return name


def from_xml(text: str, current: str | None = None) -> Snapshot:
    """A ``<domainsnapshot>``; ``current`` names the one that the guest stands on."""
    root = xml.parse(text, "snapshot", "domainsnapshot")
    name = root.findtext("name") or ""
    memory = root.find("memory")
    kept = memory.get("snapshot", "no") if memory is not None else "no"
    disks = tuple(_disk(element) for element in root.findall("disks/disk"))
    outside = kept == "external" or any(disk.how == "external" for disk in disks)
    return Snapshot(
        name=name,
        parent=root.findtext("parent/name"),
        created=_instant(root.findtext("creationTime")),
        state=root.findtext("state") or "unknown",
        memory=kept in ("internal", "external"),
        location="external" if outside else "internal",
        current=name == current,
        description=root.findtext("description"),
        memory_file=memory.get("file") if memory is not None else None,
        disks=disks,
    )


def _disk(element: xml.Element) -> SnapshotDisk:
    source = element.find("source")
    return SnapshotDisk(
        target=element.get("name", ""),
        how=element.get("snapshot", "no"),
        overlay=source.get("file") if source is not None else None,
    )


def _instant(seconds: str | None) -> str | None:
    if not seconds or not seconds.strip().isdigit():
        return None
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def related(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The same with ``children`` filled in, parents before their children, siblings by age and then name."""
    known = {snapshot.name: snapshot for snapshot in snapshots}
    children: dict[str | None, list[Snapshot]] = {}
    for snapshot in known.values():
        # A parent that is no longer there (edited by hand) leaves a root, not a lost branch.
        parent = snapshot.parent if snapshot.parent in known and snapshot.parent != snapshot.name else None
        children.setdefault(parent, []).append(snapshot)
    for group in children.values():
        group.sort(key=lambda s: (s.created or "", s.name))
    ordered: list[Snapshot] = []
    seen: set[str] = set()
    stack = list(reversed(children.get(None, [])))
    while stack:
        snapshot = stack.pop()
        seen.add(snapshot.name)
        below = children.get(snapshot.name, [])
        ordered.append(snapshot._replace(children=tuple(child.name for child in below)))
        stack.extend(reversed([child for child in below if child.name not in seen]))
    return ordered


def descendants(snapshots: Iterable[Snapshot], name: str) -> list[str]:
    """The names of all that come from ``name``, those nearest first, without itself."""
    children = {snapshot.name: snapshot.children for snapshot in related(snapshots)}
    found: list[str] = []
    queue = list(children.get(name, ()))
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue.extend(children.get(child, ()))
    return found


def draw(snapshots: Sequence[Snapshot], here: str, label: Mapping[str, str]) -> list[str]:
    """The tree as lines, with ``here`` where the guest stands: below the current snapshot, or at the root.

    ``label`` gives the text after a snapshot's name.
    """
    ordered = related(snapshots)
    known = {snapshot.name: snapshot for snapshot in ordered}
    inside = {child for snapshot in ordered for child in snapshot.children}
    roots = [snapshot.name for snapshot in ordered if snapshot.name not in inside]
    current = next((snapshot.name for snapshot in ordered if snapshot.current), None)
    lines: list[str] = []

    def entries(names: Sequence[str], prefix: str, marked: bool) -> list[tuple[str | None, str, bool]]:
        found: list[str | None] = [*names, None] if marked else list(names)
        return [(name, prefix, index == len(found) - 1) for index, name in enumerate(found)][::-1]

    # A stack of its own: a chain may be longer than Python's.
    stack = entries(roots, "", current is None)
    while stack:
        name, prefix, last = stack.pop()
        branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if name is None:
            lines.append(f"{prefix}{branch}● {here}")
            continue
        text = label.get(name, "")
        lines.append(f"{prefix}{branch}{known[name].shown_name}" + (f"  {text}" if text else ""))
        stack.extend(entries(known[name].children, prefix + deeper, name == current))
    return lines


def request(
    name: str,
    description: str | None = None,
    *,
    memory: Literal["internal", "no"] | None = None,
    memory_file: str | None = None,
    disks: Mapping[str, str | None] | None = None,
) -> xml.Element:
    """The ``<domainsnapshot>`` that asks libvirt for one.

    ``disks`` maps a target to the overlay that an external snapshot is to make, or to None for a disk that is
    to be left out; without it libvirt chooses for each.
    """
    root = xml.new("domainsnapshot")
    xml.add(root, "name", name)
    if description:
        xml.add(root, "description", description)
    if memory_file:
        xml.add(root, "memory", snapshot="external", file=memory_file)
    elif memory:
        xml.add(root, "memory", snapshot=memory)
    if disks is not None:
        holder = xml.add(root, "disks")
        for target, overlay in disks.items():
            disk = xml.add(holder, "disk", name=target, snapshot="external" if overlay else "no")
            if overlay:
                xml.add(disk, "driver", type_="qcow2")
                xml.add(disk, "source", file=overlay)
    return root
