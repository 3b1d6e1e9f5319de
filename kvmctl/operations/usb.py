"""The host's USB devices: list them, pass them to a VM, take them back."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, TimedOut
from kvmctl.model import usb, xml
from kvmctl.model.names import harmless
from kvmctl.model.usb import UsbDevice, UsbSelector
from kvmctl.operations.affect import Affect, affect
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.pci_host import definitions

# The Linux Foundation's vendor id: the root hubs that the kernel itself is.
_LINUX = 0x1D6B
# bDeviceClass of a hub (USB 2.0, 11.23.1).
_HUB = "09"


@dataclass(frozen=True)
class Host:
    """The devices there are, and by device the VMs that have it: (name, whether it runs with it)."""

    devices: tuple[UsbDevice, ...]
    users: dict[UsbDevice, tuple[tuple[str, bool], ...]]
    local: bool

    def reason(self, device: UsbDevice) -> str | None:
        """Why ``device`` cannot be passed on now; None where it can."""
        if device.vendor_id == _LINUX or (self.local and _attribute(device, "bDeviceClass") == _HUB):
            return "a hub: it carries other devices"
        running = [name for name, runs in self.users[device] if runs]
        if running:
            return f"in use by VM {running[0]}"
        mounted = _mounted(device) if self.local else None
        return f"the host has {mounted} mounted from it" if mounted else None


def look(hypervisor: Hypervisor) -> Host:
    """The host's devices as libvirt lists them."""
    with translated(hypervisor.uri):
        listed = hypervisor.conn.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV)
        domains = hypervisor.conn.listAllDomains(0)
    found = []
    for node in listed:
        try:
            device = usb.from_node_device(xml.parse(node.XMLDesc(0), "node device", "device"))
        except libvirt.libvirtError:
            # It was pulled out since the list was made.
            continue
        if device is not None:
            found.append(device)
    users: dict[UsbDevice, tuple[tuple[str, bool], ...]] = dict.fromkeys(found, ())
    for domain in domains:
        try:
            live, saved = definitions(domain)
            name = domain.name()
        except libvirt.libvirtError:
            continue
        for device in found:
            runs = any(usb.is_of(element, device) for element in usb.hostdevs(live))
            if runs or any(usb.is_of(element, device) for element in usb.hostdevs(saved)):
                users[device] = (*users[device], (name, runs))
    return Host(tuple(sorted(found, key=lambda d: (d.bus, d.device))), users, not hypervisor.is_remote)


def listing(hypervisor: Hypervisor) -> list[dict[str, Any]]:
    """``{address, vendor, product, vendor_id, product_id, driver, assignable, reason, used_by}`` of each device."""
    host = look(hypervisor)
    return [
        {
            "address": device.place,
            "vendor": harmless(device.vendor) if device.vendor else None,
            "product": harmless(device.product) if device.product else None,
            "vendor_id": f"{device.vendor_id:04x}",
            "product_id": f"{device.product_id:04x}",
            "driver": device.driver,
            "assignable": host.reason(device) is None,
            "reason": host.reason(device),
            "used_by": [name for name, _ in host.users[device]],
        }
        for device in host.devices
    ]


@dataclass(frozen=True)
class Plan:
    """``element`` goes into, or out of, the definitions in ``affect``; None where nothing is to do."""

    domain: libvirt.virDomain
    name: str
    device: str
    ids: str
    live: str | None
    saved: str | None
    affect: Affect

    def row(self) -> dict[str, Any]:
        """``{"vm", "device", "ids", "changed", "live", "config"}``."""
        return {
            "vm": self.name,
            "device": self.device,
            "ids": self.ids,
            "changed": self.live is not None or self.saved is not None,
            "live": self.affect.live,
            "config": self.affect.config,
        }

    def xml(self) -> str:
        """The element, once."""
        return self.live or self.saved or ""


