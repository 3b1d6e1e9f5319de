"""Starting VMs one after the other as the host boots, in the order that was set for them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import UsageProblem
from kvmctl.model import start_order
from kvmctl.model.metadata import Metadata
from kvmctl.model.start_order import StartOrder
from kvmctl.operations import metadata
from kvmctl.operations.listing import BOOT_HOOK

NOT_IN_FORCE = "this host starts no VM in its order yet: libvirt's hook is missing ('kvmctl host setup' installs it)"


@dataclass(frozen=True)
class Due:
    """A VM that is to be started, and how."""

    name: str
    start: StartOrder


def this_boot(hypervisor: Hypervisor) -> str | None:
    """What tells this boot of the host from others (the kernel's boot_id); None over a remote connection."""
    if hypervisor.is_remote:
        return None
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def due(hypervisor: Hypervisor, *, boot: bool = False) -> list[Due]:
    """The VMs with an order, in it; with ``boot`` only those for which this has not been done since the host booted.

    Raises UsageProblem for ``boot`` over a remote connection.
    """
    now = this_boot(hypervisor) if boot else None
    if boot and now is None:
        raise UsageProblem("--boot is for the host itself", "leave it out to start them over this connection")
    found = []
    with translated(hypervisor.uri):
        for domain in hypervisor.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):
            start = start_order.read(metadata.read(domain))
            if start is not None and not (boot and start.boot == now):
                found.append(Due(domain.name(), start))
    return sorted(found, key=lambda one: (one.start.order, one.name))


def start(hypervisor: Hypervisor, one: Due) -> dict[str, Any]:
    """Start it, unless it runs: what lifecycle.start() returns, with ``order`` and ``delay_seconds``.

    That it was done in this boot is noted first: one that does not start is not tried again and again.
    """
    # Imported late: lists ask for orders, and start nothing.
    from kvmctl.operations import lifecycle

    domain = hypervisor.find(one.name)
    note(hypervisor, domain, one.start)
    row = lifecycle.start(hypervisor, lifecycle.plan(hypervisor, "start", one.name))
    return {**row, "order": one.start.order, "delay_seconds": one.start.delay}


def in_force(hypervisor: Hypervisor) -> bool:
    """Whether the host starts VMs in their order as it boots; of another machine that is taken for granted."""
    return hypervisor.is_remote or (not hypervisor.is_session and os.access(BOOT_HOOK, os.X_OK))


def of(domain: libvirt.virDomain) -> StartOrder | None:
    """The order of ``domain``; None without one, and where the VM has gone meanwhile."""
    try:
        return start_order.read(metadata.read(domain)) if domain.isPersistent() else None
    except libvirt.libvirtError:
        return None


def starts_with_host(hypervisor: Hypervisor, domain: libvirt.virDomain) -> bool:
    """Whether the VM is started as its host boots: by libvirt itself, or by kvmctl in its order."""
    if not domain.isPersistent():
        return False
    return bool(domain.autostart()) or (of(domain) is not None and in_force(hypervisor))


def of_many(hypervisor: Hypervisor, domains: Sequence[libvirt.virDomain]) -> list[StartOrder | None]:
    """The order of each."""
    if not hypervisor.is_remote:
        # On this machine an answer is there sooner than another thread.
        return [of(domain) for domain in domains]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(of, domains))


def ordered(hypervisor: Hypervisor, metadata_: Metadata, order: int | None, delay: int | None) -> Metadata:
    """A new VM's metadata with this order in it, from the host's next boot on."""
    if not order:
        return metadata_
    return start_order.put(metadata_, StartOrder(order, delay or 0, this_boot(hypervisor)))


def note(hypervisor: Hypervisor, domain: libvirt.virDomain, wanted: StartOrder | None) -> None:
    """Remember this order for the VM, or none; from the host's next boot on."""
    with translated(hypervisor.uri):
        kept = replace(wanted, boot=this_boot(hypervisor) or wanted.boot) if wanted is not None else None
        metadata.write(domain, start_order.put(metadata.read(domain), kept))
