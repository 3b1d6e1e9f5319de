"""Freezing a guest's disks at one moment: the files stay as they are, and the guest goes on in overlays above them.

What is frozen can then be read, copied, and stood upon by clones. A stopped guest is given another definition, a
running one is moved by libvirt's own snapshot call, all disks in one transaction.
"""

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import clone as copies
from kvmctl.model import foreign_disks, qcow2, work_record, xml
from kvmctl.model import snapshot as snapshot_model
from kvmctl.model.metadata import Metadata, OwnedVolume
from kvmctl.operations import metadata, pools
from kvmctl.operations.abortable import abortable
from kvmctl.operations.claim import this_process
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import find_by_path, pool_of, read_at
from kvmctl.preflight.snapshots import Disk, disks_of

# How long a finished merge may take to say so, in seconds; QEMU needs some ms.
PIVOT_SECONDS = 60.0
# All disks or none, onto overlays that are there already, and no snapshot that libvirt would list.
RUNNING_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)


@dataclass(frozen=True)
class Layer:
    """One disk: ``base`` is what is frozen, ``overlay`` where the guest goes on.

    ``overlay`` is None where nothing was written above ``base`` yet, so that the guest can stay where it is.
    """

    target: str
    base: str
    base_format: str
    capacity_bytes: int
    pool: str
    overlay: OwnedVolume | None


def plan(
    hypervisor: Hypervisor, domain: libvirt.virDomain, tree: xml.Element, *, reuse: bool = True
) -> tuple[Layer, ...]:
    """A layer for each disk that the guest writes. Raises Refused for a disk that can have no overlay.

    With ``reuse`` a stopped guest whose overlay nothing was ever written into needs no other above it.
    """
    reuse = reuse and not domain.isActive()
    name = domain.name()
    taken: set[str] = set()
    return tuple(
        _layer(hypervisor, name, disk, reuse, taken) for disk in disks_of(tree) if disk.written and not disk.shareable
    )


def _layer(hypervisor: Hypervisor, vm: str, disk: Disk, reuse: bool, taken: set[str]) -> Layer:
    if disk.path is None or disk.kind not in ("file", "block"):
        raise Refused(
            f"the disk {disk.target} of {vm} is {disk.kind} storage, and kvmctl can only put an overlay on a file",
            "'kvmctl clone --full' copies it",
        )
    volume = find_by_path(hypervisor, disk.path)
    if volume is None and not hypervisor.is_remote:
        # In no pool: whether it is there shows when libvirt looks for it.
        with translated(hypervisor.uri):
            capacity = hypervisor.find(vm).blockInfo(disk.target)[0]
    elif volume is None:
        raise NotFound(f"the disk {disk.target} of {vm}, {disk.path}, is in no storage pool of {hypervisor.uri}")
    else:
        with translated(hypervisor.uri):
            capacity = volume.info()[1]
    pool = pool_of(hypervisor, disk.path) or pools.default_pool(hypervisor)
    if reuse and volume is not None and disk.format == "qcow2":
        below = _unwritten_above(hypervisor, volume)
        if below is not None:
            return Layer(disk.target, below[0], below[1], capacity, pool.name(), None)
    overlay = free_volume(pool, f"{vm}-{disk.target}", ".qcow2", taken)
    return Layer(disk.target, disk.path, disk.format, capacity, pool.name(), overlay)


def free_volume(
    pool: libvirt.virStoragePool, stem: str, suffix: str, taken: set[str], role: Literal["disk", "memory"] = "disk"
) -> OwnedVolume:
    """A volume name of ``pool`` that nothing has, ``stem-1``, ``stem-2`` …; it is added to ``taken``."""
    directory = pools.target_path(pool)
    if directory is None:
        raise Refused(f"the storage pool {pool.name()} has no directory for an overlay")
    number = 1
    while (name := f"{stem}-{number}{suffix}") in taken or pools.find_volume(pool, name) is not None:
        number += 1
    taken.add(name)
    return OwnedVolume(pool.name(), name, str(directory / name), role)


def _unwritten_above(hypervisor: Hypervisor, volume: libvirt.virStorageVol) -> tuple[str, str] | None:
    """(path, format) of what an overlay stands on, where nothing was ever written into the overlay."""
    tree = xml.parse(volume.XMLDesc(0), "storage volume")
    below, format_ = tree.findtext("backingStore/path"), tree.find("backingStore/format")
    if not below:
        return None
    header = read_at(volume, 0, qcow2.HEADER_SIZE)
    parsed, table = qcow2.parse_header(header), qcow2.level_one(header)
    if parsed is None or table is None or parsed.snapshots:
        return None
    if any(read_at(volume, table.offset, table.entries * 8)):
        return None
    return below, format_.get("type", "raw") if format_ is not None else "raw"


