"""Who stands on a disk: the volumes that are copy-on-write copies of it, and the VMs that use those or itself."""

import contextlib
import posixpath
from collections.abc import Iterable

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.connection import is_missing as says_missing
from kvmctl.errors import KvmctlError, NotFound, Refused
from kvmctl.model import xml
from kvmctl.model.metadata import from_domain
from kvmctl.preflight.snapshots import disks_of
from kvmctl.preflight.volume_bytes import backing

CIRCLE_HINT = "its backing file was changed by hand: 'qemu-img rebase -u -F FORMAT -b BASE FILE' puts it right"


def of(hypervisor: Hypervisor, paths: Iterable[str], *, except_vm: str | None = None) -> list[str]:
    """The names of what would break if one of ``paths`` changed or vanished: VMs first, else bare volumes.

    A VM counts when one of the paths, or a volume backed by one, is in its definition or its running backing
    chain; ``except_vm`` (its name) does not count, nor the volumes that only it uses. Volumes of active pools
    are seen, the others cannot be.
    """
    wanted = set(paths)
    if not wanted:
        return []
    above = _above(hypervisor, wanted)
    found: list[str] = []
    excused: set[str] = set()
    for domain in _domains(hypervisor):
        used = _files_of(domain)
        name = domain.name()
        if name == except_vm:
            excused |= used & above
        elif used & (wanted | above):
            found.append(name)
            excused |= used & above
    return [*found, *sorted(above - excused - wanted)]


def volumes_on(hypervisor: Hypervisor, paths: Iterable[str]) -> set[str]:
    """The paths of all volumes that are backed, directly or through others, by one of ``paths``."""
    return _above(hypervisor, set(paths))


def chain(hypervisor: Hypervisor, path: str, format_: str | None = None) -> list[str]:
    """``path`` and what it is backed by, down to the last: ``[top, …, base]``.

    A part that is in no storage pool, or is missing, ends it, for libvirt says no more of that one; so does one
    that is in it already. ``format_`` is the top's, where it is known: what a guest has written into a raw disk
    is never taken for a header.
    """
    return list(dict.fromkeys(walked(hypervisor, path, format_)))


def walked(hypervisor: Hypervisor, path: str, format_: str | None = None) -> list[str]:
    """As chain(), but where the files were made to stand on each other in a circle, the one that closes it comes last.

    QEMU would go round and round in such a circle without an end.
    """
    found = [path]
    while format_ != "raw":
        volume = lookup(hypervisor, found[-1])
        if volume is None:
            return found
        try:
            below = backing(volume)
        except (libvirt.libvirtError, KvmctlError):
            return found
        if below is None:
            return found
        path, format_ = below
        found.append(path)
        if path in found[:-1]:
            return found
    return found


def circle(hypervisor: Hypervisor, path: str, format_: str | None = None) -> str | None:
    """How the disk at ``path`` stands, in the end, on itself ("a stands on b stands on a"); None where it does not."""
    parts = walked(hypervisor, path, format_)
    return " stands on ".join(parts[parts.index(parts[-1]) :]) if len(set(parts)) < len(parts) else None


def check_ends(hypervisor: Hypervisor, domain: xml.Element) -> None:
    """Raise Refused where a disk of a ``<domain>`` stands on itself."""
    for disk in disks_of(domain):
        found = circle(hypervisor, disk.path, disk.format) if disk.path else None
        if found is not None:
            raise Refused(f"the disk {disk.target} of {domain.findtext('name')} has no end: {found}", CIRCLE_HINT)


def broken(hypervisor: Hypervisor, path: str, format_: str | None = None) -> str | None:
    """The first of ``path`` and what it is backed by that is certainly not there, or None."""
    return next((part for part in chain(hypervisor, path, format_) if is_missing(hypervisor, part)), None)


def check_disks(hypervisor: Hypervisor, domain: xml.Element) -> None:
    """As check_ends(); and raise NotFound where a disk that a ``<domain>`` writes to, or what it stands on, is gone."""
    check_ends(hypervisor, domain)
    for disk in disks_of(domain):
        gone = broken(hypervisor, disk.path, disk.format) if disk.written and disk.path else None
        if gone is not None:
            which = f"the disk {disk.target} of {domain.findtext('name')}"
            raise NotFound(
                f"{gone}, which {f'is {which}' if gone == disk.path else f'{which} stands on'}, is no longer there",
                "bring the file back, or restore the disk from a copy",
            )


