"""What a migration is asked to do, what becomes of each disk, and the note it leaves while it is under way."""

from typing import Literal, NamedTuple

from kvmctl.model import xml

# Beside kvmctl's own metadata of a VM, so that neither overwrites the other.
NAMESPACE = "urn:kvmctl:migration:1"
PREFIX = "kvmctl-migration"

Copy = Literal["none", "full", "top"]
Postcopy = Literal["auto", "never", "now"]


class Wish(NamedTuple):
    """What the user asks for. Times in seconds, ``bandwidth`` in bytes a second; None: no limit."""

    destination: str
    max_downtime: float = 0.03
    timeout: float | None = None
    bandwidth: int | None = None
    copy: Copy = "none"
    postcopy: Postcopy = "never"
    offline: bool = False
    connections: int | None = None
    compress: bool = False
    tls: bool = False
    trust_storage: bool = False


class DiskMove(NamedTuple):
    """One disk. ``shared``: both hosts see the same bytes; ``copy``: QEMU (or kvmctl, offline) copies them.

    ``pool`` and ``path`` say where the copy goes on the destination; ``backing`` is the file that the copy's top
    overlay stands on there, None where the copy is whole. Sizes in bytes. ``unsafe``: libvirt does not see by
    itself that the storage is shared, kvmctl does.
    """

    target: str
    source: str
    action: Literal["shared", "copy"]
    format: str = "raw"
    readonly: bool = False
    capacity: int = 0
    allocation: int = 0
    pool: str | None = None
    path: str | None = None
    backing: str | None = None
    backing_format: str | None = None
    unsafe: bool = False


class Note(NamedTuple):
    """What the domain's metadata says while it moves, for whoever finds it after a crash.

    ``volumes`` are those made on the destination for it, as (pool, name); ``autostart`` is what libvirt does not
    take along.
    """

    source: str
    destination: str
    volumes: tuple[tuple[str, str], ...] = ()
    autostart: bool = False


def to_element(note: Note) -> xml.Element:
    """``<migration>`` as virDomainSetMetadata takes it."""
    root = xml.etree.Element(f"{{{NAMESPACE}}}migration", nsmap={None: NAMESPACE})
    root.set("source", note.source)
    root.set("destination", note.destination)
    root.set("autostart", "yes" if note.autostart else "no")
    for pool, name in note.volumes:
        xml.add(root, f"{{{NAMESPACE}}}volume", pool=pool, name=name)
    return root


def from_element(root: xml.Element) -> Note:
    """The note; what in it is malformed is left out.

    virDomainGetMetadata gives an element back without the namespace that a ``<domain>`` shows it with.
    """
    volumes = ((v.get("pool"), v.get("name")) for v in root if xml.etree.QName(v).localname == "volume")
    return Note(
        root.get("source", ""),
        root.get("destination", ""),
        tuple((pool, name) for pool, name in volumes if pool and name),
        root.get("autostart") == "yes",
    )


def strip(domain: xml.Element) -> None:
    """Take the note out of a whole ``<domain>`` tree."""
    holder = domain.find("metadata")
    note = holder.find(f"{{{NAMESPACE}}}migration") if holder is not None else None
    if holder is not None and note is not None:
        holder.remove(note)


def moved_disks(domain: xml.Element, moves: tuple[DiskMove, ...]) -> xml.Element:
    """``domain``, changed in place: each copied disk has its place on the destination.

    A whole copy stands on nothing, so what the old one stood on is taken out of the tree.
    """
    by_target = {move.target: move for move in moves if move.action == "copy" and move.path}
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        move = by_target.get(target.get("dev", "") if target is not None else "")
        source = disk.find("source")
        if move is None or source is None:
            continue
        source.set("file" if source.get("file") else "dev", move.path or "")
        if move.backing is None:
            for backing in disk.findall("backingStore"):
                disk.remove(backing)
    return domain
