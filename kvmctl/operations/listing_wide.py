"""The columns of ``list -o wide``, which cost more than the rest: addresses, OS, uptime, CPU use."""

import time
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import xml
from kvmctl.model.domain_os import os_name
from kvmctl.operations import addresses, processes

# How long apart the two looks at a VM's CPU time are: long enough for the kernel's accounting (ticks of
# 4 ms at the usual 250 Hz) to give a figure within a few percent.
SAMPLE_SECONDS = 0.25
# The same where the scheduler's own accounts are at hand, which are kept in ns.
FINE_SAMPLE_SECONDS = 0.1


def widen(
    hypervisor: Hypervisor,
    found: list[tuple[libvirt.virDomain, dict[str, Any]]],
    known: dict[str, list[str]] | None = None,
    *,
    sample: bool = True,
) -> None:
    """Add ``{"ips", "os", "uptime_seconds", "cpu_percent"}`` to each row.

    ``cpu_percent`` is of one of the host's CPUs, so a VM with two busy vCPUs has 200. All but ``os`` are
    None (``ips`` is empty) for a VM that is off; uptime is None on a hypervisor that is another machine.
    ``known`` are the addresses of a single VM where they were asked for already. Without ``sample`` nobody
    waits for two looks at the CPU time, and cpu_percent is None.
    """
    running = [row["uuid"] for _, row in found if row["id"] is not None]
    here = {} if hypervisor.is_remote else processes.find(running)
    first = processes.cpu_times(here) if sample else {}
    # The scheduler's accounts only where they are there for all of them: no two figures measured differently.
    fine = len(first) == len(running)
    if sample and running and not fine:
        first = cpu_times(hypervisor)
    began = time.monotonic()
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
    use: dict[str, float] = {}
    if first:
        time.sleep(max(0.0, (FINE_SAMPLE_SECONDS if fine else SAMPLE_SECONDS) - (time.monotonic() - began)))
        use = percent(first, processes.cpu_times(here) if fine else cpu_times(hypervisor))
    for _, row in found:
        process = here.get(row["uuid"])
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


def cpu_times(hypervisor: Hypervisor) -> dict[str, tuple[float, int]]:
    """``{uuid: (when in seconds, CPU time in ns)}`` of the active VMs."""
    with translated(hypervisor.uri):
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        stats = hypervisor.conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_CPU_TOTAL, flags)
    now = time.monotonic()
    return {d.UUIDString(): (now, values["cpu.time"]) for d, values in stats if "cpu.time" in values}


def percent(before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]]) -> dict[str, float]:
    """The use of one CPU in percent between two ``cpu_times()``, for VMs that are in both."""
    found = {}
    for uuid, (when, used) in after.items():
        if uuid in before and when > before[uuid][0]:
            share = (used - before[uuid][1]) / ((when - before[uuid][0]) * 1e9) * 100
            found[uuid] = round(max(0.0, share), 1)
    return found