def against_writing(hypervisor: Hypervisor, domain: xml.Element) -> str | None:
    """Why this guest must not write to its disks (somebody stands on one), or None.

    A disk that kvmctl made for it and has not made a base of needs no search: nothing can stand on that.
    """
    name = domain.findtext("name") or ""
    known = {volume.path for volume in from_domain(domain).volumes if volume.role == "disk"}
    paths = {d.path: d.target for d in disks_of(domain) if d.written and d.path and d.path not in known}
    for path, target in paths.items():
        above = _above(hypervisor, {path})
        users = [*of(hypervisor, above), *sorted(above)] if above else []
        if users:
            return f"the disk {target} of {name}, {path}, is what {users[0]} stands on"
    return None


def lookup(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    """The volume at ``path``; a pool that does not know it yet is refreshed. None where no pool has it."""
    for attempt in (0, 1):
        try:
            return hypervisor.conn.storageVolLookupByPath(path)
        except libvirt.libvirtError as error:
            if not says_missing(error):
                raise
        if attempt == 0:
            pool = pool_of(hypervisor, path)
            if pool is None:
                return None
            with contextlib.suppress(libvirt.libvirtError):
                pool.refresh(0)
    return None


def pool_of(hypervisor: Hypervisor, path: str) -> libvirt.virStoragePool | None:
    """The active pool whose directory ``path`` lies in directly, or None."""
    for pool in hypervisor.conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            target = xml.parse(pool.XMLDesc(0), "storage pool").findtext("target/path")
            # Not by pathlib: every snapshot would pay for its import.
            if target and posixpath.normpath(target) == posixpath.normpath(posixpath.dirname(path)):
                return pool
    return None


def is_missing(hypervisor: Hypervisor, path: str) -> bool:
    """Whether ``path`` is certainly not there: its directory is a pool's, and nothing is there of that name."""
    volume = lookup(hypervisor, path)
    if volume is None:
        return pool_of(hypervisor, path) is not None
    try:
        volume.XMLDesc(0)
    except libvirt.libvirtError as error:
        # The pool remembers what has been deleted behind its back; only a look at the file itself tells.
        return "No such file" in (error.get_error_message() or "") or says_missing(error)
    return False


def _above(hypervisor: Hypervisor, paths: set[str]) -> set[str]:
    return _tops(_backing(hypervisor), paths)


def _tops(backing: dict[str, str], paths: set[str]) -> set[str]:
    found: set[str] = set()
    edge = set(paths)
    while edge:
        edge = {top for top, below in backing.items() if below in edge and top not in found and top not in paths}
        found |= edge
    return found


def _backing(hypervisor: Hypervisor) -> dict[str, str]:
    """What each volume of the active pools is backed by: path to path, freshly looked at."""
    found: dict[str, str] = {}
    for pool in hypervisor.conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            # An overlay that libvirt made for a snapshot is in no list before this. While a volume is being
            # made the pool cannot be looked at again; what it listed before still counts.
            pool.refresh(0)
        for volume in pool.listAllVolumes(0):
            try:
                tree = xml.parse(volume.XMLDesc(0), "storage volume")
            except (libvirt.libvirtError, KvmctlError):
                # Deleted since it was listed.
                continue
            below = tree.findtext("backingStore/path")
            path = tree.findtext("target/path")
            if below and path:
                found[path] = below
    return found


def _domains(hypervisor: Hypervisor) -> list[libvirt.virDomain]:
    domains: list[libvirt.virDomain] = hypervisor.conn.listAllDomains(0)
    return domains


def _files_of(domain: libvirt.virDomain) -> set[str]:
    """Every file or device in the domain's disks, with their backing chains, as it runs and as it is saved."""
    found: set[str] = set()
    try:
        texts = [domain.XMLDesc(0)]
        if domain.isActive() and domain.isPersistent():
            texts.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        for text in texts:
            for source in xml.parse(text, "domain").iterfind("devices/disk//source"):
                path = source.get("file") or source.get("dev")
                if path:
                    found.add(path)
    except libvirt.libvirtError as error:
        if not says_missing(error):
            raise
    return found


def by_path(hypervisor: Hypervisor, paths: Iterable[str]) -> dict[str, list[str]]:
    """As of(), for each of ``paths``, looking at everything only once."""
    wanted = list(paths)
    if not wanted:
        return {}
    backing = _backing(hypervisor)
    used = {domain.name(): _files_of(domain) for domain in _domains(hypervisor)}
    found: dict[str, list[str]] = {}
    for path in wanted:
        above = _tops(backing, {path})
        names = [name for name, files in used.items() if files & (above | {path})]
        excused = {file for name in names for file in used[name]}
        found[path] = [*sorted(names), *sorted(above - excused)]
    return found
