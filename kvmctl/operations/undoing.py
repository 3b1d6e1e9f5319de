"""Back to just before the last command that changed a VM's disks or definition."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, Refused
from kvmctl.model import clone as copies
from kvmctl.model import start_order, undo_record, xml
from kvmctl.model.comparison import fingerprint
from kvmctl.model.metadata import Metadata, Reservation, from_domain, put
from kvmctl.model.snapshot import SLOT
from kvmctl.model.undo_record import UndoRecord
from kvmctl.operations import metadata, reservations, snapshot_revert, snapshots, undo_devices
from kvmctl.operations.kept_definition import DEFINED, definition_kept, now
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.operations.undo_devices import UNPLUG_SECONDS, Devices
from kvmctl.preflight import dependents
from kvmctl.preflight.snapshots import disks_of


@dataclass(frozen=True)
class Plan:
    """What would be undone: ``revert`` goes back to the slot, or ``definition`` is defined again.

    Neither where the command changed the running guest alone. ``devices`` follow in the running guest.
    ``changed_since``: the definition is not what the command left, so that something else is taken back with it.
    """

    vm: str
    record: UndoRecord
    revert: snapshot_revert.Plan | None
    definition: xml.Element | None
    devices: Devices
    running: bool
    changed_since: bool

    def sentence(self) -> str:
        """What undoing means, before it is done."""
        if self.revert is not None:
            what = f"the disks, memory and definition go back to the moment kept as {self.record.kept or SLOT}"
        elif self.definition is None:
            what = self.devices.words()
        else:
            told = self.devices.words()
            what = "its definition from before is brought back"
            if told:
                what += f", and {told}"
            elif self.running:
                what += ", from the next start on"
        return f"undoing '{self.record.command}' of {self.record.at} on {self.vm}: {what}"

    def as_dict(self, *, changed: bool) -> dict[str, Any]:
        """``{name, command, at, kind, changed_since, changed}``; ``kind``: ``snapshot``, ``definition`` or ``run``."""
        return {
            "name": self.vm,
            "command": self.record.command,
            "at": self.record.at,
            "kind": "snapshot" if self.revert is not None else "definition" if self.definition is not None else "run",
            "changed_since": self.changed_since,
            "changed": changed,
        }


def plan(hypervisor: Hypervisor, vm: str) -> Plan:
    """What the last change was. Raises Conflict where nothing is kept that leads back before it, Refused where nothing
    can, or a disk of the definition from before is gone.
    """
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri):
        name = domain.name()
        record = undo_record.read(metadata.read(domain))
        kept = record.kept if record is not None and record.kept is not None else SLOT
        there = any(kept in (s.name, s.shown_name) for s in snapshots.load(domain))
        running = bool(domain.isActive())
        defined = domain.XMLDesc(DEFINED) if domain.isPersistent() else None
    if record is not None and record.never is not None:
        raise Refused(
            f"the last change of {name}, '{record.command}', cannot be undone: {record.never}",
            f"'kvmctl snapshot list {name}' shows the moments there are to go back to",
        )
    if record is None or defined is None or (record.snapshot and not there):
        raise Conflict(
            f"nothing is kept that leads back before the last change of {name}",
            f"'kvmctl snapshot list {name}' shows the moments there are",
        )
    if record.run is not None:
        return _plan_run(domain, name, record, record.run)
    if record.definition is None:
        return Plan(name, record, snapshot_revert.plan(hypervisor, vm, kept), None, Devices(), running, False)
    tree = _definition(hypervisor, record.definition, xml.parse(defined, "domain"))
    devices = Devices()
    if running:
        with translated(hypervisor.uri):
            live = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "domain")
        devices = undo_devices.following(live, xml.parse(defined, "domain"), tree)
    changed_since = record.after is not None and record.after != fingerprint(defined)
    return Plan(name, record, None, tree, devices, running, changed_since)


def _plan_run(domain: libvirt.virDomain, name: str, record: UndoRecord, after: str) -> Plan:
    """Taking back what was done to the running guest alone, as far as it is still so."""
    devices = Devices()
    with translated():
        if domain.isActive():
            live = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "domain")
            then = xml.parse(record.definition or "", "running guest from before", "domain")
            devices = undo_devices.following(live, xml.parse(after, "running guest", "domain"), then)
    if devices == Devices():
        raise Conflict(
            f"the last change of {name}, '{record.command}', was for that run alone, and nothing is left of it to undo",
            f"'kvmctl snapshot list {name}' shows the moments there are to go back to",
        )
    return Plan(name, record, None, None, devices, True, False)


def _definition(hypervisor: Hypervisor, text: str, present: xml.Element) -> xml.Element:
    """The definition from before, with what belongs to now: the VM's name, and the overlays that its disks are on."""
    tree = xml.parse(text, "saved definition", "domain")
    name = tree.find("name")
    assert name is not None
    name.text = present.findtext("name")
    stand = {disk.target: disk for disk in disks_of(present)}
    moved: dict[str, tuple[str, str]] = {}
    for disk in disks_of(tree):
        if disk.path is None:
            continue
        here = stand.get(disk.target)
        # A clone or a snapshot has frozen the file since: writing to it would change it under them.
        below = dependents.chain(hypervisor, here.path, here.format)[1:] if here is not None and here.path else []
        if here is not None and here.path is not None and disk.path in below:
            moved[disk.target] = (here.path, here.format)
        elif dependents.is_missing(hypervisor, disk.path):
            raise Refused(
                f"the disk {disk.target} of the definition from before, {disk.path}, is no longer there",
                "that change cannot be undone",
            )
    copies.set_disks(tree, moved)
    return tree


