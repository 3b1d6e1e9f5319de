"""CDs in and out of a VM's drives."""

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.operations import disk_sources, hypervisor_files, metadata, pools
from kvmctl.operations.affect import Affect, affect
from kvmctl.operations.disks import disks_of, source_of
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.pci_host import definitions
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo


@dataclass(frozen=True)
class Change:
    """What run() would put into a drive: ``path`` None empties it. ``upload`` is a file of this machine's."""

    domain: libvirt.virDomain
    name: str
    target: str
    path: str | None
    kind: str
    before: str | None
    affect: Affect
    upload: Path | None = None
    volume: OwnedVolume | None = None

    def row(self) -> dict[str, Any]:
        """``{"vm", "target", "source", "before", "changed", "live", "config"}``."""
        return {
            "vm": self.name,
            "target": self.target,
            "source": self.path,
            "before": self.before,
            "changed": self.path != self.before,
            "live": self.affect.live,
            "config": self.affect.config,
        }


def plan(
    hypervisor: Hypervisor,
    name: str,
    iso: str | None,
    target: str | None = None,
    *,
    live: bool = False,
    config: bool = False,
) -> Change:
    """Which drive, and what goes into it. ``target`` None: the only drive there is, or the first empty one.

    Raises Conflict where there is no drive, NotFound, UsageProblem for what is no ISO image.
    """
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    trees = [t for t, on in ((live_xml, halves.live), (saved_xml, halves.config)) if on and t is not None]
    drives = {
        at: disk
        for at, disk in disks_of(trees[0]).items()
        if disk.get("device") == "cdrom" and all(at in disks_of(tree) for tree in trees)
    }
    chosen = _drive(drives, target, shown, filling=iso is not None)
    before = source_of(drives[chosen])
    if iso is None:
        return Change(domain, shown, chosen, None, "file", before, halves)
    path = hypervisor_files.absolute(hypervisor, iso) if iso.startswith("/") or not hypervisor.is_remote else None
    found = hypervisor_files.look(hypervisor, path, disk_sources.HEAD) if path is not None else None
    if found is not None:
        disk_sources.check_iso(found.path, found.head)
        return Change(domain, shown, chosen, found.path, found.kind, before, halves)
    return _upload(hypervisor, Change(domain, shown, chosen, None, "file", before, halves), Path(iso))


def _upload(hypervisor: Hypervisor, change: Change, mine: Path) -> Change:
    if not mine.is_file():
        raise NotFound(f"there is no ISO {str(mine)[:200]!a}, neither here nor on the host of {hypervisor.uri}")
    with mine.open("rb") as file:
        disk_sources.check_iso(str(mine), file.read(disk_sources.HEAD))
    pool = pools.default_pool(hypervisor)
    pools.refresh(pool)
    number = 1
    while pools.find_volume(pool, f"{change.name}-cd{number}.iso") is not None:
        number += 1
    name = f"{change.name}-cd{number}.iso"
    source, path = disk_sources.in_pool(pool, name)
    volume = OwnedVolume(pool.name(), name, path, "other")
    return replace(change, path=source.path, kind=source.kind, upload=mine, volume=volume)


def _drive(drives: dict[str, xml.Element], target: str | None, vm: str, *, filling: bool) -> str:
    if not drives:
        raise Conflict(f"{vm} has no CD drive", f"kvmctl disk attach {vm} FILE.iso,device=cdrom")
    if target is not None:
        if target not in drives:
            raise NotFound(f"{vm} has no CD drive {target[:40]!a}", f"it has {', '.join(drives)}")
        return target
    fitting = [at for at, disk in drives.items() if (source_of(disk) is None) == filling]
    if len(drives) == 1:
        return next(iter(drives))
    if not fitting:
        raise Conflict(
            f"{vm} has {len(drives)} CD drives, and {'none is empty' if filling else 'all are empty'}",
            f"name one with --drive: {', '.join(drives)}",
        )
    return fitting[0]


