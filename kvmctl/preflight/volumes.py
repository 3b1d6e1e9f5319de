"""Finding what lies at a path of a hypervisor's host, through its storage pools: never by opening it."""

import contextlib
from pathlib import PurePosixPath
from typing import NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.model import xml


class VolumeFacts(NamedTuple):
    """One volume as libvirt describes it. Sizes in bytes; ``stamp`` is its change time, to the nanosecond."""

    pool: str
    name: str
    path: str
    format: str | None
    capacity: int
    allocation: int
    stamp: str | None
    backing: str | None
    backing_format: str | None


class PoolFacts(NamedTuple):
    """One active pool: ``path`` is its directory (None where it has none), ``free`` in bytes."""

    name: str
    kind: str
    path: PurePosixPath | None
    free: int


def pools(hypervisor: Hypervisor) -> list[PoolFacts]:
    """The active pools."""
    found = []
    with translated(hypervisor.uri):
        for pool in hypervisor.conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            with contextlib.suppress(libvirt.libvirtError):
                root = xml.parse(pool.XMLDesc(0), "storage pool", "pool")
                path = root.findtext("target/path")
                found.append(
                    PoolFacts(pool.name(), root.get("type", ""), PurePosixPath(path) if path else None, pool.info()[3])
                )
    return found


def pool_for(hypervisor: Hypervisor, path: str) -> PoolFacts | None:
    """The active pool in whose directory ``path`` lies directly, or None."""
    parent = PurePosixPath(path).parent
    return next((pool for pool in pools(hypervisor) if pool.path == parent), None)


def find(hypervisor: Hypervisor, path: str) -> VolumeFacts | None:
    """What is at ``path`` now; None where no pool of the host holds it. A pool that may is looked through anew."""
    pool = pool_for(hypervisor, path)
    if pool is not None:
        with contextlib.suppress(libvirt.libvirtError):
            hypervisor.conn.storagePoolLookupByName(pool.name).refresh(0)
    try:
        volume = hypervisor.conn.storageVolLookupByPath(path)
        return _facts(volume)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise explain(error, hypervisor.uri) from error


def _facts(volume: libvirt.virStorageVol) -> VolumeFacts:
    root = xml.parse(volume.XMLDesc(0), "volume", "volume")
    form = root.find("target/format")
    backing_form = root.find("backingStore/format")
    return VolumeFacts(
        pool=volume.storagePoolLookupByVolume().name(),
        name=volume.name(),
        path=volume.path(),
        format=form.get("type") if form is not None else None,
        capacity=int(root.findtext("capacity") or 0),
        allocation=int(root.findtext("allocation") or 0),
        stamp=root.findtext("target/timestamps/ctime"),
        backing=root.findtext("backingStore/path"),
        backing_format=backing_form.get("type") if backing_form is not None else None,
    )


def is_same_file(a: Hypervisor, b: Hypervisor, path: str) -> bool | None:
    """Whether ``path`` is one file that both hosts see; None where one of them cannot tell.

    Evidence is the change time to the nanosecond, which two copies never share. A guest may be writing:
    where it differs, both are read again, and what neither order of reading makes equal is not the same.
    """
    for _ in range(3):
        first, other, again = find(a, path), find(b, path), find(a, path)
        if first is None or again is None or first.stamp is None or again.stamp is None:
            return None
        if other is None:
            return False if pool_for(b, path) is not None else None
        if other.stamp is None:
            return None
        if first.capacity == other.capacity and first.stamp <= other.stamp <= again.stamp:
            return True
    return False
