"""``host overcommit``: what guests were promised, what they use, and what the host has."""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model.state import ACTIVE, word
from kvmctl.model.units import human_size
from kvmctl.operations import cpu_use
from kvmctl.operations.host_info import HostMemory, memory
from kvmctl.preflight.host_root import Root

KIB = 1024
# More vCPUs a CPU than this and busy guests wait for one another so long that they feel it; what
# Red Hat's and SUSE's guides to KVM give as a limit for guests of several vCPUs is between 2 and 5.
MUCH_CPU = 4.0
# With less of its memory left the kernel starts to reclaim at the cost of whoever runs.
LITTLE_MEMORY = 0.05


@dataclass(frozen=True)
class Guest:
    """One guest. Sizes in bytes; what is not known, or does not apply to a guest that is off, is None.

    ``memory`` is what it was promised now (its balloon, when it runs), ``memory_max`` the most it may be
    given, ``ballooned`` what its balloon has taken back of that, ``resident`` the host memory its QEMU holds,
    ``used`` what the guest itself says it uses, ``spare`` what it says it could give. ``cpu_percent`` is of one CPU.
    """

    name: str
    uuid: str
    state: str
    vcpus: int
    memory_bytes: int
    memory_max_bytes: int
    ballooned_bytes: int | None = None
    resident_bytes: int | None = None
    used_bytes: int | None = None
    spare_bytes: int | None = None
    cpu_percent: float | None = None

    @property
    def active(self) -> bool:
        """Whether it holds memory now."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Ksm:
    """Merging of equal pages: on or not, and the bytes it saves; None where that cannot be seen."""

    on: bool | None
    saved_bytes: int | None


@dataclass(frozen=True)
class Overcommit:
    """Everything together: see as_dict()."""

    cpus: int
    ram: HostMemory
    ksm: Ksm
    host_cpu_percent: float | None
    guests: tuple[Guest, ...]

    def as_dict(self) -> dict[str, Any]:
        """The object that ``host overcommit`` prints. ``…_allocated`` count active guests, ``…_defined`` all."""
        active = [guest for guest in self.guests if guest.active]
        vcpus = sum(guest.vcpus for guest in active)
        promised = sum(guest.memory_bytes for guest in active)
        resident = [guest.resident_bytes for guest in active if guest.resident_bytes is not None]
        return {
            "vcpus_allocated": vcpus,
            "vcpus_defined": sum(guest.vcpus for guest in self.guests),
            "cpus": self.cpus,
            "cpu_ratio": _ratio(vcpus, self.cpus),
            "cpu_percent": self.host_cpu_percent,
            "memory_allocated_bytes": promised,
            "memory_defined_bytes": sum(guest.memory_bytes for guest in self.guests),
            "memory_bytes": self.ram.total,
            "memory_ratio": _ratio(promised, self.ram.total),
            "memory_resident_bytes": sum(resident),
            "memory_available_bytes": self.ram.available,
            "swap_bytes": self.ram.swap_total,
            "swap_used_bytes": self.ram.swap_used,
            "ksm": asdict(self.ksm),
            "warnings": warnings(self),
            "guests": [asdict(guest) for guest in self.guests],
        }


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 3) if whole else 0.0


def look(hypervisor: Hypervisor) -> Overcommit:
    """Look at all guests at once and at the host; takes cpu_use.SAMPLE_SECONDS, for the use of CPUs."""
    host_before = _host_cpu(hypervisor)
    before = cpu_use.times(hypervisor)
    time.sleep(cpu_use.SAMPLE_SECONDS)
    host_after = _host_cpu(hypervisor)
    use = cpu_use.percent(before, cpu_use.times(hypervisor))
    wanted = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
    with translated(hypervisor.uri):
        stats = hypervisor.conn.getAllDomainStats(wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
        cpus = int(hypervisor.conn.getInfo()[2])
        guests = [
            guest_of(domain.name(), domain.UUIDString(), values, use.get(domain.UUIDString()))
            for domain, values in stats
        ]
    return Overcommit(
        cpus,
        memory(hypervisor),
        _ksm(hypervisor),
        _busy(host_before, host_after),
        tuple(sorted(guests, key=lambda guest: guest.name)),
    )


def guest_of(name: str, uuid: str, values: dict[str, Any], cpu_percent: float | None) -> Guest:
    """One guest from its bulk statistics, whose sizes are KiB (virConnectGetAllDomainStats)."""

    def size(key: str) -> int | None:
        value = values.get(key)
        return None if value is None else int(value) * KIB

    state = word(int(values.get("state.state", 0)))
    most = size("balloon.maximum") or 0
    now = size("balloon.current") or most
    vcpus = int(values.get("vcpu.current", 0))
    if state not in ACTIVE:
        return Guest(name, uuid, state, vcpus, now, most)
    available, unused, usable = size("balloon.available"), size("balloon.unused"), size("balloon.usable")
    # Linux's MemAvailable, newer than "unused": its caches count as spare.
    spare = usable if usable is not None else unused
    return Guest(
        name=name,
        uuid=uuid,
        state=state,
        vcpus=vcpus,
        memory_bytes=now,
        memory_max_bytes=most,
        ballooned_bytes=most - now,
        resident_bytes=size("balloon.rss"),
        used_bytes=None if available is None or spare is None else max(0, available - spare),
        spare_bytes=spare,
        cpu_percent=cpu_percent,
    )


def _host_cpu(hypervisor: Hypervisor) -> dict[str, int]:
    with contextlib.suppress(libvirt.libvirtError):
        found: dict[str, int] = hypervisor.conn.getCPUStats(libvirt.VIR_NODE_CPU_STATS_ALL_CPUS)
        return found
    return {}


def _busy(before: dict[str, int], after: dict[str, int]) -> float | None:
    """The host's CPUs in percent of them all, between two readings."""
    passed = {name: after[name] - before[name] for name in after if name in before}
    total = sum(passed.values())
    if total <= 0:
        return None
    return round(100 * (total - passed.get("idle", 0) - passed.get("iowait", 0)) / total, 1)


