"""Deleting a VM and what kvmctl made for it, and nothing else."""

from dataclasses import dataclass
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import KvmctlError, Refused
from kvmctl.model import foreign_disks, xml
from kvmctl.model.metadata import Metadata, OwnedVolume
from kvmctl.operations import disk_secret, metadata, pools, ports, removal
from kvmctl.operations.progress import Progress
from kvmctl.preflight import dependents

Storage = Literal["own", "all", "none"]


@dataclass(frozen=True)
class Plan:
    """What goes and what stays. ``kept`` are paths of disks that are not kvmctl's."""

    name: str
    uuid: str
    running: bool
    persistent: bool
    volumes: tuple[OwnedVolume, ...]
    kept: tuple[str, ...]
    snapshots: int
    forwards: int

    def steps(self) -> list[str]:
        """What will be done, a sentence each."""
        told = [f"power off {self.name}"] if self.running else []
        told += [f"take back its {self.forwards} published ports"] if self.forwards else []
        told += [f"delete its {self.snapshots} snapshots"] if self.snapshots else []
        told += [f"undefine {self.name}, with its NVRAM and TPM state"]
        told += [f"delete {v.path or v.name}" for v in self.volumes]
        return [*told, *(f"keep {path}" for path in self.kept)]


def plan(hypervisor: Hypervisor, name: str, storage: Storage = "own") -> Plan:
    """Look at the VM. Raises Refused where it is protected, or others' disks stand on its own."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        remembered = metadata.read(domain)
        if remembered.protected:
            raise Refused(f"{domain.name()} is protected", f"'kvmctl unprotect {domain.name()}' lifts that")
        running = bool(domain.isActive())
        persistent = bool(domain.isPersistent())
        tree = xml.parse(domain.XMLDesc(0), "domain", "domain")
        if persistent:
            remembered = _with_lost(domain, remembered)
        volumes = list(remembered.volumes) if storage != "none" else []
        users = _users_data(hypervisor, tree, remembered)
        kept = users if storage == "own" else []
        volumes = [volume for volume in volumes if volume.path not in kept]
        own = {volume.path: volume for volume in volumes if volume.path}
        below = [(path, False) for path in users if path in foreign_disks.read(remembered)]
        for path, readonly in [*_disk_paths(tree), *below]:
            if path in own or path in kept:
                continue
            volume = _volume_at(hypervisor, path) if storage == "all" and not readonly else None
            if volume is not None and not _others_use(hypervisor, domain, path):
                volumes.append(volume)
            else:
                kept.append(path)
        _refuse_dependents(hypervisor, domain, volumes)
        count = domain.snapshotNum(0) if persistent else 0
        return Plan(
            domain.name(),
            domain.UUIDString(),
            running,
            persistent,
            tuple(volumes),
            tuple(kept),
            count,
            len(remembered.forwards),
        )


def _users_data(hypervisor: Hypervisor, tree: xml.Element, remembered: Metadata) -> list[str]:
    """What holds the data of disks that are not kvmctl's: they, and the overlays that a snapshot or clone put above."""
    foreign = set(foreign_disks.read(remembered))
    found: list[str] = []
    for path, readonly in _disk_paths(tree) if foreign else ():
        chain = [] if readonly else dependents.chain(hypervisor, path)
        if foreign.intersection(chain[1:]):
            found += chain
    return list(dict.fromkeys(found))


def _with_lost(domain: libvirt.virDomain, remembered: Metadata) -> Metadata:
    """Where a revert was killed the definition is of another moment; the kept present knows what was made since."""
    if domain.snapshotNum(0) == 0:
        return remembered
    from kvmctl.operations import snapshots

    left = snapshots.cut_short(snapshots.load(domain), remembered)
    known = {(volume.pool, volume.name) for volume in remembered.volumes}
    more = snapshots.volumes_then(domain, left.name) if left is not None else ()
    others = (volume for volume in more if (volume.pool, volume.name) not in known)
    return remembered._replace(volumes=(*remembered.volumes, *others))