def freeze(
    hypervisor: Hypervisor, domain: libvirt.virDomain, layers: Sequence[Layer], undo: Undo, *, quiesce: bool = False
) -> None:
    """Freeze the disks of ``layers`` at one moment. ``undo`` learns how to merge them again.

    See claim() for what is written down meanwhile; the caller ends it with recovery.done() or unfreeze().
    """
    moved = [layer for layer in layers if layer.overlay is not None]
    if not moved:
        return
    claim(hypervisor, domain, moved, undo)
    if domain.isActive():
        _freeze_running(hypervisor, domain, moved, undo, quiesce)
    else:
        _freeze_stopped(hypervisor, domain, moved, undo)


def claim(
    hypervisor: Hypervisor,
    domain: libvirt.virDomain,
    moved: Sequence[Layer],
    undo: Undo,
    more: Sequence[OwnedVolume] = (),
    left: Collection[str] = (),
) -> None:
    """Write the overlays, what becomes a base, and ``more`` into what is remembered of the guest, before they exist.

    With them goes a note of who is at work on what, for recovery.finish() to tidy up by if this process is killed;
    ``left`` are the paths of what the guest is about to leave.
    """
    paths = [*(layer.base for layer in moved), *(layer.overlay.path for layer in moved if layer.overlay is not None)]
    with translated(hypervisor.uri):
        before = metadata.read(domain)
        now = with_layers(before, moved)
        now = now._replace(volumes=(*now.volumes, *more))
        paths += [*(volume.path for volume in more if volume.path), *left]
        with undo.step():
            metadata.write(domain, work_record.begin(now, this_process(), paths))
            undo.add(f"what is remembered of {domain.name()}", lambda: metadata.write(domain, before))


def with_layers(remembered: Metadata, moved: Sequence[Layer]) -> Metadata:
    """``remembered`` with the overlays as disks, and what they stand on as bases where it was the guest's own.

    Where it was not, delete must not throw away what is in the overlays: see foreign_disks.
    """
    bases = {layer.base for layer in moved}
    remembered = foreign_disks.add(remembered, sorted(bases - {volume.path for volume in remembered.volumes}))
    volumes = tuple(
        volume._replace(role="base") if volume.path in bases and volume.role == "disk" else volume
        for volume in remembered.volumes
    )
    overlays = tuple(layer.overlay for layer in moved if layer.overlay is not None)
    return remembered._replace(volumes=(*overlays, *volumes))


def overlay_element(name: str, capacity: int, base: str, base_format: str) -> xml.Element:
    """The ``<volume>`` of a qcow2 overlay."""
    volume = xml.new("volume")
    xml.add(volume, "name", name)
    xml.add(volume, "capacity", capacity, unit="bytes")
    xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_="qcow2")
    xml.add(xml.add(target, "permissions"), "mode", "0600")
    xml.add(target, "compat", "1.1")
    backing = xml.add(volume, "backingStore")
    xml.add(backing, "path", base)
    xml.add(backing, "format", type_=base_format)
    return volume


def make_overlay(hypervisor: Hypervisor, overlay: OwnedVolume, layer: Layer, undo: Undo) -> None:
    """Make an empty overlay above the layer's base."""
    pool = pools.ensure_pool(hypervisor, overlay.pool)
    with undo.step():
        pools.create_volume(pool, overlay_element(overlay.name, layer.capacity_bytes, layer.base, layer.base_format))
        undo.add(f"delete volume {overlay.name}", lambda: pools.delete_volume(hypervisor, overlay.pool, overlay.name))


def _freeze_stopped(hypervisor: Hypervisor, domain: libvirt.virDomain, moved: Sequence[Layer], undo: Undo) -> None:
    sources: dict[str, tuple[str, str]] = {}
    for layer in moved:
        assert layer.overlay is not None
        make_overlay(hypervisor, layer.overlay, layer, undo)
        sources[layer.target] = (layer.overlay.path or "", "qcow2")
    with translated(hypervisor.uri):
        before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        tree = xml.parse(before, "domain")
        copies.set_disks(tree, sources)
        hypervisor.conn.defineXML(xml.raw(tree))
        undo.add(f"the disks of {domain.name()}", lambda: hypervisor.conn.defineXML(before))
        if domain.isActive():
            raise Conflict(f"{domain.name()} was started meanwhile", "try again")


