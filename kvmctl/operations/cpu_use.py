"""How much of the host's CPUs running VMs use: two looks at their CPU times, a moment apart.

Light to import: a wide list takes the first look before it loads what it does meanwhile.
"""

import time
from collections.abc import Collection

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.operations import processes

# How long apart the two looks at a VM's CPU time are: long enough for the kernel's accounting (ticks of
# 4 ms at the usual 250 Hz) to give a figure within a few percent.
SAMPLE_SECONDS = 0.25
# The same where the scheduler's own accounts are at hand, which are kept in ns.
FINE_SAMPLE_SECONDS = 0.1

Times = dict[str, tuple[float, int]]


class Meter:
    """A measurement under way, of the VMs ``running`` (UUIDs). Making it takes the first look.

    ``processes`` are their QEMUs, as far as they are seen from here. Without ``sample`` nothing is measured.
    """

    def __init__(self, hypervisor: Hypervisor, running: Collection[str], *, sample: bool = True) -> None:
        self.processes = {} if hypervisor.is_remote else processes.find(running)
        self._hypervisor = hypervisor
        self._first: Times = processes.cpu_times(self.processes) if sample else {}
        # The scheduler's accounts only where they are there for all: no two figures are measured differently.
        self._fine = len(self._first) == len(running)
        if sample and running and not self._fine:
            self._first = times(hypervisor)
        self._began = time.monotonic()

    def read(self) -> dict[str, float]:
        """``{uuid: percent of one CPU}``, when the time for the second look has come."""
        if not self._first:
            return {}
        span = FINE_SAMPLE_SECONDS if self._fine else SAMPLE_SECONDS
        time.sleep(max(0.0, span - (time.monotonic() - self._began)))
        return percent(self._first, processes.cpu_times(self.processes) if self._fine else times(self._hypervisor))


def times(hypervisor: Hypervisor) -> Times:
    """``{uuid: (when in seconds, CPU time in ns)}`` of the active VMs, as libvirt tells."""
    with translated(hypervisor.uri):
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        stats = hypervisor.conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_CPU_TOTAL, flags)
    now = time.monotonic()
    return {d.UUIDString(): (now, values["cpu.time"]) for d, values in stats if "cpu.time" in values}


def percent(before: Times, after: Times) -> dict[str, float]:
    """The use of one CPU in percent between two looks, for VMs that are in both."""
    found = {}
    for uuid, (when, used) in after.items():
        if uuid in before and when > before[uuid][0]:
            share = (used - before[uuid][1]) / ((when - before[uuid][0]) * 1e9) * 100
            found[uuid] = round(max(0.0, share), 1)
    return found