def run(hypervisor: Hypervisor, plan_: Plan, progress: Progress) -> dict[str, Any]:
    """Delete. Returns ``{"name", "uuid", "changed", "deleted", "kept", "warnings"}``: paths, and what stays undone.

    The definition goes last of all, so that what fails, or is killed half way, can be deleted again.
    """
    domain = hypervisor.find(plan_.uuid)
    progress.step(f"deleting {plan_.name}")
    with translated(hypervisor.uri):
        warnings = ports.unpublish_all(hypervisor, domain)
        if domain.isActive():
            removal.power_off(domain)
        if plan_.persistent and plan_.kept:
            # In a disk that stays, the snapshots' own data would stay with it, with nobody left to know of it.
            for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL):
                snapshot.delete(0)
        deleted = []
        for volume in plan_.volumes:
            if volume.role != "base" and pools.delete_volume(hypervisor, volume.pool, volume.name):
                deleted.append(volume.path or f"{volume.pool}/{volume.name}")
            if volume.role == "disk":
                disk_secret.forget(hypervisor, volume.path)
        deleted += _delete_bases(hypervisor, plan_.name, [volume for volume in plan_.volumes if volume.role == "base"])
        if plan_.persistent:
            removal.undefine(domain)
    return {
        "name": plan_.name,
        "uuid": plan_.uuid,
        "changed": True,
        "deleted": deleted,
        "kept": list(plan_.kept),
        "warnings": warnings,
    }


def _delete_bases(hypervisor: Hypervisor, vm: str, bases: list[OwnedVolume]) -> list[str]:
    """Delete what this VM and its clones stood on together, as far as this was the last that did; the paths."""
    deleted = []
    left = [volume for volume in bases if volume.path is not None]
    while left:
        # One base may stand on another: each round frees the next one below.
        free = [v for v in left if v.path and not dependents.of(hypervisor, [v.path], except_vm=vm)]
        if not free:
            break
        for volume in free:
            if pools.delete_volume(hypervisor, volume.pool, volume.name) and volume.path:
                deleted.append(volume.path)
        left = [volume for volume in left if volume not in free]
    return deleted


def _disk_paths(tree: xml.Element) -> list[tuple[str, bool]]:
    found = []
    for disk in tree.iterfind("devices/disk"):
        source = disk.find("source")
        path = (source.get("file") or source.get("dev")) if source is not None else None
        if path:
            found.append((path, disk.get("device") == "cdrom" or disk.find("readonly") is not None))
    return found


def _volume_at(hypervisor: Hypervisor, path: str) -> OwnedVolume | None:
    try:
        volume = hypervisor.conn.storageVolLookupByPath(path)
        return OwnedVolume(volume.storagePoolLookupByVolume().name(), volume.name(), path)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise


def _others_use(hypervisor: Hypervisor, domain: libvirt.virDomain, path: str) -> bool:
    for other in hypervisor.conn.listAllDomains(0):
        if other.UUIDString() == domain.UUIDString():
            continue
        if any(used == path for used, _ in _disk_paths(xml.parse(other.XMLDesc(0), "domain", "domain"))):
            return True
    return False


def _refuse_dependents(hypervisor: Hypervisor, domain: libvirt.virDomain, volumes: list[OwnedVolume]) -> None:
    """A disk that others are copy-on-write copies of must outlive them."""
    gone = {(v.pool, v.name) for v in volumes}
    # A base is meant to be stood upon: it stays for as long as anything does.
    paths = {v.path for v in volumes if v.path and v.role != "base"}
    if not paths:
        return
    for name in {v.pool for v in volumes}:
        pool = pools.find_pool(hypervisor, name)
        if pool is None or not pool.isActive():
            continue
        for volume in pool.listAllVolumes(0):
            if (name, volume.name()) in gone:
                continue
            try:
                backing = xml.parse(volume.XMLDesc(0), "storage volume", "volume").findtext("backingStore/path")
            except (libvirt.libvirtError, KvmctlError):
                # Deleted since it was listed.
                continue
            if backing in paths:
                raise Refused(
                    f"the volume {volume.name()} is a copy-on-write copy of a disk of {domain.name()}",
                    "delete what uses that first, or make it independent ('kvmctl clone --full')",
                )
