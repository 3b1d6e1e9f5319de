"""Every VM in five calls to libvirt, however many are off, and one more for each that runs.

Where VMs can have a start order, one more still for each that libvirt itself would not start.
"""

import os
from collections.abc import Sequence
from typing import Any

import libvirt

from kvmctl.connection import SESSION, SYSTEM, Hypervisor, connect, translated
from kvmctl.errors import KvmctlError, NotFound
from kvmctl.model.state import word

KIB = 1024
# What has VMs started in their order as the host boots (operations/hooks.py installs it).
BOOT_HOOK = "/etc/libvirt/hooks/daemon.d/kvmctl"


def listing(
    hypervisor: Hypervisor, patterns: Sequence[str] = (), *, active: bool = False, wide: bool = False
) -> list[dict[str, Any]]:
    """The VMs that ``patterns`` name (all without any), sorted by name; ``active``: only those not off.

    Each is ``{"name", "uuid", "id", "state", "vcpus", "memory_bytes", "autostart", "persistent"}``, and
    with ``wide`` also ``{"ips", "os", "uptime_seconds", "cpu_percent"}``. Raises NotFound where one of
    ``patterns`` means no VM.
    """
    with translated(hypervisor.uri):
        stats = _statistics(hypervisor, active)
        autostarting = _names(hypervisor, libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
        transient = _names(hypervisor, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
    autostarting |= _in_order(hypervisor, [domain for domain, _ in stats if domain.name() not in autostarting])
    found = []
    for domain, values in stats:
        name = domain.name()
        found.append((domain, base(domain, values, name in autostarting, name not in transient)))
    found.sort(key=lambda pair: pair[1]["name"])
    if patterns:
        found = _chosen(hypervisor, found, patterns)
    rows = [row for _, row in found]
    if wide:
        from kvmctl.operations import cpu_use

        # Before the rest is loaded: the measurement takes its time anyway.
        meter = cpu_use.Meter(hypervisor, [row["uuid"] for row in rows if row["id"] is not None])
        from kvmctl.operations import listing_wide

        listing_wide.widen(hypervisor, found, meter)
    return rows


def _statistics(hypervisor: Hypervisor, active: bool) -> list[tuple[libvirt.virDomain, dict[str, Any]]]:
    """Every VM (those not off, where ``active``) with its state; memory and vCPUs of those that are off, too.

    Of a VM that runs libvirt would ask its QEMU for those two, one after the other: base() gets them from
    domain.info(), which asks nobody.
    """
    conn = hypervisor.conn
    # NOWAIT: a VM that is busy (migrating, saving) must not hold up the list of all others.
    running = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    found = conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, running)
    if active:
        return list(found)
    wanted = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU
    off = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_INACTIVE
    every = {domain.name(): (domain, values) for domain, values in (*found, *conn.getAllDomainStats(wanted, off))}
    if _names(hypervisor, libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE) - every.keys():
        # Started between the two looks: not running yet at the first, not off any more at the second.
        late = conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, running)
        every |= {domain.name(): (domain, values) for domain, values in late}
    return list(every.values())


def _names(hypervisor: Hypervisor, flag: int) -> set[str]:
    return {domain.name() for domain in hypervisor.conn.listAllDomains(flag)}


def _in_order(hypervisor: Hypervisor, domains: list[libvirt.virDomain]) -> set[str]:
    """The names of those that kvmctl starts in their order as the host boots: libvirt itself knows nothing of it."""
    # Looked for first, and the rest imported late: most hosts have no such hook, and their lists cost nothing more.
    if not hypervisor.is_remote and not os.access(BOOT_HOOK, os.X_OK):
        return set()
    from kvmctl.operations import start_order

    if not start_order.in_force(hypervisor):
        return set()
    orders = start_order.of_many(hypervisor, domains)
    return {domain.name() for domain, order in zip(domains, orders, strict=True) if order is not None}


def base(domain: libvirt.virDomain, values: dict[str, Any], autostart: bool, persistent: bool) -> dict[str, Any]:
    """The keys that every list and ``info`` have, from a domain and its statistics."""
    number = domain.ID()
    vcpus = values.get("vcpu.current")
    memory = values.get("balloon.current")
    state = values.get("state.state")
    if vcpus is None or memory is None or state is None:
        # Not every driver has these among its statistics.
        state, memory, vcpus = _asked(domain, state, memory, vcpus)
    return {
        "name": domain.name(),
        "uuid": domain.UUIDString(),
        "id": number if number >= 0 else None,
        "state": word(state) if state is not None else "nostate",
        "vcpus": vcpus,
        "memory_bytes": memory * KIB if memory is not None else None,
        "autostart": autostart,
        "persistent": persistent,
    }


def _asked(
    domain: libvirt.virDomain, state: int | None, memory: int | None, vcpus: int | None
) -> tuple[int | None, int | None, int | None]:
    try:
        now, _, current, count, _ = domain.info()
    except libvirt.libvirtError:
        # It has gone meanwhile.
        return state, memory, vcpus
    return (
        now if state is None else state,
        current if memory is None else memory,
        count if vcpus is None else vcpus,
    )


def _chosen(
    hypervisor: Hypervisor, found: list[tuple[libvirt.virDomain, dict[str, Any]]], patterns: Sequence[str]
) -> list[tuple[libvirt.virDomain, dict[str, Any]]]:
    from fnmatch import fnmatchcase

    kept: dict[str, tuple[libvirt.virDomain, dict[str, Any]]] = {}
    for pattern in patterns:
        hits = [pair for pair in found if pattern in (pair[1]["name"], pair[1]["uuid"], str(pair[1]["id"]))]
        if not hits and any(c in pattern for c in "*?["):
            hits = [pair for pair in found if fnmatchcase(pair[1]["name"], pattern)]
        if not hits:
            raise NotFound(f"no VM matches {pattern[:100]!a} on {hypervisor.uri}")
        kept.update((row["uuid"], (domain, row)) for domain, row in hits)
    return list(kept.values())


def elsewhere(hypervisor: Hypervisor) -> str | None:
    """A sentence where this machine's other libvirt (system or session) has VMs though this one has none."""
    if hypervisor.is_remote or hypervisor.uri not in (SYSTEM, SESSION):
        return None
    other = SYSTEM if hypervisor.is_session else SESSION
    # Merely opening qemu:///session starts a daemon, which a list should do only for a reason.
    if other == SESSION and not _session_has_definitions():
        return None
    try:
        with connect(other, read_only=True) as there, translated(other):
            count = len(there.conn.listAllDomains(0))
    except KvmctlError:
        return None
    return f"{other} has {count} VM{'s' if count != 1 else ''}: kvmctl -c {other} list" if count else None


def _session_has_definitions() -> bool:
    # virQEMUDriverConfigNew: a session's definitions are in $XDG_CONFIG_HOME/libvirt/qemu.
    if os.geteuid() == 0:
        return False
    # Imported late: every list would pay for it.
    from pathlib import Path

    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    try:
        return any(Path(home, "libvirt", "qemu").glob("*.xml"))
    except OSError:
        return False