def _freeze_running(
    hypervisor: Hypervisor, domain: libvirt.virDomain, moved: Sequence[Layer], undo: Undo, quiesce: bool
) -> None:
    prepare(hypervisor, moved, undo)
    flags = RUNNING_FLAGS | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    if quiesce:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
    undo.add(f"merge the disks of {domain.name()} again", lambda: merge_back(hypervisor, domain, moved))
    with translated(hypervisor.uri):
        request = xml.text(snapshot_request(domain, moved))
        try:
            abortable(lambda: domain.snapshotCreateXML(request, flags))
        except libvirt.libvirtError as error:
            text = (error.get_error_message() or "").lower()
            if not quiesce or not ("agent" in text or "freeze" in text):
                raise
            # An agent that is there and yet cannot freeze (forbidden, hanging): the disks are then as after a
            # power failure, which journalling file systems are made for.
            plain = flags & ~libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
            abortable(lambda: domain.snapshotCreateXML(request, plain))


def prepare(hypervisor: Hypervisor, moved: Sequence[Layer], undo: Undo) -> None:
    """Make the overlays beforehand: while libvirt itself makes them the guest would stand still."""
    for layer in moved:
        assert layer.overlay is not None
        make_overlay(hypervisor, layer.overlay, layer, undo)


def snapshot_request(domain: libvirt.virDomain, moved: Sequence[Layer], memory_file: str | None = None) -> xml.Element:
    """The ``<domainsnapshot>`` that moves a running guest onto its overlays, and only those disks."""
    wanted: dict[str, str | None] = {layer.target: layer.overlay.path for layer in moved if layer.overlay is not None}
    for disk in disks_of(xml.parse(domain.XMLDesc(0), "domain")):
        wanted.setdefault(disk.target, None)
    return snapshot_model.request(
        "kvmctl-freeze", memory=None if memory_file else "no", memory_file=memory_file, disks=wanted
    )


def merge_back(hypervisor: Hypervisor, domain: libvirt.virDomain, moved: Sequence[Layer]) -> None:
    """Write what the overlays hold back into what they stand on, move the guest there, and delete them.

    For the layers that a running guest really stands on; those that it never came to are only deleted.
    """
    with translated(hypervisor.uri):
        now = {disk.target: disk.path for disk in disks_of(xml.parse(domain.XMLDesc(0), "domain"))}
        for layer in moved:
            assert layer.overlay is not None
            if now.get(layer.target) == layer.overlay.path:
                _commit(domain, layer)
    for layer in moved:
        assert layer.overlay is not None
        pools.delete_volume(hypervisor, layer.overlay.pool, layer.overlay.name)


def _commit(domain: libvirt.virDomain, layer: Layer) -> None:
    domain.blockCommit(layer.target, layer.base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    until = time.monotonic() + PIVOT_SECONDS
    while True:
        info = domain.blockJobInfo(layer.target, 0)
        if not info:
            raise KvmctlError(f"merging the disk {layer.target} ended by itself", "'kvmctl info' shows its chain")
        if info["cur"] == info["end"] and info["end"] > 0:
            try:
                domain.blockJobAbort(layer.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                return
            except libvirt.libvirtError:
                # All is copied, but QEMU has not said that it is ready to switch.
                if time.monotonic() > until:
                    raise
        else:
            # It is still copying: a large overlay takes its time.
            until = time.monotonic() + PIVOT_SECONDS
        time.sleep(0.05)


def quiesced(domain: libvirt.virDomain) -> bool:
    """Whether the guest's agent is there to freeze its file systems."""
    with contextlib.suppress(libvirt.libvirtError):
        root = xml.parse(domain.XMLDesc(0), "domain")
        for target in root.iterfind("devices/channel/target[@name='org.qemu.guest_agent.0']"):
            return target.get("state") == "connected"
    return False


def unfreeze(hypervisor: Hypervisor, domain: libvirt.virDomain, moved: Sequence[Layer]) -> None:
    """Undo a freeze() of a running guest that nobody stands on: its disks are as they were before."""
    overlays = {(layer.overlay.pool, layer.overlay.name) for layer in moved if layer.overlay is not None}
    bases = {layer.base for layer in moved}
    merge_back(hypervisor, domain, moved)
    with translated(hypervisor.uri):
        now = metadata.read(domain)
        volumes = tuple(
            volume._replace(role="disk") if volume.path in bases and volume.role == "base" else volume
            for volume in now.volumes
            if (volume.pool, volume.name) not in overlays
        )
        metadata.write(domain, now._replace(volumes=volumes))
