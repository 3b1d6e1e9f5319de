"""What libvirt does not take along: autostart, published ports and reserved addresses."""

import contextlib
from typing import Any, Literal

import libvirt

from kvmctl.connection import explain
from kvmctl.errors import KvmctlError
from kvmctl.model.metadata import Metadata, Reservation
from kvmctl.model.migration import Note
from kvmctl.operations import metadata
from kvmctl.operations.migrate_note import read_note, remove_note
from kvmctl.operations.migrate_truth import Hosts


def arrive_after_crash(hosts: Hosts, note: Note | None) -> list[str]:
    """arrive() for a migration that nobody saw end."""
    if note is None:
        with contextlib.suppress(KvmctlError, libvirt.libvirtError):
            note = read_note(hosts.domain("destination"))
    return arrive(hosts, note is not None and note.autostart)


def arrive(hosts: Hosts, autostart: bool) -> list[str]:
    """Put in order on the destination what belongs to the guest; returns a line for each that could not be.

    Nothing here may fail the migration: the guest has moved.
    """
    try:
        domain = hosts.domain("destination")
        hypervisor = hosts.hypervisor("destination")
    except (KvmctlError, libvirt.libvirtError) as error:
        return [f"the destination could not be asked afterwards: {error}"]
    warnings: list[str] = []

    def attempt(what: str, step: Any) -> None:
        try:
            warnings.extend(step() or [])
        except libvirt.libvirtError as error:
            warnings.append(f"{what}: {explain(error).message}")
        except KvmctlError as error:
            warnings.append(f"{what}: {error.message}")

    attempt("the note of this migration stays in its metadata", lambda: remove_note(domain))
    if autostart:
        attempt("autostart is not set", lambda: _autostart(domain))
    known = metadata.read(domain)
    if known.reservations:
        attempt("reserved addresses", lambda: _reservations(hosts, domain, known))
    if known.forwards and domain.isActive():
        # Firewalls and networks are a third of what a migration would import, and most guests have no such port.
        from kvmctl.operations import ports

        if hypervisor.is_remote and not ports.through_qemu(hypervisor, domain):
            warnings.append(
                "its published ports come into force over there by themselves where 'kvmctl host setup' has installed "
                "libvirt's hooks, else by 'kvmctl port add' there: that host's firewall cannot be reached from here"
            )
        else:
            attempt("published ports", lambda: ports.reapply(hypervisor, domain))
        attempt("the source's rules for published ports", lambda: ports.tidy(hosts.hypervisor("source")))
    return warnings


def _autostart(domain: libvirt.virDomain) -> None:
    domain.setAutostart(1)


def _reservations(hosts: Hosts, domain: libvirt.virDomain, known: Metadata) -> list[str]:
    """Reserve the same address where the destination's network can, and give it back on the source."""
    from kvmctl.operations import reservations

    kept: list[Reservation] = []
    warnings = []
    for wanted in known.reservations:
        there = hosts.hypervisor("destination")
        try:
            if wanted.mac is not None:
                kept.append(reservations.reserve(there, wanted.network, wanted.mac, wanted.ip)[0])
        except KvmctlError as error:
            warnings.append(f"{wanted.ip} is not reserved on the destination: {error.message}")
        with contextlib.suppress(KvmctlError, libvirt.libvirtError):
            reservations.release(hosts.hypervisor("source"), wanted)
    metadata.write(domain, known._replace(reservations=tuple(kept)))
    return warnings


def completed(hosts: Hosts) -> dict[str, Any]:
    """The finished job's statistics, from whichever host still knows them; empty where none does."""
    places: tuple[Literal["destination", "source"], ...] = ("destination", "source")
    for where in places:
        with contextlib.suppress(libvirt.libvirtError, KvmctlError):
            # Kept for whoever asks libvirt after kvmctl: by itself it forgets them when they are read.
            flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
            stats = hosts.domain(where).jobStats(flags)
            if stats and stats.get("type") != libvirt.VIR_DOMAIN_JOB_NONE:
                return dict(stats)
    return {}