def run(
    hypervisor: Hypervisor, found: Plan, progress: Progress | None = None, timeout: float = UNPLUG_SECONDS
) -> dict[str, Any]:
    """Undo it. What was undone can itself be undone. If a step fails, all is as it was before.

    ``timeout``: the seconds that the guest may take to let go of a device.
    """
    progress = progress or Progress()
    domain = hypervisor.find(found.vm)
    if found.revert is not None:
        snapshot_revert.run(hypervisor, found.revert, progress, command=f"undo {found.vm}")
        return found.as_dict(changed=True)
    if found.definition is None:
        _run_devices(hypervisor, domain, found, progress, timeout)
        return found.as_dict(changed=True)
    with translated(hypervisor.uri), Undo() as undo:
        before = domain.XMLDesc(DEFINED)
        undo_devices.follow(hypervisor, domain, found.devices, undo, progress, timeout)
        # What kvmctl must know to clean up and to protect is of now, whatever the definition was then.
        remembered = _ordered(found.definition, _remembered(found.definition, metadata.read(domain)))
        cards = set(copies.macs_of(found.definition))
        remembered = _reservations(hypervisor, from_domain(found.definition), remembered, cards, found.vm, undo)
        tree = xml.parse(xml.raw(found.definition), "domain")
        put(tree, undo_record.put(remembered, None))
        undo.add(f"the definition of {found.vm}", lambda: hypervisor.conn.defineXML(before))
        hypervisor.conn.defineXML(xml.raw(tree))
        after = fingerprint(domain.XMLDesc(DEFINED))
        redo = UndoRecord(f"undo {found.vm}", now(), definition=undo_record.without(before), after=after)
        metadata.write(domain, undo_record.put(remembered, redo))
        undo.keep()
    return found.as_dict(changed=True)


def _remembered(then: xml.Element, present: Metadata) -> Metadata:
    """What is remembered now, and the volumes of kvmctl's that the VM gets back."""
    known = {(volume.pool, volume.name) for volume in present.volumes}
    paths = {disk.path for disk in disks_of(then)}
    again = [v for v in from_domain(then).volumes if v.path in paths and (v.pool, v.name) not in known]
    return present._replace(volumes=(*present.volumes, *again))


def _ordered(then: xml.Element, present: Metadata) -> Metadata:
    """With the start order from before, which is part of how it was set up."""
    was, now_is = start_order.read(from_domain(then)), start_order.read(present)
    if was is not None and now_is is not None:
        was = replace(was, boot=now_is.boot)
    return start_order.put(present, was)


def _run_devices(
    hypervisor: Hypervisor, domain: libvirt.virDomain, found: Plan, progress: Progress, timeout: float
) -> None:
    """Turn the running guest's devices back; its definition stays."""
    with translated(hypervisor.uri), definition_kept(domain, f"undo {found.vm}"), Undo() as undo:
        undo_devices.follow(hypervisor, domain, found.devices, undo, progress, timeout)
        then = xml.parse(found.record.definition or "", "running guest from before", "domain")
        cards = {mac for flags in (0, DEFINED) for mac in copies.macs_of(xml.parse(domain.XMLDesc(flags), "domain"))}
        before = metadata.read(domain)
        now_kept = _reservations(hypervisor, from_domain(then), before, cards, found.vm, undo)
        undo.add("what is remembered", lambda: metadata.write(domain, before))
        metadata.write(domain, _remembered(then, now_kept))
        undo.keep()


def _reservations(
    hypervisor: Hypervisor, then: Metadata, remembered: Metadata, cards: set[str], vm: str, undo: Undo
) -> Metadata:
    """Give back the addresses kept for cards that go, and have those kept again whose ``cards`` come back."""
    gone = [r for r in remembered.reservations if r.mac is not None and r.mac.lower() not in cards]
    again = [r for r in then.reservations if r not in remembered.reservations and (r.mac or "").lower() in cards]
    for reservation in gone:
        if reservations.release(hypervisor, reservation):
            undo.add(f"keep {reservation.ip} again", _keeper(hypervisor, reservation, vm))
    for reservation in again:
        assert reservation.mac is not None
        _, new = reservations.reserve(hypervisor, reservation.network, reservation.mac, reservation.ip, vm)
        if new:
            undo.add(f"give {reservation.ip} back", _releaser(hypervisor, reservation))
    kept = [r for r in remembered.reservations if r not in gone]
    return remembered._replace(reservations=(*kept, *again))


def _keeper(hypervisor: Hypervisor, reservation: Reservation, vm: str) -> Callable[[], object]:
    mac = reservation.mac or ""
    return lambda: reservations.reserve(hypervisor, reservation.network, mac, reservation.ip, vm)


def _releaser(hypervisor: Hypervisor, reservation: Reservation) -> Callable[[], object]:
    return lambda: reservations.release(hypervisor, reservation)
