"""The PCI devices of the hypervisor's host: what they are, who uses them, which can be passed on."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import xml
from kvmctl.model.host_pci import HostPci, HostUse, from_node_device
from kvmctl.model.pci import PciAddress, hostdevs
from kvmctl.preflight import pci_sysfs
from kvmctl.preflight.pci import Judge, User


def rows(judge: Judge) -> list[dict[str, Any]]:
    """Every device as ``kvmctl pci list`` prints it; addresses are texts, ``class`` and names None if unknown."""
    return [row(device, judge) for device in judge.devices.values()]


def row(device: HostPci, judge: Judge) -> dict[str, Any]:
    """One device of rows()."""
    verdict = judge.verdict(device)
    return {
        "address": str(device.address),
        "vendor": device.vendor,
        "product": device.product,
        "class": device.class_name,
        "driver": device.driver,
        "iommu_group": device.iommu_group,
        "group_members": [str(member.address) for member in judge.members(device)],
        "assignable": verdict.assignable,
        "reason": verdict.reason,
        "used_by": [user.name for user in judge.users.get(device.address, ())],
        "vendor_id": f"{device.vendor_id:04x}",
        "product_id": f"{device.product_id:04x}",
        "class_id": f"{device.class_code:04x}",
        "with_group": verdict.with_group,
        "physical_function": str(device.physical_function) if device.physical_function else None,
        "virtual_functions": [str(address) for address in device.virtual_functions],
        "max_virtual_functions": device.max_virtual_functions,
        "numa_node": device.numa_node,
        "interfaces": list(device.interfaces),
        "disks": list(device.disks),
        "host_uses": [use.text for use in device.uses],
    }


def judge_tree(root: Path) -> Judge:
    """The host whose /proc and /sys are below ``root``; who uses a device is not to be seen there."""
    return Judge(pci_sysfs.read(root))


def judge_host(hypervisor: Hypervisor) -> Judge:
    """The hypervisor's host: this machine's own /sys where it is this one, else libvirt's node devices."""
    users = _users(hypervisor)
    if not hypervisor.is_remote:
        return Judge(pci_sysfs.read(Path("/")), users)
    return Judge(_over_libvirt(hypervisor), users)


def _users(hypervisor: Hypervisor) -> dict[PciAddress, list[User]]:
    users: dict[PciAddress, list[User]] = {}
    with translated(hypervisor.uri):
        domains = hypervisor.conn.listAllDomains(0)
    for domain in domains:
        try:
            live, saved = definitions(domain)
            name = domain.name()
        except libvirt.libvirtError:
            # It was deleted since the list was made.
            continue
        running = set(hostdevs(live)) if live is not None else set()
        for address in sorted(running | (set(hostdevs(saved)) if saved is not None else set())):
            users.setdefault(address, []).append(User(name, address in running))
    return users


def definitions(domain: libvirt.virDomain) -> tuple[xml.Element | None, xml.Element | None]:
    """The live and the saved definition, each None where there is none."""
    live = xml.parse(domain.XMLDesc(0), "domain", "domain") if domain.isActive() else None
    saved = None
    if domain.isPersistent():
        saved = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "domain", "domain")
    return live, saved


def _over_libvirt(hypervisor: Hypervisor) -> list[HostPci]:
    """What libvirt's node devices tell. Mounts and routes they do not tell, so those uses are ``unseen``."""
    found: dict[PciAddress, HostPci] = {}
    children: list[tuple[PciAddress, str, str]] = []
    for element in _node_devices(hypervisor):
        device = from_node_device(element)
        if device is not None:
            found[device.address] = device
            continue
        address = _address_in_path(element.findtext("path") or "")
        if address is None:
            continue
        interface = element.findtext("capability[@type='net']/interface")
        disk = element.findtext("capability[@type='storage']/block")
        if interface:
            up = element.find("capability[@type='net']/link[@state='up']") is not None
            children.append((address, "up" if up else "down", interface))
        elif disk:
            children.append((address, "disk", disk.removeprefix("/dev/")))
    for address, kind, name in children:
        if address in found:
            found[address] = _with_child(found[address], kind, name)
    return pci_sysfs.class_names(sorted(found.values(), key=lambda device: device.address))


def _with_child(device: HostPci, kind: str, name: str) -> HostPci:
    if kind == "disk":
        text = f"the host has its disk {name}; whether it runs from that cannot be seen over this connection"
        return dataclasses.replace(device, disks=(*device.disks, name), uses=(*device.uses, HostUse("unseen", text)))
    uses = device.uses
    if kind == "up":
        text = (
            f"its interface {name} is up; whether the host's own traffic needs it cannot be seen over this connection"
        )
        uses = (*uses, HostUse("unseen", text))
    return dataclasses.replace(device, interfaces=(*device.interfaces, name), uses=uses)


def _node_devices(hypervisor: Hypervisor) -> Iterator[xml.Element]:
    wanted = (
        libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
        | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET
        | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_STORAGE
    )
    with translated(hypervisor.uri):
        devices = hypervisor.conn.listAllDevices(wanted)
    for device in devices:
        try:
            text = device.XMLDesc(0)
        except libvirt.libvirtError:
            # It was unplugged since the list was made.
            continue
        yield xml.parse(text, "node device", "device")


def _address_in_path(path: str) -> PciAddress | None:
    for part in reversed(path.split("/")):
        if part.count(":") == 2 and "." in part:
            return PciAddress.parse(part)
    return None
