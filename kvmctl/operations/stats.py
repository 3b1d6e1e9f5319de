"""What running VMs use: CPU, memory, disks, network, over a short while."""

import time
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model.state import word

KIB = 1024
_WANTED = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
# Key of a row: (group of libvirt's statistics, field summed over its devices).
_SUMS = {
    "disk_read_bytes": ("block", "rd.bytes"),
    "disk_written_bytes": ("block", "wr.bytes"),
    "net_received_bytes": ("net", "rx.bytes"),
    "net_sent_bytes": ("net", "tx.bytes"),
}
Sample = tuple[float, dict[str, Any]]


def sample(hypervisor: Hypervisor) -> dict[str, Sample]:
    """``{uuid: (when, statistics with name and uuid)}`` of all active VMs, in one call."""
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    with translated(hypervisor.uri):
        found = hypervisor.conn.getAllDomainStats(_WANTED, flags)
    now = time.monotonic()
    return {
        domain.UUIDString(): (now, {**values, "name": domain.name(), "uuid": domain.UUIDString()})
        for domain, values in found
    }


def rows(before: dict[str, Sample], after: dict[str, Sample], names: list[str] | None = None) -> list[dict[str, Any]]:
    """One object a VM, sorted by name; ``names`` are names or UUIDs, None is all.

    ``{"name", "uuid", "state", "vcpus", "cpu_percent", "memory_bytes", "memory_used_bytes", "disk_read_bytes",
    "disk_written_bytes", "net_received_bytes", "net_sent_bytes"}`` and for the last four
    ``…_per_second``. CPU is of one of the host's; memory_used_bytes is what the guest says it uses, None
    where it does not tell; a rate is None for a VM that has just started.
    """
    chosen = [
        _row(before.get(uuid), found)
        for uuid, found in after.items()
        if names is None or found[1]["name"] in names or uuid in names
    ]
    return sorted(chosen, key=lambda row: str(row["name"]))


def _row(before: Sample | None, after: Sample) -> dict[str, Any]:
    now, values = after
    memory = values.get("balloon.current")
    available, usable = values.get("balloon.available"), values.get("balloon.usable")
    row: dict[str, Any] = {
        "name": values["name"],
        "uuid": values["uuid"],
        "state": word(values.get("state.state", 0)),
        "vcpus": values.get("vcpu.current"),
        "cpu_percent": None,
        "memory_bytes": memory * KIB if memory is not None else None,
        "memory_used_bytes": (available - usable) * KIB if available is not None and usable is not None else None,
    }
    sums = {key: _sum(values, *place) for key, place in _SUMS.items()}
    row |= sums
    row |= {f"{key}_per_second": None for key in _SUMS}
    if before is None or now <= before[0]:
        return row
    seconds = now - before[0]
    if "cpu.time" in values and "cpu.time" in before[1]:
        row["cpu_percent"] = round(max(0, values["cpu.time"] - before[1]["cpu.time"]) / (seconds * 1e7), 1)
    for key, place in _SUMS.items():
        was = _sum(before[1], *place)
        row[f"{key}_per_second"] = round(max(0, sums[key] - was) / seconds)
    return row


def _sum(values: dict[str, Any], group: str, field: str) -> int:
    return sum(int(values.get(f"{group}.{index}.{field}", 0)) for index in range(int(values.get(f"{group}.count", 0))))
