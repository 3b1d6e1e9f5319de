"""Growing a VM's disk, while it runs or is off."""

from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, UsageProblem
from kvmctl.model import xml
from kvmctl.model.disk import LARGEST_DISK
from kvmctl.model.units import GIB, human_size, parse_size
from kvmctl.operations import hypervisor_files
from kvmctl.operations.disks import disks_of, find_target, source_of
from kvmctl.operations.kept_definition import cannot_be_undone
from kvmctl.operations.pci_host import definitions
from kvmctl.preflight import dependents


@dataclass(frozen=True)
class Resize:
    """From ``before`` to ``after`` bytes; equal where there is nothing to do."""

    domain: libvirt.virDomain
    name: str
    target: str
    path: str
    before: int
    after: int
    live: bool

    def row(self) -> dict[str, Any]:
        """``{"vm", "target", "source", "before_bytes", "capacity_bytes", "changed", "live"}``."""
        return {
            "vm": self.name,
            "target": self.target,
            "source": self.path,
            "before_bytes": self.before,
            "capacity_bytes": self.after,
            "changed": self.before != self.after,
            "live": self.live,
        }


def plan(hypervisor: Hypervisor, name: str, which: str, size: str) -> Resize:
    """``size`` is the new one (``20G``), or with ``+`` what is added. Raises UsageProblem for a smaller one."""
    grown = parse_size(size.removeprefix("+"), GIB)
    if grown > LARGEST_DISK:
        raise UsageProblem(f"{size[:40]!a}: a disk has at most 2 PiB", "a number without a unit is GiB")
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        shown = domain.name()
        live, saved = definitions(domain)
    disks = disks_of(live if live is not None else saved)
    target = find_target(disks, which, shown)
    disk = disks[target]
    path = source_of(disk)
    if path is None or disk.get("device", "disk") != "disk":
        raise UsageProblem(f"{target} of {shown} is no disk but a {disk.get('device', 'drive')}")
    if disk.find("readonly") is not None:
        raise Refused(f"{target} of {shown} is read-only")
    if disk.get("type") == "block":
        raise Refused(
            f"{path} is a block device: its size is that of the device",
            f"grow the device (lvextend ...) first; a restart of {shown} then sees it",
        )
    with translated(hypervisor.uri):
        tree = xml.parse(domain.XMLDesc(0), "domain")
        dependents.check_disks(hypervisor, tree)
        stood_on = dependents.against_writing(hypervisor, tree)
        if stood_on is not None:
            raise Refused(stood_on, "resize the copy's own disk instead")
        before = int(domain.blockInfo(target)[0])
    # Both QEMU and the guest count in sectors.
    after = before + grown if size.startswith("+") else grown
    after = -(-after // 512) * 512
    if after < before:
        raise UsageProblem(
            f"{target} of {shown} has {human_size(before)} and cannot shrink to {human_size(after)}: "
            "what is at its end would be lost",
            "make a smaller disk and copy what is on it",
        )
    return Resize(domain, shown, target, path, before, after, live is not None)


def run(hypervisor: Hypervisor, found: Resize) -> dict[str, Any]:
    """Grow it, and ask libvirt what it is now."""
    if found.before == found.after:
        return found.row()
    try:
        with translated(hypervisor.uri):
            if found.live:
                found.domain.blockResize(found.target, found.after, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            else:
                with hypervisor_files.volume_at(hypervisor, found.path) as volume:
                    if volume is None:
                        raise NotFound(f"there is no disk {found.path[:200]!a} on the host of {hypervisor.uri}")
                    volume.resize(found.after, 0)
            now = int(found.domain.blockInfo(found.target)[0])
    except KvmctlError as error:
        if "snapshot" in error.message.lower():
            raise Conflict(
                f"{found.target} of {found.name} has snapshots inside, and cannot grow with them",
                f"delete them first: kvmctl snapshot list {found.name}",
            ) from error
        raise
    if now > found.before:
        with translated(hypervisor.uri):
            command = f"disk resize {found.name} {found.target} {human_size(now)}"
            cannot_be_undone(found.domain, command, "a disk cannot shrink without losing what is at its end")
    if now < found.after:
        raise KvmctlError(f"{found.target} of {found.name} still has {human_size(now)}")
    return {**found.row(), "capacity_bytes": now}
