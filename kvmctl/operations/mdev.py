"""The host's mediated devices: which there are, who has them, and what more could be made."""

from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, NotFound
from kvmctl.model import mdev, xml
from kvmctl.model.mdev import Mdev, MdevType
from kvmctl.model.names import harmless
from kvmctl.operations.pci_host import definitions
from kvmctl.preflight import mdev_sysfs


def look(hypervisor: Hypervisor) -> tuple[list[Mdev], list[MdevType]]:
    """Those that were made, and the kinds that can be, as libvirt lists them."""
    wanted = (
        libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
        | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV_TYPES
        | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
    )
    made: list[Mdev] = []
    types: list[MdevType] = []
    with translated(hypervisor.uri):
        listed = hypervisor.conn.listAllDevices(wanted)
    for node in listed:
        try:
            element = xml.parse(node.XMLDesc(0), "node device", "device")
        except libvirt.libvirtError:
            # It was removed since the list was made.
            continue
        found = mdev.from_node_device(element)
        if found is not None:
            made.append(found)
        types += mdev.types_of_node_device(element)
    return made, types


def listing(hypervisor: Hypervisor) -> list[dict[str, Any]]:
    """Rows of the host; see rows()."""
    return rows(*look(hypervisor), users(hypervisor))


def listing_of_tree(root: Path) -> list[dict[str, Any]]:
    """Rows of the host whose sys/ is below ``root``."""
    return rows(*mdev_sysfs.read(root), {})


def rows(made: list[Mdev], types: list[MdevType], used: dict[str, list[str]]) -> list[dict[str, Any]]:
    """``{uuid, type, name, parent, device_api, iommu_group, driver, available, used_by}``, what was made first.

    A kind that can be made has no ``uuid``, and ``available`` is how many more.
    """
    kinds = {(kind.parent, kind.type): kind for kind in types}
    found = []
    for device in sorted(made, key=lambda d: (d.parent or "", d.uuid)):
        kind = kinds.get((device.parent or "", device.type or ""))
        found.append(
            {
                "uuid": device.uuid,
                "type": _shown(device.type),
                "name": _shown(kind.name if kind is not None else None),
                "parent": device.parent,
                "device_api": kind.device_api if kind is not None else None,
                "iommu_group": device.iommu_group,
                "driver": device.driver,
                "available": None,
                "used_by": used.get(device.uuid, []),
            }
        )
    for kind in sorted(types, key=lambda k: (k.parent, k.type)):
        found.append(
            {
                "uuid": None,
                "type": _shown(kind.type),
                "name": _shown(kind.name),
                "parent": kind.parent,
                "device_api": kind.device_api,
                "iommu_group": None,
                "driver": None,
                "available": kind.available,
                "used_by": [],
            }
        )
    return found


def _shown(text: str | None) -> str | None:
    return harmless(text) if text is not None else None


def users(hypervisor: Hypervisor) -> dict[str, list[str]]:
    """By UUID the VMs that have it in a definition, running or saved."""
    found: dict[str, list[str]] = {}
    with translated(hypervisor.uri):
        domains = hypervisor.conn.listAllDomains(0)
    for domain in domains:
        try:
            trees, name = definitions(domain), domain.name()
        except libvirt.libvirtError:
            # It was removed since the list was made.
            continue
        devices = [e for tree in trees if tree is not None for e in tree.iterfind("devices/hostdev[@type='mdev']")]
        for uuid in {mdev.uuid_of(element) for element in devices} - {None}:
            assert uuid is not None
            found.setdefault(uuid, []).append(name)
    return found


def check(hypervisor: Hypervisor, uuid: str, vm: str) -> None:
    """Raise NotFound where the host has no such mediated device, Conflict where another VM than ``vm`` has it."""
    if uuid not in {device.uuid for device in look(hypervisor)[0]}:
        raise NotFound(
            f"the host has no mediated device {uuid}",
            "'kvmctl pci list --mdev' shows those there are and what can be made ('mdevctl start' makes one)",
        )
    others = [name for name in users(hypervisor).get(uuid, []) if name != vm]
    if others:
        raise Conflict(
            f"the mediated device {uuid} is in VM {harmless(others[0])}",
            f"kvmctl device detach {harmless(others[0])} mdev={uuid}",
        )
