"""A VM's devices beside disks and cards: list them, plug them in, pull them out."""

import time
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, TimedOut
from kvmctl.model import extras, xml
from kvmctl.model.extras import Attached, ExtraDevice
from kvmctl.model.names import harmless
from kvmctl.operations import mdev
from kvmctl.operations.affect import Affect, affect
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.pci_host import definitions
from kvmctl.operations.undo import Undo

LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
# How libvirt says that a kind of device, or this one in this machine, is only there from the start.
_ONLY_FROM_START = (
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_NO_SUPPORT,
)


def listing(hypervisor: Hypervisor, name: str) -> list[dict[str, Any]]:
    """``{name, kind, detail, live, saved}`` of each, those of the running VM first.

    ``detail`` is what tells it from others of its kind; ``live`` and ``saved`` in which definition it is.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        live_xml, saved_xml = definitions(domain)
    live, saved = extras.attached(live_xml), extras.attached(saved_xml)
    in_live, in_saved = {device.name for device in live}, {device.name for device in saved}
    return [
        {
            "name": harmless(device.name),
            "kind": device.kind,
            "detail": harmless(device.detail) if device.detail else None,
            "live": device.name in in_live,
            "saved": device.name in in_saved,
        }
        for device in (*live, *(device for device in saved if device.name not in in_live))
    ]


@dataclass(frozen=True)
class Attach:
    """What run_attach() adds; ``redefine`` where the saved definition needs shared memory with it."""

    domain: libvirt.virDomain
    name: str
    kind: str
    element: xml.Element
    affect: Affect
    redefine: bool

    def xml(self) -> str:
        """What is handed to libvirt."""
        return xml.text(self.element)


def plan_attach(
    hypervisor: Hypervisor, name: str, wanted: ExtraDevice, *, live: bool = False, config: bool = False
) -> Attach:
    """Look whether the VM can have it. Raises Conflict, NotFound (no such mdev), Refused (only from its start)."""
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    if wanted.mdev is not None:
        mdev.check(hypervisor, wanted.mdev, shown)
    new = _name(wanted)
    for tree, on, where in ((live_xml, halves.live, "runs with"), (saved_xml, halves.config, "has")):
        if on and new is not None and any(device.name == new for device in extras.attached(tree)):
            raise Conflict(f"{harmless(shown)} {where} {new} already", f"see 'kvmctl device list {harmless(shown)}'")
    if halves.live and wanted.shared_memory and live_xml is not None and not extras.memory_is_shared(live_xml):
        raise Refused(
            f"{harmless(shown)} runs without shared memory, which virtiofs needs",
            "--config adds both for the next start; driver=9p does without",
        )
    if halves.live and wanted.shared_memory:
        _check_cgroup(domain, shown)
    element = wanted.element
    if halves.live and wanted.kind == "serial":
        # An ISA port is there from the start or not at all; one on USB can come later.
        element = xml.parse(xml.raw(element), "serial", "serial")
        xml.add(element, "target", type_="usb-serial")
    redefine = wanted.shared_memory and saved_xml is not None and not extras.memory_is_shared(saved_xml)
    return Attach(domain, shown, wanted.kind, element, halves, redefine and halves.config)


def _check_cgroup(domain: libvirt.virDomain, shown: str) -> None:
    """Raise Refused where libvirt has no cgroup for the guest: plugging virtiofs in, its daemon (9.0) then crashes.

    Seen with virsh as well; it puts virtiofsd into the guest's cgroup without looking whether there is one.
    """
    try:
        domain.memoryParameters(LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        raise Refused(
            f"{harmless(shown)} runs without a cgroup, so virtiofs cannot be plugged in: {explain(error).message}",
            "--config adds it for the next start",
        ) from error


def _name(wanted: ExtraDevice) -> str | None:
    """The name it will have, where that is not a number."""
    if wanted.mdev is not None:
        return f"mdev={wanted.mdev}"
    target = wanted.element.find("target") if wanted.kind == "share" else None
    return f"share={target.get('dir')}" if target is not None else None


def run_attach(hypervisor: Hypervisor, plan: Attach) -> dict[str, Any]:
    """Plug it in, in both definitions or none, and look that it is there: ``{vm, kind, device, live, config}``."""
    before = _names(plan.domain, plan.affect)
    kept = definition_kept(plan.domain, f"device attach {plan.name} {plan.kind}")
    with translated(hypervisor.uri), kept, Undo() as undo:
        flags = plan.affect.flags & ~CONFIG if plan.redefine else plan.affect.flags
        if flags:
            try:
                plan.domain.attachDeviceFlags(xml.raw(plan.element), flags)
            except libvirt.libvirtError as error:
                raise _refusal(plan, error) from error
        if plan.redefine:
            if flags:
                undo.add("pull it out again", lambda: plan.domain.detachDeviceFlags(xml.raw(plan.element), LIVE))
            _redefine(plan)
        undo.keep()
    added = [name for name in _names(plan.domain, plan.affect) if name not in before]
    if not added:
        raise KvmctlError(f"{harmless(plan.name)} has no new {plan.kind} though libvirt reported no error")
    return {
        "vm": plan.name,
        "kind": plan.kind,
        "device": harmless(added[0]),
        "live": plan.affect.live,
        "config": plan.affect.config,
    }


def _names(domain: libvirt.virDomain, halves: Affect) -> list[str]:
    with translated():
        live, saved = definitions(domain)
    return [device.name for device in extras.attached(live if halves.live else saved)]


def _refusal(plan: Attach, error: libvirt.libvirtError) -> KvmctlError:
    known = explain(error)
    if "vhost-vsock" in known.message:
        return Refused(f"that host cannot give a VM a vsock: {known.message}", "'modprobe vhost_vsock' there")
    # For a machine without a free slot, or a bus without hot-plug, libvirt has no code of its own.
    no_room = "No more available PCI slots" in known.message or "does not support hotplugging" in known.message
    if plan.affect.live and (error.get_error_code() in _ONLY_FROM_START or no_room):
        return Refused(
            f"{harmless(plan.name)} cannot get a {plan.kind} while it runs: {known.message}",
            "--config adds it for the next start",
        )
    return known


def _redefine(plan: Attach) -> None:
    text = plan.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    tree = xml.parse(text, "domain", "domain")
    extras.add_to(tree, (ExtraDevice(plan.kind, plan.element, shared_memory=True),))
    plan.domain.connect().defineXMLFlags(xml.raw(tree), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)


@dataclass(frozen=True)
class Detach:
    """What run_detach() takes out: the device in the running VM, in the saved definition, or in both."""

    domain: libvirt.virDomain
    name: str
    device: str
    kind: str
    live: Attached | None
    saved: Attached | None
    affect: Affect

    def xml(self) -> str:
        """The element, once."""
        found = self.live or self.saved
        return xml.text(found.element) if found is not None else ""


def plan_detach(hypervisor: Hypervisor, name: str, text: str, *, live: bool = False, config: bool = False) -> Detach:
    """Find the device. Raises UsageProblem, NotFound, and Conflict where the definitions differ in it."""
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    in_live = extras.select(extras.attached(live_xml), text) if halves.live else None
    in_saved = extras.select(extras.attached(saved_xml), text) if halves.config else None
    found = in_live or in_saved
    if found is None:
        raise NotFound(
            f"{harmless(shown)} has no device {text[:80]!a}",
            f"'kvmctl device list {harmless(shown)}' shows what it has",
        )
    counts = [sum(1 for d in extras.attached(tree) if d.kind == found.kind) for tree in (live_xml, saved_xml)]
    if in_live is not None and in_saved is not None and counts[0] != counts[1]:
        raise Conflict(
            f"{harmless(shown)} runs with {counts[0]} of the kind {found.kind} and has {counts[1]} saved",
            "--live or --config says which is meant",
        )
    return Detach(domain, shown, found.name, found.kind, in_live, in_saved, halves)


def run_detach(hypervisor: Hypervisor, plan: Detach, timeout: float) -> dict[str, Any]:
    """Pull it out; the saved definition follows when the running guest is rid of it. Raises TimedOut, Refused."""
    with translated(hypervisor.uri), definition_kept(plan.domain, f"device detach {plan.name} {plan.device}"):
        if plan.live is not None:
            _detach_live(plan, plan.live, timeout)
        if plan.saved is not None:
            plan.domain.detachDeviceFlags(xml.raw(plan.saved.element), CONFIG)
    return {
        "vm": plan.name,
        "kind": plan.kind,
        "device": harmless(plan.device),
        "live": plan.live is not None,
        "config": plan.saved is not None,
    }


def _detach_live(plan: Detach, device: Attached, timeout: float) -> None:
    def count() -> int:
        return sum(1 for found in extras.attached(definitions(plan.domain)[0]) if found.kind == device.kind)

    before = count()
    try:
        plan.domain.detachDeviceFlags(xml.raw(device.element), LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _ONLY_FROM_START:
            raise
        raise Refused(
            f"{harmless(plan.name)} cannot lose its {device.kind} while it runs: {explain(error).message}",
            "--config takes it out for the next start",
        ) from error
    end = time.monotonic() + timeout
    # libvirt waits some seconds for the guest and then returns as if all were well; only its XML tells.
    while count() >= before:
        if time.monotonic() > end:
            raise TimedOut(
                f"the guest {harmless(plan.name)} did not let go of {harmless(device.name)} in {timeout:g} s",
                "is it still booting? nothing was changed in the saved definition; try again",
            )
        time.sleep(0.1)
