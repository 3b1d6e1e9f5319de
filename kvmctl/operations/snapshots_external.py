"""External snapshots: the disks' files stay as they were, the guest goes on in overlays, its memory is a file.

libvirt takes them. Going back to one it does not know before 9.9, nor does it delete one with its files, so that is
done here with its other calls: a new overlay above the frozen files, the definition of that moment, the memory
restored from its file.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import clone as copies
from kvmctl.model import snapshot as model
from kvmctl.model import work_record, xml
from kvmctl.model.metadata import Metadata, OwnedVolume
from kvmctl.operations import freeze, memory_file, metadata, nvram, pools, recovery, snapshots
from kvmctl.operations.abortable import abortable
from kvmctl.operations.claim import this_process
from kvmctl.operations.freeze import Layer
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import find_by_path, read_at
from kvmctl.preflight import dependents
from kvmctl.preflight import snapshots as preflight


@dataclass(frozen=True)
class Files:
    """What an external snapshot is made of beside the frozen disks. ``nvram`` is the path of the UEFI variables."""

    layers: tuple[Layer, ...]
    memory: OwnedVolume | None
    nvram: str | None
    nvram_copy: OwnedVolume | None

    def owned(self) -> list[OwnedVolume]:
        """The volumes that are made for it, overlays apart."""
        return [volume for volume in (self.memory, self.nvram_copy) if volume is not None]


def plan_files(
    hypervisor: Hypervisor, domain: libvirt.virDomain, tree: xml.Element, name: str, *, memory: bool
) -> Files:
    """Where everything will be. Raises Refused where a disk can have no overlay, Conflict where a file is there.

    The files of the slot may be there still: its old ones go first.
    """
    layers = freeze.plan(hypervisor, domain, tree, reuse=False)
    if any(layer.overlay is None for layer in layers) or not layers:
        raise Refused(f"{domain.name()} has no disk for an external snapshot")
    pool = pools.ensure_pool(hypervisor, layers[0].pool)
    variables = nvram.path_of(hypervisor, tree)
    return Files(
        layers,
        _beside(pool, domain.name(), name, "memory") if memory else None,
        variables,
        _beside(pool, domain.name(), name, "nvram") if variables else None,
    )


def _beside(pool: libvirt.virStoragePool, vm: str, name: str, what: str) -> OwnedVolume:
    """The volume for a snapshot's memory or UEFI variables; its name follows from the snapshot's."""
    directory = pools.target_path(pool)
    assert directory is not None, "freeze.plan() takes pools with a directory only"
    file_name = f"{vm}.{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}.{what}"
    if name not in model.SLOT_NAMES and pools.find_volume(pool, file_name) is not None:
        raise Conflict(f"the storage pool {pool.name()} already has a volume {file_name}", "choose another name")
    return OwnedVolume(pool.name(), file_name, str(directory / file_name), "memory" if what == "memory" else "other")


def create(
    hypervisor: Hypervisor,
    domain: libvirt.virDomain,
    request: xml.Element,
    files: Files,
    undo: Undo,
    progress: Progress,
    *,
    quiesce: bool,
) -> None:
    """Take it. ``undo`` merges the disks again and deletes the files."""
    active = bool(domain.isActive())
    if files.memory is not None:
        memory_file.check_room(hypervisor, domain, files.memory)
    freeze.claim(hypervisor, domain, files.layers, undo, files.owned())
    freeze.prepare(hypervisor, files.layers, undo)
    before = _copy_nvram(hypervisor, files, undo)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    name = request.findtext("name") or ""
    undo.add(f"take back the snapshot {name}", lambda: _take_back(hypervisor, domain, name, files.layers, active))
    if files.memory is not None:
        memory = files.memory
        undo.add(f"delete {memory.path}", lambda: memory_file.delete(hypervisor, memory))
        flags |= memory_file.live(hypervisor, domain) if snapshots.state_of(domain) == "running" else 0
        memory_file.write(hypervisor, domain, xml.text(request), flags, progress)
        pools.refresh(pools.ensure_pool(hypervisor, memory.pool))
    else:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesce else 0
        with translated(hypervisor.uri):
            abortable(lambda: domain.snapshotCreateXML(xml.text(request), flags))
    if before is not None and files.nvram is not None and before != nvram.read(hypervisor, files.nvram):
        raise KvmctlError("the guest changed its UEFI variables during the snapshot", "try again")
    with translated(hypervisor.uri):
        recovery.done(domain)


def _copy_nvram(hypervisor: Hypervisor, files: Files, undo: Undo) -> bytes | None:
    """Keep the UEFI variables beside the disks; returns what they were."""
    if files.nvram is None or files.nvram_copy is None:
        return None
    data = nvram.read(hypervisor, files.nvram)
    owned = files.nvram_copy
    # Of a guest that never ran it is empty: libvirt makes them at its first start, as it will again after a revert.
    kept = data or b""
    pools.upload(pools.ensure_pool(hypervisor, owned.pool), owned.name, kept, len(kept))
    undo.add(f"delete volume {owned.name}", lambda: pools.delete_volume(hypervisor, owned.pool, owned.name))
    return data


def _take_back(
    hypervisor: Hypervisor, domain: libvirt.virDomain, name: str, layers: Sequence[Layer], active: bool
) -> None:
    """After a failure: forget the snapshot, and put the guest back onto the files below."""
    with contextlib.suppress(libvirt.libvirtError):
        domain.snapshotLookupByName(name, 0).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    if active and domain.isActive():
        freeze.merge_back(hypervisor, domain, layers)
    else:
        _redefine(hypervisor, domain, {layer.target: (layer.base, layer.base_format) for layer in layers})


def _redefine(hypervisor: Hypervisor, domain: libvirt.virDomain, disks: dict[str, tuple[str, str]]) -> None:
    text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    tree = xml.parse(text, "domain")
    copies.set_disks(tree, disks)
    hypervisor.conn.defineXML(xml.raw(tree))


# ---------------------------------------------------------------- going back


@dataclass(frozen=True)
class Moment:
    """What a revert needs of an external snapshot: the definition then, and a new layer above each frozen disk."""

    name: str
    state: str
    definition: xml.Element
    layers: tuple[Layer, ...]
    memory_file: str | None
    nvram_copy: OwnedVolume | None


def plan_return(hypervisor: Hypervisor, domain: libvirt.virDomain, target: model.Snapshot) -> Moment:
    """Look whether all of it is there. Raises Refused with what is missing, before anything is touched."""
    vm = domain.name()
    with translated(hypervisor.uri):
        text = domain.snapshotLookupByName(target.name, 0).getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        root = xml.parse(text, "snapshot")
        now = {disk.path for disk in preflight.disks_of(xml.parse(domain.XMLDesc(0), "domain")) if disk.written}
    then = root.find("inactiveDomain")
    then = then if then is not None else root.find("domain")
    if then is None:
        raise Refused(f"the snapshot {target.shown_name} of {vm} does not say how the VM was then")
    then = xml.parse(xml.raw(then), "snapshot")
    then.tag = "domain"
    taken: set[str] = set()
    layers = []
    for disk in preflight.disks_of(then):
        if not disk.written:
            continue
        what = f"the disk {disk.target} ({disk.path}) of the snapshot {target.shown_name}"
        if disk.path is None:
            raise Refused(f"{what} was no file")
        if (gone := dependents.broken(hypervisor, disk.path, disk.format)) is not None:
            told = what if gone == disk.path else f"{gone}, which {what} stands on,"
            raise Refused(f"{told} is no longer there", "bring the file back")
        written = next((part for part in dependents.chain(hypervisor, disk.path, disk.format) if part in now), None)
        if written is not None:
            told = f"{what} is" if written == disk.path else f"{what} stands on {written}, which is"
            raise Refused(
                f"{told} what {vm} writes to: its overlay was merged into it behind kvmctl's back",
                f"that moment is gone; 'kvmctl snapshot delete {vm} {target.shown_name!a}' forgets it",
            )
        volume = find_by_path(hypervisor, disk.path)
        if volume is None:
            raise Refused(f"{what} is in no storage pool", "make one of its directory with 'virsh pool-create-as'")
        pool = volume.storagePoolLookupByVolume()
        overlay = freeze.free_volume(pool, f"{vm}-{disk.target}", ".qcow2", taken)
        layers.append(Layer(disk.target, disk.path, disk.format, volume.info()[1], pool.name(), overlay))
    if target.memory_file is not None and dependents.is_missing(hypervisor, target.memory_file):
        raise Refused(f"the memory of the snapshot {target.shown_name} ({target.memory_file}) is no longer there")
    return Moment(
        target.name, target.state, then, tuple(layers), target.memory_file, _nvram_copy(domain, then, target.name)
    )


def _nvram_copy(domain: libvirt.virDomain, then: xml.Element, name: str) -> OwnedVolume | None:
    if not preflight.has_nvram(then):
        return None
    ending = f".{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}.nvram"
    found = [v for v in metadata.read(domain).volumes if v.name == f"{domain.name()}{ending}"]
    return found[0] if found else None


def go(hypervisor: Hypervisor, domain: libvirt.virDomain, moment: Moment, after: str | None, undo: Undo) -> None:
    """Power the guest off, put it onto new overlays above the frozen disks, and let it go on from there.

    The caller sweeps what it left, and says recovery.done().
    """
    freeze.claim(hypervisor, domain, moment.layers, undo, left=snapshots.written_files(domain))
    freeze.prepare(hypervisor, moment.layers, undo)
    disks = {layer.target: (layer.overlay.path or "", "qcow2") for layer in moment.layers if layer.overlay}
    with translated(hypervisor.uri):
        remembered = metadata.read(domain)
        before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        if domain.isActive():
            domain.destroy()
        undo.add(f"the definition of {domain.name()}", lambda: hypervisor.conn.defineXML(before))
        tree = xml.parse(xml.raw(moment.definition), "domain")
        copies.set_disks(tree, disks)
        copies.remember(tree, remembered)
        hypervisor.conn.defineXML(xml.raw(tree))
        _restore_nvram(hypervisor, tree, moment)
        undo.add(f"power off {domain.name()}", lambda: domain.isActive() and domain.destroy())
        if moment.memory_file is not None:
            _restore_memory(hypervisor, moment, disks, remembered, after)
        elif after is not None:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if after == "paused" else 0)
        _stand_on(domain, moment.name)


def _restore_nvram(hypervisor: Hypervisor, tree: xml.Element, moment: Moment) -> None:
    path = nvram.path_of(hypervisor, tree) if moment.nvram_copy is not None else None
    if moment.nvram_copy is None or path is None:
        return
    volume = find_by_path(hypervisor, moment.nvram_copy.path or "")
    if volume is None:
        raise NotFound(f"the UEFI variables of the snapshot, {moment.nvram_copy.path}, are no longer there")
    size = volume.info()[1]
    if size:
        nvram.write(hypervisor, path, read_at(volume, 0, size))
    else:
        nvram.remove(hypervisor, path)


def _restore_memory(
    hypervisor: Hypervisor,
    moment: Moment,
    disks: dict[str, tuple[str, str]],
    remembered: Metadata,
    after: str | None,
) -> None:
    conn, path = hypervisor.conn, moment.memory_file
    tree = xml.parse(conn.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE), "saved guest's XML")
    copies.set_disks(tree, disks)
    copies.remember(tree, remembered)
    paused = (after or moment.state) == "paused"
    flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
    abortable(lambda: conn.restoreFlags(path, xml.raw(tree), flags))


def _stand_on(domain: libvirt.virDomain, name: str) -> None:
    """Tell libvirt which snapshot the guest now stands on."""
    text = domain.snapshotLookupByName(name, 0).getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(text, flags)


# ---------------------------------------------------------------- deleting


def check_files(hypervisor: Hypervisor, domain: libvirt.virDomain, gone: Iterable[str]) -> None:
    """Raise Refused where a file of the guest, or of a snapshot that stays when ``gone`` have gone, is not there, or
    stands on itself.

    What such a file stands on cannot be told: it would be taken for something that nothing needs.
    """
    vm = domain.name()
    with translated(hypervisor.uri):
        of = [(f"of {vm}", xml.parse(domain.XMLDesc(0), "domain"))]
        for snapshot in domain.listAllSnapshots(0):
            then = xml.parse(snapshot.getXMLDesc(0), "snapshot").find("domain")
            if then is not None and snapshot.getName() not in gone:
                of.append((f"of the snapshot {model.shown(snapshot.getName())}", then))
    for whose, tree in of:
        for disk in preflight.disks_of(tree):
            if not disk.written or not disk.path:
                continue
            around = dependents.circle(hypervisor, disk.path, disk.format)
            if around is not None:
                raise Refused(f"the disk {disk.target} {whose} has no end: {around}", dependents.CIRCLE_HINT)
            missing = dependents.broken(hypervisor, disk.path, disk.format)
            if missing is not None:
                raise Refused(
                    f"the disk {disk.target} {whose} is not whole, so that nobody knows what it needs: "
                    f"{missing} is no longer there",
                    f"bring the file back; 'kvmctl snapshot revert {vm} NAME --discard' goes to a moment that is whole",
                )


def delete(hypervisor: Hypervisor, domain: libvirt.virDomain, target: model.Snapshot) -> None:
    """Forget the snapshot, and delete or merge what only it needed."""
    with translated(hypervisor.uri):
        snapshot = domain.snapshotLookupByName(target.name, 0)
        root = xml.parse(snapshot.getXMLDesc(0), "snapshot")
        then = root.find("domain")
        bases = {d.path for d in preflight.disks_of(then) if d.written and d.path} if then is not None else set()
        variables = _nvram_copy(domain, then, target.name) if then is not None else None
        known = metadata.read(domain)
        files = [*bases, *snapshots.written_files(domain), target.memory_file, variables.path if variables else None]
        # If this process is killed meanwhile, recovery.finish() goes on here.
        metadata.write(domain, work_record.begin(known, this_process(), files))
        _hand_over(domain, snapshot)
        snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
        own = known.volumes
        gone = [v for v in own if (target.memory_file is not None and v.path == target.memory_file) or v == variables]
        for volume in gone:
            pools.delete_volume(hypervisor, volume.pool, volume.name)
        _forget(domain, gone)
        if domain.isActive():
            merge(hypervisor, domain, bases)
    sweep(hypervisor, domain, bases)
    with translated(hypervisor.uri):
        recovery.done(domain)


def _hand_over(domain: libvirt.virDomain, snapshot: libvirt.virDomainSnapshot) -> None:
    """Make the children of ``snapshot`` those of its parent, so that it goes without any.

    libvirt 9.0 takes a deleted external snapshot for one whose overlay was merged, and then rewrites which files its
    children stand on, even where it is told to forget the snapshot alone: they would lead to other data.
    """
    parent = xml.parse(snapshot.getXMLDesc(0), "snapshot").findtext("parent/name")
    for child in snapshot.listAllChildren(0):
        root = xml.parse(child.getXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "snapshot")
        holder, of = root.find("parent"), root.find("parent/name")
        if holder is None or of is None:
            continue
        if parent is None:
            root.remove(holder)
        else:
            of.text = parent
        domain.snapshotCreateXML(xml.raw(root), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def merge(hypervisor: Hypervisor, domain: libvirt.virDomain, bases: set[str]) -> None:
    """Put the running guest back onto a base that no snapshot and nobody else needs frozen any more."""
    needed = _needed(domain)
    own = metadata.read(domain).volumes
    by_path = {volume.path: volume for volume in own}
    for disk in preflight.disks_of(xml.parse(domain.XMLDesc(0), "domain")):
        if not disk.written or disk.path is None or disk.path in needed:
            continue
        chain = dependents.chain(hypervisor, disk.path, disk.format)
        base = chain[1] if len(chain) > 1 else None
        overlay = by_path.get(disk.path)
        if base not in bases or base is None or base in needed or overlay is None:
            continue
        others = dependents.volumes_on(hypervisor, [base]) - {disk.path}
        if others or dependents.of(hypervisor, [base], except_vm=domain.name()):
            continue
        layer = Layer(disk.target, base, disk.format, 0, overlay.pool, overlay)
        freeze.unfreeze(hypervisor, domain, [layer])


def _needed(domain: libvirt.virDomain) -> set[str]:
    """The files of the guest's snapshots: the frozen ones that they stand on, memory, UEFI variables."""
    found: set[str | None] = set()
    for snapshot in domain.listAllSnapshots(0):
        text = snapshot.getXMLDesc(0)
        found.add(model.from_xml(text).memory_file)
        then = xml.parse(text, "snapshot").find("domain")
        if then is not None:
            found |= {disk.path for disk in preflight.disks_of(then)}
            variables = _nvram_copy(domain, then, snapshot.getName())
            found.add(variables.path if variables is not None else None)
    return {path for path in found if path is not None}


def sweep(hypervisor: Hypervisor, domain: libvirt.virDomain, candidates: Iterable[str]) -> None:
    """Delete those of ``candidates`` that kvmctl made and nothing needs: no snapshot, no disk, no other volume.

    What one of them stood on may then be free as well.
    """
    queue = list(dict.fromkeys(candidates))
    while queue:
        path = queue.pop(0)
        with translated(hypervisor.uri):
            owned = next((v for v in metadata.read(domain).volumes if v.path == path), None)
            if owned is None or path in _needed(domain) or path in snapshots.written_files(domain):
                continue
            if dependents.volumes_on(hypervisor, [path]) or dependents.of(hypervisor, [path]):
                continue
            below = dependents.chain(hypervisor, path)[1:2]
            pools.delete_volume(hypervisor, owned.pool, owned.name)
            _forget(domain, [owned])
            queue += [other for other in below if other not in queue]


def _forget(domain: libvirt.virDomain, volumes: Sequence[OwnedVolume]) -> None:
    if volumes:
        known = metadata.read(domain)
        names = {(volume.pool, volume.name) for volume in volumes}
        kept = tuple(volume for volume in known.volumes if (volume.pool, volume.name) not in names)
        metadata.write(domain, known._replace(volumes=kept))