def _ksm(hypervisor: Hypervisor) -> Ksm:
    if not hypervisor.is_remote:
        root = Root()
        run, sharing = root.number("sys/kernel/mm/ksm/run"), root.number("sys/kernel/mm/ksm/pages_sharing")
        return Ksm(None if run is None else run == 1, None if sharing is None else sharing * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(libvirt.libvirtError):
        values = hypervisor.conn.getMemoryParameters()
        sharing = values.get("shm_pages_sharing")
        # libvirt does not tell whether it is on, nor the host's page size (4 KiB on nearly all).
        return Ksm(True if sharing else None, None if sharing is None else sharing * 4096)
    return Ksm(None, None)


def warnings(found: Overcommit) -> list[str]:
    """What may go wrong, in plain words; empty where nothing is overcommitted."""
    active = [guest for guest in found.guests if guest.active]
    vcpus = sum(guest.vcpus for guest in active)
    said = []
    if found.cpus and vcpus / found.cpus > MUCH_CPU:
        said.append(f"{vcpus} vCPUs share {found.cpus} CPUs: when guests are busy together they wait for one another")
    return said + _memory_warnings(found.ram, sum(guest.memory_bytes for guest in active), active)


def _memory_warnings(ram: HostMemory, promised: int, active: Sequence[Guest]) -> list[str]:
    said = []
    if promised > ram.total:
        missing = promised - ram.total
        head = f"running guests were promised {human_size(promised)} and the host has {human_size(ram.total)}: "
        if ram.swap_total is None:
            said.append(f"{head}if all of them used it, the host would swap or kill guests (OOM)")
        elif missing <= ram.swap_total:
            said.append(
                f"{head}if all of them used it, {human_size(missing)} would go to swap and guests become very slow"
            )
        else:
            said.append(
                f"{head}if all of them used it, {human_size(missing - ram.swap_total)} would be missing even with "
                f"all swap ({human_size(ram.swap_total)}), and the kernel would kill guests (OOM)"
            )
    if ram.available is not None and ram.total and ram.available < ram.total * LITTLE_MEMORY:
        said.append(
            f"only {human_size(ram.available)} of the host's memory is available now: it is about to swap or to kill "
            "guests (OOM); stop guests or see --reclaim"
        )
    if ram.swap_used and ram.swap_used > ram.total * LITTLE_MEMORY and active:
        said.append(f"{human_size(ram.swap_used)} is swapped out already: guests whose memory that is are slow")
    return said
