"""Forking a running guest: copies that go on from the same instant, with its memory.

libvirt writes the memory to a file while the guest runs on, stops it for the last of it, and moves its disks onto
overlays in the same moment. That file is a save image. For each copy the XML in its head is replaced by the copy's
own, and libvirt restores a second guest from it: paused, every cable out. It goes on with its network cut, gets an
identity of its own inside, and a new card with the new MAC takes the place of the one that the memory knows.
"""

import contextlib
import time
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Refused
from kvmctl.model import clone as copies
from kvmctl.model import save_image, xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.model.units import human_size
from kvmctl.operations import clone, clone_identity, freeze, pools
from kvmctl.operations.abortable import abortable
from kvmctl.operations.clone_plan import Copy, Plan
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import find_by_path, read_at
from kvmctl.preflight.snapshots import disks_of

# A guest that writes its memory faster than the file takes it would never be done: after so many seconds it is
# stopped for the rest.
CONVERGE_SECONDS = 30.0


def run(hypervisor: Hypervisor, plan: Plan, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Fork the source and return ``{name, uuid, source, mode, disks, seconds, pause_ms, warnings}`` for each copy.

    ``pause_ms`` is how long the source stood still, None where libvirt's events did not tell. If anything fails, or
    Ctrl-C arrives, the copies are gone and the source's disks merged again; it runs on in any case.
    """
    progress = progress or Progress()
    assert plan.memory is not None
    domain = hypervisor.find(plan.source)
    _check_room(hypervisor, domain, plan.memory)
    began = time.monotonic()
    rows = []
    with Undo() as undo:
        _prepare(hypervisor, domain, plan, undo, progress)
        pause = _freeze(hypervisor, domain, plan, undo, progress)
        file = _memory_file(hypervisor, plan.memory)
        for copy in plan.copies:
            progress.step(f"starting {copy.identity.name}")
            _restore(hypervisor, plan, copy, file, undo)
        pools.delete_volume(hypervisor, plan.memory.pool, plan.memory.name)
        for copy in plan.copies:
            warnings = clone_identity.give(hypervisor, plan, copy, progress)
            seconds = time.monotonic() - began
            rows.append({**clone.row(plan, copy, seconds), "pause_ms": pause, "warnings": warnings})
        undo.keep()
    return rows


def _check_room(hypervisor: Hypervisor, domain: libvirt.virDomain, memory: OwnedVolume) -> None:
    with translated(hypervisor.uri):
        available = pools.ensure_pool(hypervisor, memory.pool).info()[3]
        used = domain.memoryStats().get("rss", 0) * 1024
    if used > available:
        raise Refused(
            f"the storage pool {memory.pool} has {human_size(available)} free, and the memory of {domain.name()} "
            f"needs about {human_size(used)} there for a moment",
            "make room, or give another --pool",
        )


def _prepare(hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan, undo: Undo, progress: Progress) -> None:
    """All that can be made while the source runs undisturbed: names, seeds, definitions, overlays."""
    assert plan.memory is not None
    for number, copy in enumerate(plan.copies):
        progress.step(f"defining {copy.identity.name}")
        clone.take_name(hypervisor, plan, copy, undo, [plan.memory] if number == 0 else [])
        clone.make_seed(hypervisor, plan, copy, undo)
    moved = _moved(plan)
    freeze.claim(hypervisor, domain, moved, undo)
    freeze.prepare(hypervisor, moved, undo)
    for copy in plan.copies:
        clone.make_overlays(hypervisor, copy, undo)


def _moved(plan: Plan) -> list[freeze.Layer]:
    return [layer for layer in plan.layers if layer.overlay is not None]


def _freeze(
    hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan, undo: Undo, progress: Progress
) -> int | None:
    """Write the memory and freeze the disks in the same moment; returns the pause in ms."""
    assert plan.memory is not None
    memory, moved = plan.memory, _moved(plan)
    assert memory.path is not None
    request = xml.text(freeze.snapshot_request(domain, moved, memory.path))
    flags = freeze.RUNNING_FLAGS | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
    undo.add(f"delete {memory.path}", lambda: _delete_memory(hypervisor, memory))
    undo.add(f"merge the disks of {plan.source} again", lambda: freeze.merge_back(hypervisor, domain, moved))
    text = f"copying the memory of {plan.source}"
    progress.step(text)
    patience = _Patience(domain, progress, text)
    with _Pause(hypervisor, domain) as pause:
        try:
            abortable(lambda: domain.snapshotCreateXML(request, flags), domain.abortJob, patience.look)
        except libvirt.libvirtError as error:
            raise explain(error, hypervisor.uri) from error
        finally:
            patience.end()
        milliseconds = pause.milliseconds()
    pools.refresh(pools.ensure_pool(hypervisor, memory.pool))
    return milliseconds


def _delete_memory(hypervisor: Hypervisor, memory: OwnedVolume) -> None:
    pools.refresh(pools.ensure_pool(hypervisor, memory.pool))
    pools.delete_volume(hypervisor, memory.pool, memory.name)


class _Patience:
    """Looks after the writing of the memory: tells how far it is, and stops a guest that would never be done."""

    def __init__(self, domain: libvirt.virDomain, progress: Progress, text: str) -> None:
        self.domain, self.progress, self.text = domain, progress, text
        self.until = time.monotonic() + CONVERGE_SECONDS
        self.stopped = False

    def look(self) -> None:
        """Called every now and then."""
        stats = self.domain.jobStats(0)
        total, done = stats.get("data_total"), stats.get("data_processed")
        if total and done is not None:
            self.progress.amount(self.text, min(done, total), total)
        if not self.stopped and time.monotonic() > self.until:
            self.stopped = True
            self.domain.suspend()

    def end(self) -> None:
        """Let a guest that was stopped run on."""
        if self.stopped and self.domain.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED:
            self.domain.resume()


class _Pause:
    """How long a guest stood still, by libvirt's own events."""

    def __init__(self, hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
        self._conn = hypervisor.conn
        self._domain = domain
        self._number: int | None = None
        self._since: float | None = None
        self._total = 0.0
        self._seen = False

    def __enter__(self) -> "_Pause":
        with contextlib.suppress(libvirt.libvirtError):
            self._number = self._conn.domainEventRegisterAny(
                self._domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._number is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._conn.domainEventDeregisterAny(self._number)

    def _event(self, _conn: object, _domain: object, event: int, _detail: int, _opaque: object) -> None:
        now = time.monotonic()
        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and self._since is None:
            self._since = now
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._since is not None:
            self._total += now - self._since
            self._since, self._seen = None, True

    def milliseconds(self) -> int | None:
        """The pause, after waiting a moment for an event that is still on its way."""
        until = time.monotonic() + 1.0
        while not self._seen and self._number is not None and time.monotonic() < until:
            time.sleep(0.01)
        return round(self._total * 1000) if self._seen else None


def _memory_file(hypervisor: Hypervisor, memory: OwnedVolume) -> tuple[libvirt.virStorageVol, save_image.SaveImage]:
    """The volume that libvirt wrote, and its head as it wrote it."""
    volume = find_by_path(hypervisor, memory.path or "")
    if volume is None:
        raise Refused(f"the memory file {memory.path} is not in the storage pool {memory.pool}")
    length = save_image.head_length(read_at(volume, 0, save_image.HEADER_SIZE))
    return volume, save_image.parse(read_at(volume, 0, length))


def _restore(
    hypervisor: Hypervisor,
    plan: Plan,
    copy: Copy,
    file: tuple[libvirt.virStorageVol, save_image.SaveImage],
    undo: Undo,
) -> None:
    """Write the copy's XML into the memory file's head and let libvirt start it from there, paused."""
    volume, image = file
    path = volume.path()
    tree = definition(xml.parse(image.xml, "saved guest's XML", "domain"), plan, copy)
    _write_head(volume, save_image.head(save_image.with_xml(image, xml.raw(tree))))
    clone.define(hypervisor, plan, copy, undo)
    with translated(hypervisor.uri):
        undo.add(f"power off {copy.identity.name}", lambda: _power_off(hypervisor, copy))
        abortable(lambda: hypervisor.conn.restoreFlags(path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED))


def definition(tree: xml.Element, plan: Plan, copy: Copy) -> xml.Element:
    """The saved guest's XML made the copy's: every card with its cable out. Refused where it is not the source's."""
    if tree.findtext("name") != plan.source:
        raise Refused("the memory file is not of the guest that was to be copied")
    now = {disk.target: disk.path for disk in disks_of(tree)}
    for disk in copy.disks:
        # Wherever the image says the guest's data was, the copy must stand on exactly that.
        if now.get(disk.target) not in (disk.layer.base, disk.layer.overlay.path if disk.layer.overlay else None):
            raise Refused(f"the disk {disk.target} of {plan.source} has changed meanwhile", "try again")
    wanted = {disk.target: (disk.volume.path or "", disk.format) for disk in copy.disks}
    if copy.seed is not None:
        wanted.update({t: (copy.seed.path or "", "raw") for t, path in now.items() if path == plan.seed_source})
    macs = {mac: copy.identity.macs.get(mac, mac) for mac in copies.macs_of(tree)}
    copies.rename(tree, copies.Identity(copy.identity.name, copy.identity.uuid, macs))
    copies.separate(tree)
    copies.set_disks(tree, wanted)
    copies.cut_network(tree)
    copies.remember(tree, copy.metadata)
    return tree


def _write_head(volume: libvirt.virStorageVol, data: bytes) -> None:
    stream = volume.connect().newStream(0)
    try:
        volume.upload(stream, 0, len(data), 0)
        while data:
            data = data[stream.send(data[: pools.CHUNK]) :]
        stream.finish()
    except libvirt.libvirtError as error:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise explain(error) from error


def _power_off(hypervisor: Hypervisor, copy: Copy) -> None:
    domain = hypervisor.find(copy.identity.uuid)
    if domain.isActive():
        clone.power_off(domain)
