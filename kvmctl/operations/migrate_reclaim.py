"""Giving a guest its disks back after a move that failed.

When QEMU has stopped a guest to hand it over, it also gives up its disks. Where one of them cannot be written out in
that moment, because the connection of its copy is dead, QEMU before 8.1 lets the guest go on without taking all of them
back, and dies of it in a later move (its commit 403d18ae38, "migration: Handle block device inactivation failures
better"). A move that is cancelled just then may end alike. Every ``cont`` takes all disks back first, and libvirt sends
one when a guest resumes.
"""

import time

import libvirt

from kvmctl.connection import explain
from kvmctl.model import xml

_LOOK_SECONDS = 0.2


def reclaim(domain: libvirt.virDomain, before: str, patience: float) -> str | None:
    """End what still copies its disks, and have QEMU take them back. What could not be done, or None.

    ``before`` is the guest's state before the move: one that its user had paused takes them back when it goes on.
    ``patience``: how many seconds the copying may take to end.
    """
    try:
        if not domain.isActive() or not _disks(domain):
            return None
        copied = _end_copies(domain, patience)
        if copied:
            return f"the copying of {', '.join(copied)} has not ended yet: QEMU waits for its connection"
        if before != "paused":
            # The guest stands still for some milliseconds.
            domain.suspend()
            domain.resume()
    except libvirt.libvirtError as error:
        return f"its disks could not be taken back: {explain(error).message}"
    return None


def _end_copies(domain: libvirt.virDomain, patience: float) -> list[str]:
    """End the copying of each disk, which is the move's, and wait for it; the disks where that takes too long."""
    end = time.monotonic() + patience
    told: set[str] = set()
    while copied := _copied(domain):
        if time.monotonic() > end:
            return copied
        for target in copied:
            if target not in told:
                told.add(target)
                domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
        time.sleep(_LOOK_SECONDS)
    return []


def _copied(domain: libvirt.virDomain) -> list[str]:
    """The disks that are being copied. A copy that a user has begun shows as ``<mirror>`` and is left alone."""
    own = [dev for dev, mirrored in _disks(domain).items() if not mirrored]
    return [dev for dev in own if domain.blockJobInfo(dev, 0).get("type") == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY]


def _disks(domain: libvirt.virDomain) -> dict[str, bool]:
    """The disks that the guest may write to, by target, and whether each is being mirrored by its user."""
    tree = xml.parse(domain.XMLDesc(0), "domain", "domain")
    found = [
        disk
        for disk in tree.iterfind("devices/disk")
        if disk.get("device", "disk") == "disk" and disk.find("readonly") is None
    ]
    targets = [(disk.find("target"), disk.find("mirror") is not None) for disk in found]
    return {target.get("dev", ""): mirrored for target, mirrored in targets if target is not None}
