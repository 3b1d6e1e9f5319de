"""Each disk of the guest: seen by both hosts, or to be copied and room for it."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from kvmctl.connection import translated
from kvmctl.model import xml
from kvmctl.model.migration import DiskMove
from kvmctl.model.units import human_size
from kvmctl.preflight import volumes
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides


class Storage:
    """What the checks found, and what is to be done with each disk."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.moves: list[DiskMove] = []


def look(sides: Sides) -> Storage:
    """Judge every disk. A disk without a move is one that libvirt takes along by itself (an empty drive)."""
    found = Storage()
    for disk in sides.live.iterfind("devices/disk"):
        _disk(sides, disk, found)
    for tag in ("kernel", "initrd", "dtb"):
        path = sides.live.findtext(f"os/{tag}")
        if path:
            found.checks.append(_boot_file(sides, tag, path))
    _room(sides, found)
    if not found.checks:
        found.checks.append(Check("storage", "ok", "the guest has no disks"))
    return found


def _disk(sides: Sides, disk: xml.Element, found: Storage) -> None:
    target = disk.find("target")
    dev = target.get("dev", "") if target is not None else ""
    title = f"disk {dev}"
    source = disk.find("source")
    if source is None:
        found.checks.append(Check(title, "ok", "an empty drive"))
        return
    found.checks.extend(_kept_here(sides, disk, title))
    if disk.get("type") == "network":
        found.checks.append(Check(title, "ok", f"reached over the network ({source.get('protocol')}) by both"))
        return
    path = source.get("file") or source.get("dev")
    if path is None and source.get("pool"):
        path = _path_in_pool(sides, source)
    if path is None or not PurePosixPath(path).is_absolute():
        found.checks.append(Check(title, "refused", f"a disk of type {disk.get('type')} does not move", "detach it"))
        return
    facts = _Facts(sides, disk, dev, path)
    if disk.get("type") == "block":
        _shared(facts, found, seen="a block device, which must be the same on both")
    elif facts.same:
        _shared(facts, found, seen=f"{path} is one file that both hosts see")
    elif sides.wish.copy != "none":
        _copied(facts, found)
    elif facts.same is False:
        detail = f"{path} is not on the destination" if facts.there is None else f"{path} is another file there"
        found.checks.append(
            Check(title, "refused", detail, "add --copy-storage, or keep it on storage that both hosts share")
        )
    else:
        _unseen(facts, found)


def _kept_here(sides: Sides, disk: xml.Element, title: str) -> Iterator[Check]:
    """What a disk has on this host alone, whatever becomes of its bytes."""
    if disk.find("transient") is not None:
        hint = f"power it off, and take <transient/> from the disk ('kvmctl edit {sides.name}')"
        yield Check(title, "refused", "its writes are thrown away in the end (transient): libvirt moves no such", hint)
    for secret in (*disk.iterfind(".//encryption/secret"), *disk.iterfind(".//auth/secret")):
        uuid, usage = secret.get("uuid"), secret.get("usage")
        conn = sides.destination.conn
        with translated(sides.destination.uri):
            if uuid is not None:
                known = {one.UUIDString() for one in conn.listAllSecrets(0)}
            else:
                known = {one.usageID() for one in conn.listAllSecrets(0)}
        if (uuid or usage) not in known:
            yield Check(
                title,
                "refused",
                f"its key is a secret ({uuid or usage}) that the destination's libvirt does not have",
                "define it there with the same UUID and value: 'virsh secret-define', 'virsh secret-set-value'",
            )


class _Facts:
    """What is known of one disk on either side."""

    def __init__(self, sides: Sides, disk: xml.Element, dev: str, path: str) -> None:
        self.sides, self.dev, self.path = sides, dev, path
        self.title = f"disk {dev}"
        driver = disk.find("driver")
        self.format = driver.get("type", "raw") if driver is not None else "raw"
        self.cache = driver.get("cache", "default") if driver is not None else "default"
        self.readonly = disk.find("readonly") is not None or disk.get("device") in ("cdrom", "floppy")
        self.here = volumes.find(sides.source, path)
        self.there = volumes.find(sides.destination, path)
        self.same = volumes.is_same_file(sides.source, sides.destination, path)

    def move(self, action: Literal["shared", "copy"]) -> DiskMove:
        """What every move of this disk has in common."""
        here = self.here
        return DiskMove(
            target=self.dev,
            source=self.path,
            action=action,
            format=self.format,
            readonly=self.readonly,
            capacity=here.capacity if here is not None else 0,
            allocation=here.allocation if here is not None else 0,
        )


def _path_in_pool(sides: Sides, source: xml.Element) -> str | None:
    pool = next((p for p in volumes.pools(sides.source) if p.name == source.get("pool")), None)
    if pool is None or pool.path is None:
        return None
    return str(pool.path / source.get("volume", ""))


def _shared(facts: _Facts, found: Storage, seen: str) -> None:
    found.moves.append(facts.move("shared")._replace(unsafe=facts.same is True))
    if facts.cache in ("writeback", "unsafe") and not facts.readonly:
        found.checks.append(
            Check(
                facts.title,
                "warn",
                f"{seen}; its cache mode {facts.cache} keeps writes in this host's memory until the switch",
                "cache='none' is the safe choice for a disk that moves",
            )
        )
        return
    found.checks.append(Check(facts.title, "ok", seen))


