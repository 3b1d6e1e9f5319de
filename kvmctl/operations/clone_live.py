"""Forking a running guest: copies that go on from the same instant, with its memory.

libvirt writes the memory to a file while the guest runs on, stops it for the last of it, and moves its disks onto
overlays in the same moment. That file is a save image. For each copy the XML in its head is replaced by the copy's
own, and libvirt restores a second guest from it: paused, every cable out. It goes on with its network cut, gets an
identity of its own inside, and a new card with the new MAC takes the place of the one that the memory knows.
"""

import threading
import time
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import KvmctlError, Refused
from kvmctl.model import clone as copies
from kvmctl.model import save_image, xml
from kvmctl.model.metadata import Metadata, Reservation
from kvmctl.operations import (
    claim,
    clone,
    clone_address,
    clone_identity,
    freeze,
    memory_file,
    metadata,
    nvram,
    pools,
    recovery,
    removal,
)
from kvmctl.operations.abortable import abortable
from kvmctl.operations.clone_plan import Copy, Plan
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.preflight.asking import Asking
from kvmctl.preflight.snapshots import disks_of

# So many copies are given their identities at the same time.
AT_ONCE = 8


def run(hypervisor: Hypervisor, plan: Plan, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Fork the source and return ``{name, uuid, source, mode, disks, seconds, pause_ms, warnings}`` for each copy.

    ``pause_ms`` is how long the source stood still, None where libvirt's events did not tell. If anything fails, or
    Ctrl-C arrives, the copies are gone and the source's disks merged again; it runs on in any case.
    """
    progress = progress or Progress()
    assert plan.memory is not None
    domain = hypervisor.find(plan.source)
    memory_file.check_room(hypervisor, domain, plan.memory)
    began = time.monotonic()
    given = []
    with Undo() as undo:
        _prepare(hypervisor, domain, plan, undo, progress)
        pause, variables = _freeze(hypervisor, domain, plan, undo, progress)
        recovery.done(domain)
        file = memory_file.head(hypervisor, plan.memory)
        out = copies.cables_out(xml.parse(file[1].xml, "saved guest's XML", "domain"))
        kept = clone_address.choose(hypervisor, plan.copies, out)
        for copy, addresses in zip(plan.copies, kept, strict=True):
            progress.step(f"starting {copy.identity.name}")
            _restore(hypervisor, plan, copy, file, variables, addresses, undo)
            given.append(_Identity(hypervisor, plan, copy, addresses, out, began))
        pools.delete_volume(hypervisor, plan.memory.pool, plan.memory.name)
        names = [copy.identity.name for copy in plan.copies]
        progress.step(f"giving {', '.join(names[:3])}{' ...' if names[3:] else ''} an identity of their own")
        rows = [{**identity.row(), "pause_ms": pause, "warnings": identity.warnings} for identity in given]
        for copy, identity in zip(plan.copies, given, strict=True):
            now = copy.metadata._replace(reservations=identity.kept)
            metadata.write(hypervisor.find(copy.identity.uuid), now)
        undo.keep()
    return rows


class _Identity(threading.Thread):
    """clone_identity.give() for one copy, while the next one is restored: the guests themselves take their time.

    ``kept`` are the addresses that were kept for its cards: those that still are, when it is done; ``out`` the
    source's cards whose cable is out.

    A daemon: after Ctrl-C nobody waits for it, its guest is powered off under it.
    """

    at_once = threading.BoundedSemaphore(AT_ONCE)

    def __init__(
        self,
        hypervisor: Hypervisor,
        plan: Plan,
        copy: Copy,
        kept: tuple[Reservation, ...],
        out: frozenset[str],
        began: float,
    ) -> None:
        super().__init__(name=f"identity of {copy.identity.name}", daemon=True)
        self.hypervisor, self.plan, self.copy, self.kept, self.began = hypervisor, plan, copy, kept, began
        self.out = frozenset(copy.identity.macs.get(mac, mac) for mac in out)
        self.warnings: list[str] = []
        self.seconds = 0.0
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.at_once:
                self.warnings = clone_identity.give(self.hypervisor, self.plan, self.copy, self.out)
                self.kept = clone_address.settle(self.hypervisor, self.kept)
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            self.failure = error
        self.seconds = time.monotonic() - self.began

    def row(self) -> dict[str, Any]:
        """Its row when it is done; raises what went wrong."""
        while self.is_alive():
            self.join(0.2)
        if self.failure is not None:
            raise self.failure
        return clone.row(self.plan, self.copy, self.seconds)


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
) -> tuple[int | None, bytes | None]:
    """Write the memory and freeze the disks in the same moment; the pause in ms, and the UEFI variables then."""
    assert plan.memory is not None
    memory, moved = plan.memory, _moved(plan)
    assert memory.path is not None
    request = xml.text(freeze.snapshot_request(domain, moved, memory.path))
    flags = freeze.RUNNING_FLAGS | memory_file.live(hypervisor, domain)
    undo.add(f"delete {memory.path}", lambda: memory_file.delete(hypervisor, memory))
    undo.add(f"merge the disks of {plan.source} again", lambda: freeze.merge_back(hypervisor, domain, moved))
    variables = nvram.read(hypervisor, plan.nvram) if plan.nvram is not None else None
    milliseconds = memory_file.write(hypervisor, domain, request, flags, progress)
    pools.refresh(pools.ensure_pool(hypervisor, memory.pool))
    if plan.nvram is not None and variables != nvram.read(hypervisor, plan.nvram):
        raise KvmctlError(f"{plan.source} changed its UEFI variables meanwhile", "try again")
    return milliseconds, variables


def _restore(
    hypervisor: Hypervisor,
    plan: Plan,
    copy: Copy,
    file: tuple[libvirt.virStorageVol, save_image.SaveImage],
    variables: bytes | None,
    addresses: tuple[Reservation, ...],
    undo: Undo,
) -> None:
    """Write the copy's XML into the memory file's head and let libvirt start it from there, paused."""
    volume, image = file
    path = volume.path()
    unfinished = _unfinished(plan, copy)._replace(reservations=addresses)
    tree = definition(xml.parse(image.xml, "saved guest's XML", "domain"), plan, copy)
    for each in (tree, copy.domain):
        copies.remember(each, unfinished)
    copies.set_nvram(tree, clone.define(hypervisor, plan, copy, undo, variables))
    memory_file.write_head(volume, save_image.head(save_image.with_xml(image, xml.raw(tree))))
    undo.add("give the addresses back", lambda: clone_address.give_back(hypervisor, addresses))
    # The network's DHCP server takes a while to be told of it, and QEMU to load the memory.
    keeping = Asking(lambda: clone_address.keep(hypervisor, addresses))
    try:
        with translated(hypervisor.uri):
            undo.add(f"power off {copy.identity.name}", lambda: _power_off(hypervisor, copy))
            abortable(lambda: hypervisor.conn.restoreFlags(path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED))
        clone_identity.cut(hypervisor, hypervisor.find(copy.identity.uuid))
    finally:
        keeping.result()


def _unfinished(plan: Plan, copy: Copy) -> Metadata:
    """What is remembered of a copy until it has its own identity: who makes it, and the memory file beside its own.

    Should kvmctl be killed, ``delete`` takes all of it away; its cables are out until then.
    """
    assert plan.memory is not None
    volumes = (*copy.metadata.volumes, *([plan.memory] if copy is plan.copies[0] else []))
    return copy.metadata._replace(creator=claim.this_process(), volumes=volumes)


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
    return tree


def _power_off(hypervisor: Hypervisor, copy: Copy) -> None:
    domain = hypervisor.find(copy.identity.uuid)
    if domain.isActive():
        removal.power_off(domain)
