"""``host info``: the machine behind the connection and what runs on it."""

import contextlib
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import capabilities, xml
from kvmctl.operations.version import dotted
from kvmctl.preflight import host_cpu
from kvmctl.preflight.accel import choose_accel
from kvmctl.preflight.host_root import Root


@dataclass(frozen=True)
class HostMemory:
    """The host's memory in bytes. ``available`` is what can be had without swapping; ``swap_…`` are None remotely."""

    total: int
    free: int | None
    available: int | None
    swap_total: int | None
    swap_used: int | None


def memory(hypervisor: Hypervisor) -> HostMemory:
    """The memory of the machine behind ``hypervisor``: from /proc/meminfo here, through libvirt elsewhere."""
    local = {} if hypervisor.is_remote else _meminfo(Root().text("proc/meminfo") or "")
    if "MemTotal" in local:
        swap, swap_free = local.get("SwapTotal"), local.get("SwapFree")
        return HostMemory(
            total=local["MemTotal"],
            free=local.get("MemFree"),
            available=local.get("MemAvailable"),
            swap_total=swap,
            swap_used=None if swap is None or swap_free is None else swap - swap_free,
        )
    with translated(hypervisor.uri):
        # getInfo() gives the size of the NUMA cells in MiB; the statistics, in KiB, are finer where they exist.
        total = int(hypervisor.conn.getInfo()[1]) * 1024 * 1024
    values: dict[str, int] = {}
    with contextlib.suppress(libvirt.libvirtError):
        values = hypervisor.conn.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    kib = {name: number * 1024 for name, number in values.items()}
    free = kib.get("free")
    # What the kernel keeps of files it gives back when it must; libvirt does not tell its own estimate.
    available = None if free is None else free + kib.get("buffers", 0) + kib.get("cached", 0)
    return HostMemory(kib.get("total", total), free, available, None, None)


def _meminfo(text: str) -> dict[str, int]:
    """``/proc/meminfo`` in bytes; its "kB" are KiB (Linux's Documentation/filesystems/proc.rst)."""
    found = {}
    for line in text.splitlines():
        name, _colon, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def info(hypervisor: Hypervisor) -> dict[str, Any]:
    """One object: who and what the host is, what it has, which guests, networks and pools are on it."""
    conn = hypervisor.conn
    ram = memory(hypervisor)
    with translated(hypervisor.uri):
        found = capabilities.read(conn.getCapabilities())
        _arch, _mib, cpus, mhz, nodes, sockets, cores, threads = conn.getInfo()
        here = None if hypervisor.is_remote else host_cpu.parse(host_cpu.read_text(str(host_cpu.LOCAL)))
        return {
            "hostname": conn.getHostname(),
            "uri": hypervisor.uri,
            "libvirt": dotted(conn.getLibVersion()),
            "hypervisor": conn.getType(),
            "hypervisor_version": dotted(conn.getVersion()),
            "arch": found.host_arch,
            "accel": _accel(hypervisor),
            "cpu_vendor": here.vendor if here and here.vendor else found.cpu_vendor,
            "cpu_model": here.model if here and here.model else found.cpu_model,
            "cpus": cpus,
            "cpu_mhz": mhz or None,
            "numa_nodes": nodes,
            "sockets": sockets * nodes,
            "cores_per_socket": cores,
            "threads_per_core": threads,
            "memory_bytes": ram.total,
            "memory_free_bytes": ram.free,
            "memory_available_bytes": ram.available,
            "architectures": [guest.arch for guest in found.guests],
            "guests": conn.numOfDomains() + conn.numOfDefinedDomains(),
            "guests_running": conn.numOfDomains(),
            "networks": _networks(conn),
            "pools": _pools(conn),
        }


def _accel(hypervisor: Hypervisor) -> str | None:
    try:
        return choose_accel(hypervisor).accel
    except KvmctlError:
        return None


def _networks(conn: libvirt.virConnect) -> list[dict[str, Any]]:
    try:
        found = conn.listAllNetworks(0)
    except libvirt.libvirtError:
        # Without a network driver (a session of some builds) there are none.
        return []
    rows = []
    for network in found:
        with contextlib.suppress(libvirt.libvirtError):
            bridge = xml.parse(network.XMLDesc(0), "network").find("bridge")
            rows.append(
                {
                    "name": network.name(),
                    "active": bool(network.isActive()),
                    "bridge": None if bridge is None else bridge.get("name"),
                }
            )
    return sorted(rows, key=lambda row: str(row["name"]))


def _pools(conn: libvirt.virConnect) -> list[dict[str, Any]]:
    try:
        found = conn.listAllStoragePools(0)
    except libvirt.libvirtError:
        return []
    rows = []
    for pool in found:
        with contextlib.suppress(libvirt.libvirtError):
            active = bool(pool.isActive())
            _state, capacity, _allocation, available = pool.info()
            rows.append(
                {
                    "name": pool.name(),
                    "active": active,
                    "path": xml.parse(pool.XMLDesc(0), "storage pool").findtext("target/path"),
                    # libvirt reports zeros for a pool that is not started.
                    "capacity_bytes": capacity if active else None,
                    "available_bytes": available if active else None,
                }
            )
    return sorted(rows, key=lambda row: str(row["name"]))
