"""All there is to know of one VM."""

import contextlib
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import domain_view, xml
from kvmctl.model.domain_view import DomainView
from kvmctl.model.snapshot import shown
from kvmctl.operations import addresses, listing, listing_wide, start_order
from kvmctl.operations.cpu_use import Meter
from kvmctl.preflight import dependents


def info(hypervisor: Hypervisor, name: str, *, sample: bool = True) -> dict[str, Any]:
    """The object that ``kvmctl info`` prints: what the wide list has, and the rest of the contract's keys.

    Without ``sample`` the CPU use is not measured (that takes a quarter of a second), and None.

    Raises NotFound. What a part cannot tell (a disk whose file is gone, a NIC without an address) is None
    or empty.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        seen = domain_view.read(domain.XMLDesc(0))
        stats = domain.connect().domainListGetStats(
            [domain],
            libvirt.VIR_DOMAIN_STATS_STATE
            | libvirt.VIR_DOMAIN_STATS_BALLOON
            | libvirt.VIR_DOMAIN_STATS_VCPU
            | libvirt.VIR_DOMAIN_STATS_BLOCK,
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
        values: dict[str, Any] = stats[0][1] if stats else {}
        autostart, order = start_order.starts_with_host(hypervisor, domain), start_order.of(domain)
        row = listing.base(domain, values, autostart, persistent=bool(domain.isPersistent()))
        managed_save = bool(domain.isPersistent() and domain.hasManagedSaveImage(0))
    known = addresses.by_mac(domain) if row["id"] is not None else {}
    meter = Meter(hypervisor, [row["uuid"]] if row["id"] is not None else [], sample=sample)
    listing_wide.widen(hypervisor, [(domain, row)], meter, known)
    row.update(
        {
            "title": seen.title,
            "description": seen.description,
            "accel": seen.accel,
            "arch": seen.arch,
            "machine": seen.machine,
            "firmware": seen.firmware,
            "cpu": seen.cpu,
            "max_vcpus": seen.max_vcpus,
            "max_memory_bytes": seen.max_memory_bytes,
            "disks": _disks(hypervisor, domain, seen, values),
            "nics": _nics(hypervisor, seen, known),
            "pci": [_pci(hypervisor, address) for address in seen.pci],
            "graphics": [graphics._asdict() for graphics in seen.graphics],
            "snapshots": _snapshots(domain),
            "autostart_order": order.order if order is not None else None,
            "autostart_delay_seconds": order.delay if order is not None else None,
            "protected": seen.kvmctl.protected,
            "managed_save": managed_save,
            "agent": seen.agent_channel,
            "image": seen.kvmctl.image,
            "user": seen.kvmctl.user,
            "created": seen.kvmctl.created,
            "ports": [forward._asdict() for forward in seen.kvmctl.forwards],
        }
    )
    return row


def _disks(
    hypervisor: Hypervisor, domain: libvirt.virDomain, seen: DomainView, values: dict[str, Any]
) -> list[dict[str, Any]]:
    sizes = {
        values.get(f"block.{index}.name"): (
            values.get(f"block.{index}.capacity"),
            values.get(f"block.{index}.allocation"),
        )
        for index in range(int(values.get("block.count", 0)))
        # With backing files listed apart, only the top layer has no index of its own.
        if f"block.{index}.backingIndex" not in values
    }
    rows = []
    for disk in seen.disks:
        capacity, allocation = sizes.get(disk.target, (None, None))
        if capacity is None and disk.source is not None:
            capacity, allocation = _block_info(domain, disk.target)
        rows.append(
            {
                **disk._asdict(),
                "capacity_bytes": capacity,
                "allocation_bytes": allocation,
                "backing_chain": _chain(hypervisor, disk.source, disk.format),
            }
        )
    return rows


def _chain(hypervisor: Hypervisor, path: str | None, format_: str | None) -> list[str]:
    """The files that a disk stands on, the nearest first; see dependents.walked() for a circle."""
    if path is None or not path.startswith("/"):
        return []
    try:
        return dependents.walked(hypervisor, path, format_)[1:]
    except libvirt.libvirtError:
        return []


def _block_info(domain: libvirt.virDomain, target: str) -> tuple[int | None, int | None]:
    try:
        capacity, allocation, _physical = domain.blockInfo(target, 0)
    except libvirt.libvirtError:
        # The file is gone, or this libvirt does not look at a disk of that kind while the guest is off.
        return None, None
    return capacity, allocation


def _nics(hypervisor: Hypervisor, seen: DomainView, known: dict[str, list[str]]) -> list[dict[str, Any]]:
    modes: dict[str, str] = {}
    rows = []
    for nic in seen.nics:
        row = {**nic._asdict(), "ips": known.get((nic.mac or "").lower(), [])}
        if nic.mode == "network" and nic.source is not None:
            row["mode"] = modes.setdefault(nic.source, _network_mode(hypervisor, nic.source))
        rows.append(row)
    return rows


def _network_mode(hypervisor: Hypervisor, name: str) -> str:
    """``nat`` where the libvirt network ``name`` is one, else ``network``, as ``--net`` has it."""
    try:
        tree = xml.parse(hypervisor.conn.networkLookupByName(name).XMLDesc(0), "network")
    except libvirt.libvirtError:
        return "network"
    forward = tree.find("forward")
    # formatnetwork: a <forward> without a mode is nat.
    return "nat" if forward is not None and forward.get("mode", "nat") == "nat" else "network"


def _pci(hypervisor: Hypervisor, address: str) -> dict[str, Any]:
    row: dict[str, Any] = {"address": address, "model": None, "iommu_group": None}
    with contextlib.suppress(libvirt.libvirtError):
        name = "pci_" + address.replace(":", "_").replace(".", "_")
        tree = xml.parse(hypervisor.conn.nodeDeviceLookupByName(name).XMLDesc(0), "device")
        vendor, product = tree.findtext("capability/vendor"), tree.findtext("capability/product")
        row["model"] = " ".join(filter(None, (vendor, product))) or None
        group = tree.find("capability/iommuGroup")
        number = group.get("number", "") if group is not None else ""
        row["iommu_group"] = int(number) if number.isdigit() else None
    return row


def _snapshots(domain: libvirt.virDomain) -> list[str]:
    try:
        return sorted({shown(snapshot.getName()) or "" for snapshot in domain.listAllSnapshots(0)})
    except libvirt.libvirtError:
        return []