def run(
    hypervisor: Hypervisor, change: Change, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Change what is in the drive. ``force`` opens it though the guest has locked it."""
    if change.path == change.before:
        return change.row()
    verb = "eject" if change.path is None else "insert"
    with definition_kept(change.domain, f"disk {verb} {change.name}"), Undo() as undo:
        if change.upload is not None and change.volume is not None:
            _send(hypervisor, change, change.upload, change.volume, undo, progress)
        live, saved = definitions(change.domain)
        flags = libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if force else 0
        halves = ((live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG))
        for tree, flag in halves:
            element = disks_of(tree).get(change.target) if change.affect.flags & flag else None
            if element is None:
                continue
            before = xml.raw(element)
            _fill(element, change)
            update(hypervisor, change.domain, change.target, xml.raw(element), flag | flags)
            undo.add(f"put back what was in {change.target}", _updater(change.domain, before, flag))
        undo.keep()
    return change.row()


def _updater(domain: libvirt.virDomain, element: str, flag: int) -> Any:
    return lambda: domain.updateDeviceFlags(element, flag)


def _send(
    hypervisor: Hypervisor, change: Change, mine: Path, volume: OwnedVolume, undo: Undo, progress: Progress | None
) -> None:
    pool = pools.ensure_pool(hypervisor, volume.pool)
    pools.upload(pool, volume.name, mine, mine.stat().st_size, mode="0644", progress=progress)
    undo.add(f"delete volume {volume.name}", lambda: pools.delete_volume(hypervisor, volume.pool, volume.name))
    before = metadata.read(change.domain)
    metadata.write(change.domain, before._replace(volumes=(*before.volumes, volume)))
    undo.add("forget the volume", lambda: metadata.write(change.domain, before))


def _fill(element: xml.Element, change: Change) -> None:
    filled = xml.new("disk", type_=change.kind)
    if change.path is not None:
        xml.add(filled, "source", **{"dev" if change.kind == "block" else "file": change.path})
    refill(element, filled)


def refill(element: xml.Element, other: xml.Element) -> None:
    """Put into the drive ``element`` what is in the drive ``other``, which may be nothing."""
    # What belonged to the former disc: its chain, and a source of perhaps another type.
    for tag in ("source", "backingStore"):
        for old in element.findall(tag):
            element.remove(old)
    source, target = other.find("source"), element.find("target")
    if source is None or target is None:
        return
    element.set("type", other.get("type", "file"))
    element.insert(element.index(target), deepcopy(source))


def update(hypervisor: Hypervisor, domain: libvirt.virDomain, target: str, element: str, flags: int) -> None:
    """Hand libvirt the drive ``target`` as it is to be. Raises Refused where the guest has locked it."""
    try:
        domain.updateDeviceFlags(element, flags)
        return
    except libvirt.libvirtError as error:
        found = explain(error, hypervisor.uri)
        if "is not open" not in found.message:
            # "timed out waiting to open tray": libvirt 11.3, which has asked the guest and waited for it.
            held = "locked" in found.message or "waiting to open tray" in found.message
            raise _locked(domain, target) if held else found from error
    # libvirt 9.0 does not know that a drive it plugged in itself has a tray, and so never opens it.
    alias = _alias(domain, target)
    force = bool(flags & libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)
    _tray(domain, target, "blockdev-open-tray", id=alias, force=force)
    try:
        domain.updateDeviceFlags(element, flags)
    except libvirt.libvirtError as error:
        found = explain(error, hypervisor.uri)
        # QEMU only asked the guest, which holds it.
        raise _locked(domain, target) if "is not open" in found.message else found from error
    finally:
        _tray(domain, target, "blockdev-close-tray", id=alias)


def _alias(domain: libvirt.virDomain, target: str) -> str:
    live, _saved = definitions(domain)
    alias = disks_of(live)[target].find("alias")
    assert alias is not None
    return alias.get("name", "")


def _tray(domain: libvirt.virDomain, target: str, command: str, **arguments: Any) -> None:
    import libvirt_qemu

    request = json.dumps({"execute": command, "arguments": arguments})
    with translated():
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
    said = answer.get("error", {}).get("desc", "")
    if "locked" in said:
        raise _locked(domain, target)
    if said:
        raise KvmctlError(f"the drive {target} of {domain.name()} does not obey: {said}")


def _locked(domain: libvirt.virDomain, target: str) -> Refused:
    return Refused(
        f"the guest {domain.name()} has locked the drive {target}", "unmount the disc in the guest, or use --force"
    )