def plan_attach(
    hypervisor: Hypervisor, name: str, selector: UsbSelector, *, live: bool = False, config: bool = False
) -> Plan:
    """Look at the VM and the device. Raises NotFound, Conflict (another VM has it), Refused (a hub, mounted)."""
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    host = look(hypervisor)
    fitting = [device for device in host.devices if device.chosen_by(selector)]
    if not fitting:
        raise NotFound(f"the host has no USB device {selector.text}", "'kvmctl usb list' shows those there are")
    own = [device for device in fitting if any(user == shown for user, _ in host.users[device])]
    free = [device for device in fitting if not host.users[device]]
    if not own and not free:
        user = host.users[fitting[0]][0][0]
        raise Conflict(f"{fitting[0].title} is in VM {user} already", f"kvmctl usb detach {user} {fitting[0].ids}")
    device = (own or free)[0]
    why = None if own else host.reason(device)
    if why is not None:
        raise Refused(f"{device.title} cannot be passed to a VM: {why}", "'kvmctl usb list' shows which can")
    if halves.live and live_xml is not None and not _has_controller(live_xml):
        raise Refused(f"{shown} runs without a USB controller", "--config adds the device for the next start")
    alike = sum(1 for other in host.devices if other.ids == device.ids) > 1
    element = xml.raw(usb.hostdev_element(device, alike))

    def missing(tree: xml.Element | None, on: bool) -> str | None:
        if not on or any(usb.is_of(there, device) for there in usb.hostdevs(tree)):
            return None
        return element

    return Plan(
        domain,
        shown,
        device.place,
        device.ids,
        missing(live_xml, halves.live),
        missing(saved_xml, halves.config),
        halves,
    )


def _has_controller(domain: xml.Element) -> bool:
    return any(c.get("model") != "none" for c in domain.iterfind("devices/controller[@type='usb']"))


def run_attach(hypervisor: Hypervisor, plan: Plan) -> dict[str, Any]:
    """Pass it on, in both definitions or none, and look that it is there."""
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if plan.live else 0
    flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if plan.saved else 0
    if flags:
        kept = definition_kept(plan.domain, f"usb attach {plan.name} {plan.device}")
        with translated(hypervisor.uri), kept:
            plan.domain.attachDeviceFlags(plan.xml(), flags)
            live, _saved = definitions(plan.domain)
        if plan.live and not any(_same(element, plan) for element in usb.hostdevs(live)):
            raise KvmctlError(f"{plan.name} does not have {plan.device} though libvirt reported no error")
    return plan.row()


def _same(element: xml.Element, plan: Plan) -> bool:
    vendor, product = element.find("source/vendor"), element.find("source/product")
    if vendor is None or product is None:
        return False
    return f"{vendor.get('id', '')[2:]}:{product.get('id', '')[2:]}" == plan.ids


def plan_detach(
    hypervisor: Hypervisor, name: str, selector: UsbSelector, *, live: bool = False, config: bool = False
) -> Plan:
    """Find the device in the VM's definitions; it need not be plugged into the host any more. Raises NotFound."""
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    host = look(hypervisor)
    meant = [device for device in host.devices if device.chosen_by(selector)]
    if selector.ids is not None:
        meant.append(UsbDevice(-1, -1, *selector.ids))

    def there(tree: xml.Element | None, on: bool) -> str | None:
        hits = (e for e in usb.hostdevs(tree) if on and any(usb.is_of(e, device) for device in meant))
        return next((xml.raw(element).strip() for element in hits), None)

    in_live, in_saved = there(live_xml, halves.live), there(saved_xml, halves.config)
    if in_live is None and in_saved is None:
        raise NotFound(f"{shown} has no USB device {selector.text} of the host", f"see 'kvmctl dumpxml {shown}'")
    device = meant[0]
    return Plan(domain, shown, device.place if device.bus >= 0 else device.ids, device.ids, in_live, in_saved, halves)


def run_detach(hypervisor: Hypervisor, plan: Plan, timeout: float) -> dict[str, Any]:
    """Take it out; the saved definition follows when the running guest is rid of it. Raises TimedOut."""
    with translated(hypervisor.uri), definition_kept(plan.domain, f"usb detach {plan.name} {plan.device}"):
        if plan.live is not None:
            count = len(usb.hostdevs(definitions(plan.domain)[0]))
            plan.domain.detachDeviceFlags(plan.live, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            end = time.monotonic() + timeout
            while len(usb.hostdevs(definitions(plan.domain)[0])) >= count:
                if time.monotonic() > end:
                    raise TimedOut(f"{plan.name} has not let go of {plan.device} in {timeout:.0f} s")
                time.sleep(0.1)
        if plan.saved is not None:
            plan.domain.detachDeviceFlags(plan.saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    return plan.row()


def _attribute(device: UsbDevice, name: str) -> str | None:
    try:
        return (Path(device.path) / name).read_text(encoding="ascii").strip() if device.path else None
    except (OSError, UnicodeDecodeError):
        return None


def _mounted(device: UsbDevice) -> str | None:
    """Where the host has a file system of this device mounted."""
    if not device.path:
        return None
    try:
        lines = Path("/proc/1/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        source, where, *_ = [*line.split(), "", ""]
        if not source.startswith("/dev/"):
            continue
        block = Path("/sys/class/block") / Path(source).name
        if str(block.resolve()).startswith(f"{device.path}/"):
            return where
    return None