def _unseen(facts: _Facts, found: Storage) -> None:
    """No pool of a host holds the path, so nothing tells whether the other one has the same file."""
    found.moves.append(facts.move("shared")._replace(unsafe=facts.sides.wish.trust_storage))
    blind = facts.sides.source.uri if facts.here is None else facts.sides.destination.uri
    folder = PurePosixPath(facts.path).parent
    hint = f"make {folder} a storage pool there ('virsh -c {blind} pool-create-as NAME dir --target {folder}')"
    if facts.sides.wish.trust_storage:
        found.checks.append(Check(facts.title, "warn", f"{facts.path} is taken for shared, as --shared-storage says"))
    elif facts.readonly:
        found.checks.append(Check(facts.title, "unknown", f"whether the destination has {facts.path}", hint))
    else:
        detail = f"whether both hosts see {facts.path} cannot be told: no storage pool of {blind} holds it"
        found.checks.append(
            Check(facts.title, "refused", detail, f"{hint}, add --shared-storage if you know, or --copy-storage")
        )


def _copied(facts: _Facts, found: Storage) -> None:
    """Where the copy goes, and whether it can be made."""
    here, wish, other = facts.here, facts.sides.wish, facts.sides.destination
    if here is None:
        detail = f"no storage pool of the source holds {facts.path}, so its size is not known"
        found.checks.append(Check(facts.title, "refused", detail, f"make {PurePosixPath(facts.path).parent} a pool"))
        return
    if facts.there is not None:
        detail = f"the destination has another file at {facts.path} already"
        found.checks.append(
            Check(facts.title, "refused", detail, "move or delete that one first; nothing is overwritten")
        )
        return
    pool = volumes.pool_for(other, facts.path) or next((p for p in volumes.pools(other) if p.name == "default"), None)
    if pool is None or pool.path is None:
        detail = f"the destination has no storage pool for {facts.path}"
        found.checks.append(
            Check(facts.title, "refused", detail, f"'virsh -c {other.uri} pool-create-as …' makes one there")
        )
        return
    path = str(pool.path / PurePosixPath(facts.path).name)
    if path != facts.path and volumes.find(other, path) is not None:
        found.checks.append(Check(facts.title, "refused", f"the destination has another file at {path} already"))
        return
    backing = here.backing if wish.copy == "top" else None
    if backing is not None and not _has_backing(facts, found, backing):
        return
    if here.backing is not None and backing is None and wish.offline:
        detail = f"it stands on {here.backing}, and only a running guest's disk can be made whole while it moves"
        found.checks.append(Check(facts.title, "refused", detail, "start the guest, or add --copy-storage-inc"))
        return
    found.moves.append(
        facts.move("copy")._replace(
            pool=pool.name,
            path=path,
            backing=backing,
            backing_format=here.backing_format if backing else None,
        )
    )
    whole = "its top overlay" if backing else "all of it"
    found.checks.append(Check(facts.title, "ok", f"{whole} is copied to {path} in pool {pool.name}"))


def _has_backing(facts: _Facts, found: Storage, backing: str) -> bool:
    there = volumes.find(facts.sides.destination, backing)
    here = volumes.find(facts.sides.source, backing)
    if there is None:
        detail = f"it stands on {backing}, which the destination does not have"
        found.checks.append(Check(facts.title, "refused", detail, "bring that image there, or use --copy-storage"))
        return False
    if here is not None and here.capacity != there.capacity:
        detail = f"{backing} is another image there ({human_size(there.capacity)}, not {human_size(here.capacity)})"
        found.checks.append(Check(facts.title, "refused", detail, "bring the same image there, or use --copy-storage"))
        return False
    return True


def _boot_file(sides: Sides, tag: str, path: str) -> Check:
    if volumes.find(sides.destination, path) is not None:
        return Check(tag, "ok", f"both have {path}")
    if volumes.pool_for(sides.destination, path) is not None:
        return Check(tag, "refused", f"the destination has no {path}, and its QEMU would not start", "copy it there")
    return Check(
        tag,
        "unknown",
        f"whether the destination has {path}: no storage pool holds it",
        "QEMU there needs the same file",
    )


def _room(sides: Sides, found: Storage) -> None:
    """Whether what is copied fits: a raw disk whole, another what it holds now (QEMU copies no holes)."""
    pools = {pool.name: pool for pool in volumes.pools(sides.destination)}
    needed: dict[str, int] = {}
    for move in found.moves:
        if move.action == "copy" and move.pool is not None:
            needed[move.pool] = needed.get(move.pool, 0) + max(move.allocation, 1)
    for name, size in needed.items():
        free = pools[name].free if name in pools else 0
        seen = f"{human_size(size)} to copy, {human_size(free)} free in pool {name}"
        if size > free:
            found.checks.append(Check("room", "refused", seen, "free some there, or name another place"))
        else:
            found.checks.append(Check("room", "ok", seen))


def iter_copies(moves: tuple[DiskMove, ...]) -> Iterator[DiskMove]:
    """The disks that are copied."""
    return (move for move in moves if move.action == "copy")
