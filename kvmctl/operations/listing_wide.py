"""The columns of ``list -o wide``, which cost more than the rest: addresses, OS, uptime, CPU use."""

from typing import Any

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.model import xml
from kvmctl.model.domain_os import os_name
from kvmctl.operations import addresses
from kvmctl.operations.cpu_use import Meter


def widen(
    hypervisor: Hypervisor,
    found: list[tuple[libvirt.virDomain, dict[str, Any]]],
    meter: Meter,
    known: dict[str, list[str]] | None = None,
) -> None:
    """Add ``{"ips", "os", "uptime_seconds", "cpu_percent"}`` to each row.

    ``cpu_percent`` is of one of the host's CPUs, so a VM with two busy vCPUs has 200. All but ``os`` are
    None (``ips`` is empty) for a VM that is off; uptime is None on a hypervisor that is another machine.
    ``meter`` measures them already; where it does not, cpu_percent is None. ``known`` are the addresses of a
    single VM where they were asked for before.
    """
    trees = _definitions(hypervisor, [domain for domain, _ in found])
    there = [(domain, row, tree) for (domain, row), tree in zip(found, trees, strict=True) if tree is not None]
    if known is None:
        every = addresses.of_many(hypervisor, [(domain, tree) for domain, row, tree in there if row["id"] is not None])
    else:
        every = {row["uuid"]: known for _, row in found}
    for _, row in found:
        row["ips"], row["os"] = [], None
    for _, row, tree in there:
        row["os"] = os_name(tree)
        if row["id"] is not None:
            # An agent also lists addresses that only exist within the guest (its containers, its VPN).
            row["ips"] = addresses.flat(every.get(row["uuid"], {}), addresses.macs(tree))
    use = meter.read()
    for _, row in found:
        process = meter.processes.get(row["uuid"])
        row["uptime_seconds"] = process.uptime_seconds if process is not None else None
        row["cpu_percent"] = use.get(row["uuid"])


def _definitions(hypervisor: Hypervisor, domains: list[libvirt.virDomain]) -> list[xml.Element | None]:
    if not hypervisor.is_remote:
        # On this machine an answer is there sooner than another thread.
        return [_definition(domain) for domain in domains]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(_definition, domains))


def _definition(domain: libvirt.virDomain) -> xml.Element | None:
    try:
        return xml.parse(domain.XMLDesc(0), "domain")
    except libvirt.libvirtError:
        # It has gone meanwhile; the row tells what was true when it was listed.
        return None
