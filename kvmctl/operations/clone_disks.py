"""Full copies of a guest's disks."""

from collections.abc import Sequence

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Refused
from kvmctl.model import xml
from kvmctl.operations import freeze, pools, recovery, reflink
from kvmctl.operations.abortable import abortable
from kvmctl.operations.clone_plan import CopiedDisk, Copy, Plan
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import find_by_path


def copy_all(hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan, undo: Undo, progress: Progress) -> None:
    """Copy every disk for every copy. A running source is frozen for as long, and merged again afterwards."""
    moved: Sequence[freeze.Layer] = ()
    if domain.isActive():
        moved = [layer for layer in plan.layers if layer.overlay is not None]
        progress.step(f"freezing the disks of {plan.source}")
        freeze.freeze(hypervisor, domain, plan.layers, undo, quiesce=plan.quiesce)
    for copy in plan.copies:
        for disk in copy.disks:
            _copy(hypervisor, copy, disk, undo, progress)
    if moved:
        progress.step(f"merging the disks of {plan.source} again")
        freeze.unfreeze(hypervisor, domain, moved)
    recovery.done(domain)


def _copy(hypervisor: Hypervisor, copy: Copy, disk: CopiedDisk, undo: Undo, progress: Progress) -> None:
    source = find_by_path(hypervisor, disk.layer.base)
    if source is None:
        raise Refused(
            f"the disk {disk.layer.base} is in no storage pool, so libvirt cannot copy it",
            "'virsh pool-create-as NAME dir --target DIRECTORY' makes one of its directory",
        )
    owned = disk.volume
    text = f"copying {disk.target} to {copy.identity.name}"
    pool = pools.ensure_pool(hypervisor, owned.pool)
    undo.add(f"delete volume {owned.name}", lambda: pools.delete_volume(hypervisor, owned.pool, owned.name))
    if owned.path is not None and reflink.copy(hypervisor, source, pool, owned.path):
        return
    with translated(hypervisor.uri):
        total = source.info()[2]
        element = _element(owned.name, source.info()[1], disk.format)

        def look() -> None:
            progress.amount(text, min(_allocation(pool, owned.name), total), total)

        progress.amount(text, 0, total)
        abortable(lambda: pool.createXMLFrom(xml.text(element), source, 0), tick=look)


def _element(name: str, capacity: int, format_: str) -> xml.Element:
    volume = xml.new("volume")
    xml.add(volume, "name", name)
    xml.add(volume, "capacity", capacity, unit="bytes")
    xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_=format_)
    xml.add(xml.add(target, "permissions"), "mode", "0600")
    if format_ == "qcow2":
        xml.add(target, "compat", "1.1")
    return volume


def _allocation(pool: libvirt.virStoragePool, name: str) -> int:
    volume = pools.find_volume(pool, name)
    return int(volume.info()[2]) if volume is not None else 0
