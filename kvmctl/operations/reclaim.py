"""``host overcommit --reclaim``: ask guests' balloons back for what the guests say they can spare."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.model.units import MIB
from kvmctl.operations.host_info import memory
from kvmctl.operations.overcommit import Guest, Overcommit
from kvmctl.operations.progress import Progress

# A guest keeps this much of what it could spare, so that its next program finds memory at once.
KEEP_BYTES = 128 * MIB
KEEP_SHARE = 0.1
# Less than this is not worth the guest's work.
LEAST = 16 * MIB
# A balloon fills within a second or two where the guest answers at all; longer is reported as it stands.
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Wish:
    """What one guest shall come down to (bytes), or ``to`` None and the reason why it is left alone."""

    guest: Guest
    to: int | None
    reason: str | None = None


def plan(found: Overcommit) -> list[Wish]:
    """What to ask of each running guest; pure."""
    return [_wish(guest) for guest in found.guests if guest.active]


def _wish(guest: Guest) -> Wish:
    if guest.state != "running":
        return Wish(guest, None, f"it is {guest.state}: nobody in it would answer")
    if guest.spare_bytes is None:
        return Wish(guest, None, "it does not say what it can spare (no balloon driver, or no statistics from it)")
    keep = max(KEEP_BYTES, int(guest.memory_bytes * KEEP_SHARE))
    spare = guest.spare_bytes - keep
    if spare < LEAST:
        return Wish(guest, None, "it has nothing to spare")
    return Wish(guest, (guest.memory_bytes - spare) // MIB * MIB)


def run(hypervisor: Hypervisor, wishes: Sequence[Wish], progress: Progress) -> dict[str, Any]:
    """Ask, wait until the balloons have moved, and say what came of it.

    ``{"host_available_before_bytes", "host_available_after_bytes", "guests": [{"name", "from_bytes",
    "to_bytes", "now_bytes", "resident_before_bytes", "resident_after_bytes", "reason"}]}``. Only the
    running guests change, not their definitions: after a restart, or by ``kvmctl set VM --memory SIZE
    --live``, they have their memory again.
    """
    before = memory(hypervisor).available
    rows = []
    waiting: list[tuple[libvirt.virDomain, dict[str, Any]]] = []
    for wish in wishes:
        row: dict[str, Any] = {
            "name": wish.guest.name,
            "from_bytes": wish.guest.memory_bytes,
            "to_bytes": wish.to,
            "now_bytes": wish.guest.memory_bytes,
            "resident_before_bytes": wish.guest.resident_bytes,
            "resident_after_bytes": wish.guest.resident_bytes,
            "reason": wish.reason,
        }
        rows.append(row)
        if wish.to is None:
            continue
        try:
            domain = hypervisor.conn.lookupByUUIDString(wish.guest.uuid)
            domain.setMemoryFlags(wish.to // 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            waiting.append((domain, row))
        except libvirt.libvirtError as error:
            row["reason"] = " ".join(str(error).split())
    _wait(waiting, progress)
    return {
        "host_available_before_bytes": before,
        "host_available_after_bytes": memory(hypervisor).available,
        "guests": rows,
    }


def _wait(waiting: list[tuple[libvirt.virDomain, dict[str, Any]]], progress: Progress) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while waiting and time.monotonic() < until:
        progress.step(f"waiting for the balloons of {len(waiting)} guests")
        time.sleep(0.2)
        waiting = [(domain, row) for domain, row in waiting if not _arrived(domain, row)]
    for _domain, row in waiting:
        row["reason"] = "its balloon did not come down to that in time; it may still"


def _arrived(domain: libvirt.virDomain, row: dict[str, Any]) -> bool:
    try:
        values = domain.memoryStats()
        row["now_bytes"] = values["actual"] * 1024
        row["resident_after_bytes"] = values["rss"] * 1024
    except (libvirt.libvirtError, KeyError):
        row["reason"] = "it went away meanwhile"
        return True
    return bool(row["now_bytes"] <= row["to_bytes"])
