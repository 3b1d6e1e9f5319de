"""Passing PCI devices of the host to a VM, and taking them back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, TimedOut
from kvmctl.model import xml
from kvmctl.model.host_pci import HostPci
from kvmctl.model.pci import PciAddress, PciSelector, check_count, hostdev_element, hostdev_elements, hostdevs
from kvmctl.operations.affect import Affect, affect
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.pci_host import definitions, judge_host
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.preflight.pci import Judge

# A guest is asked to let go of a device, and asked again after this long: one that is still starting ignores it.
_ASK_AGAIN_SECONDS = 5.0
# Controllers with slots for conventional PCI devices on a PCI Express machine.
_PCI_BRIDGES = ("pcie-to-pci-bridge", "pci-bridge", "dmi-to-pci-bridge")


@dataclass(frozen=True)
class Attach:
    """What attach() would do: ``devices`` are to be added, ``present`` are there already."""

    domain: libvirt.virDomain
    name: str
    devices: tuple[HostPci, ...]
    present: tuple[PciAddress, ...]
    affect: Affect
    warnings: tuple[str, ...]

    def xml(self) -> str:
        """The elements that would be added."""
        return "".join(xml.text(hostdev_element(device.address)) for device in self.devices)

    def row(self) -> dict[str, Any]:
        """``{"vm", "devices", "changed", "live", "config"}``; ``devices`` are the addresses asked for."""
        addresses = [*self.present, *(device.address for device in self.devices)]
        return {
            "vm": self.name,
            "devices": [str(address) for address in addresses],
            "changed": bool(self.devices),
            "live": self.affect.live,
            "config": self.affect.config,
        }


def choose(
    judge: Judge, selectors: Sequence[PciSelector], vm: str | None = None, *, force: bool = False
) -> list[HostPci]:
    """The devices that ``selectors`` name, each once, after all checks of the host's side.

    ``vm`` is the VM they are for; what that one has already is fine. ``force`` takes a device too that a
    stopped VM has in its definition, or of which cannot be seen whether the host needs it; never one that
    the host is known to need.
    Raises NotFound, Conflict (another VM has it), Refused (it cannot be passed on).
    """
    chosen: dict[PciAddress, HostPci] = {}
    for selector in selectors:
        for device in _meant(judge, selector, vm, chosen):
            chosen[device.address] = device
    for device in chosen.values():
        _check(judge, device, chosen, vm, force)
    return list(chosen.values())


def _meant(judge: Judge, selector: PciSelector, vm: str | None, chosen: dict[PciAddress, HostPci]) -> list[HostPci]:
    candidates = _matching(judge, selector)
    if selector.vf:
        candidates = _functions(judge, selector, candidates)
    if selector.address is None or selector.vf:
        # Any of them will do: one that nobody has and that can go.
        free = [d for d in candidates if d.address not in chosen and not judge.users.get(d.address)]
        fitting = [d for d in free if _can_go(judge, d, selector.group)]
        if not fitting:
            why = judge.verdict(free[0]).reason if free else "other VMs have them all"
            what = "virtual function of" if selector.vf else "device"
            raise (Refused if free else Conflict)(
                f"no free {what} {selector.text[:60]}: {why}", "see 'kvmctl pci list'"
            )
        candidates = fitting[:1]
    if not selector.group:
        return candidates
    whole = [m for m in judge.members(candidates[0]) if not m.is_bridge or m is candidates[0]]
    return whole or candidates


def _can_go(judge: Judge, device: HostPci, group: bool) -> bool:
    verdict = judge.verdict(device)
    return bool(verdict.assignable) or (group and verdict.with_group)


def _matching(judge: Judge, selector: PciSelector) -> list[HostPci]:
    if selector.address is not None:
        device = judge.devices.get(selector.address)
        if device is None:
            raise NotFound(f"the host has no PCI device {selector.address}", "'kvmctl pci list' shows those there are")
        return [device]
    found = [d for d in judge.devices.values() if (d.vendor_id, d.product_id) == selector.ids]
    if not found:
        raise NotFound(
            f"the host has no PCI device {selector.text[:60]}", "'kvmctl pci list -o wide' shows vendor and product ids"
        )
    return found


def _functions(judge: Judge, selector: PciSelector, parents: list[HostPci]) -> list[HostPci]:
    found = [judge.devices[a] for parent in parents for a in parent.virtual_functions if a in judge.devices]
    if found:
        return found
    able = [parent for parent in parents if parent.max_virtual_functions]
    if not able:
        raise Refused(f"{parents[0].title} has no virtual functions (no SR-IOV)", "pass the device itself")
    path = f"/sys/bus/pci/devices/{able[0].address}/sriov_numvfs"
    raise Refused(
        f"{able[0].title} has no virtual function enabled, of the {able[0].max_virtual_functions} it can have",
        f"echo {min(4, able[0].max_virtual_functions)} > {path}",
    )


def _check(judge: Judge, device: HostPci, chosen: dict[PciAddress, HostPci], vm: str | None, force: bool) -> None:
    others = [user for user in judge.users.get(device.address, ()) if user.name != vm]
    for user in others:
        if user.running:
            raise Conflict(
                f"{device.title} is in use by the running VM {user.name}",
                f"kvmctl pci detach {user.name} {device.address}",
            )
    if others and not force:
        raise Conflict(
            f"{device.title} is in the definition of VM {others[0].name} already, and only one can run with it",
            "--force adds it all the same",
        )
    if any(user.name == vm and user.running for user in judge.users.get(device.address, ())):
        return
    verdict = judge.verdict(device)
    if verdict.assignable or (verdict.assignable is None and force):
        return
    # Its whole group goes along, and each of that is checked in its own turn.
    if verdict.with_group and all(m in chosen for m in verdict.others):
        return
    hint = "'kvmctl pci list' shows what can be passed on, and why not"
    if verdict.with_group:
        hint = f"--group passes all of them: {device.address}, {', '.join(map(str, verdict.others))}"
    elif verdict.assignable is None:
        hint = "if you know that the host can do without, --force passes it on"
    elif device.iommu_group is None:
        hint = "'kvmctl host check' says how to turn the IOMMU on"
    raise Refused(f"{device.title} cannot be passed to a VM: {verdict.reason}", hint)


def plan_attach(
    hypervisor: Hypervisor,
    name: str,
    selectors: Sequence[PciSelector],
    *,
    live: bool = False,
    config: bool = False,
    force: bool = False,
) -> Attach:
    """Look at the VM, the host and the devices.

    Raises what choose() raises, UsageProblem past MAX_HOSTDEVS, Conflict for a VM in the wrong state, and
    Refused where a running PCIe guest has no root port free.
    """
    domain = hypervisor.find(name)
    wanted = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    # More than a VM can have are too many whatever they are.
    check_count(0, len(set(selectors)))
    judge = judge_host(hypervisor)
    devices = choose(judge, selectors, shown, force=force)
    trees = [tree for tree, on in ((live_xml, wanted.live), (saved_xml, wanted.config)) if on and tree is not None]
    there = [set(hostdevs(tree)) for tree in trees]
    present = [d.address for d in devices if all(d.address in have for have in there)]
    adding = [d for d in devices if d.address not in present]
    half = [d for d in adding if any(d.address in have for have in there)]
    if half:
        raise Conflict(
            f"{shown} has {half[0].address} in one of its running and its saved definition, but not in the other",
            "--live or --config changes the one that lacks it",
        )
    for have in there:
        check_count(len(have), len(adding), shown)
    if wanted.live and live_xml is not None:
        _check_ports(live_xml, shown, adding)
    warnings = [f"{d.address}: {use.text}" for d in adding for use in d.uses if use.kind != "vital"]
    if wanted.live and live_xml is not None and adding:
        warnings += _memory_warning(live_xml, shown)
    return Attach(domain, shown, tuple(adding), tuple(present), wanted, tuple(warnings))


def _check_ports(domain: xml.Element, name: str, adding: Sequence[HostPci]) -> None:
    machine = domain.find("os/type")
    kind = machine.get("machine", "") if machine is not None else ""
    if not ("q35" in kind or kind.startswith("virt")):
        return
    later = "--config adds it for the next start, with all that it needs"
    conventional = [device for device in adding if not device.express]
    bridges = [c for c in domain.iterfind("devices/controller[@type='pci']") if c.get("model") in _PCI_BRIDGES]
    if conventional and not bridges:
        raise Refused(
            f"{conventional[0].title} is a conventional PCI device, and {name} runs without a bridge for one", later
        )
    free = free_root_ports(domain)
    if len(adding) - len(conventional) > free:
        many = "no free PCIe root port" if not free else f"only {free} free PCIe root ports"
        raise Refused(f"{name} runs with {many}, so {len(adding)} more devices cannot be plugged in", later)


def free_root_ports(domain: xml.Element) -> int:
    """How many PCIe root ports of a running guest have nothing behind them."""
    ports = {
        controller.get("index")
        for controller in domain.iterfind("devices/controller[@type='pci']")
        if controller.get("model") in ("pcie-root-port", "pcie-switch-downstream-port")
    }
    taken = {
        str(int(address.get("bus", "0"), 16))
        for address in domain.iterfind("devices/*/address[@type='pci']")
        if address.get("bus", "").startswith("0x")
    }
    return len(ports - taken)


def _memory_warning(domain: xml.Element, name: str) -> list[str]:
    if hostdevs(domain):
        return []
    return [f"all of {name}'s memory is pinned on the host from now on, and it can no longer be migrated or saved"]


def run_attach(hypervisor: Hypervisor, plan: Attach) -> dict[str, Any]:
    """Add the devices, all or none."""
    told = " ".join(str(device.address) for device in plan.devices)
    with definition_kept(plan.domain, f"pci attach {plan.name} {told}"), Undo() as undo:
        for device in plan.devices:
            element = xml.raw(hostdev_element(device.address))
            try:
                plan.domain.attachDeviceFlags(element, plan.affect.flags)
            except libvirt.libvirtError as error:
                raise _why(error, hypervisor, plan.domain, device) from error
            undo.add(
                f"take {device.address} from {plan.name} again",
                partial(plan.domain.detachDeviceFlags, element, plan.affect.flags),
            )
        _verify(plan)
        undo.keep()
    return plan.row()


def _why(
    error: libvirt.libvirtError, hypervisor: Hypervisor, domain: libvirt.virDomain, device: HostPci
) -> KvmctlError:
    found = explain(error, hypervisor.uri)
    if "memlock" in found.message.lower() or "cannot allocate memory" in found.message.lower():
        found.hint = "the host cannot pin that much memory: give the guest less, or raise the limit on locked memory"
    return type(found)(f"{device.title} could not be passed to {domain.name()}: {found.message}", found.hint)


def _verify(plan: Attach) -> None:
    with translated():
        live, saved = definitions(plan.domain)
    for tree, on in ((live, plan.affect.live), (saved, plan.affect.config)):
        missing = {d.address for d in plan.devices} - set(hostdevs(tree)) if on and tree is not None else set()
        if missing:
            raise KvmctlError(f"{plan.name} does not have {min(missing)} though libvirt reported no error")


@dataclass(frozen=True)
class Detach:
    """What run_detach() would do."""

    domain: libvirt.virDomain
    name: str
    devices: tuple[PciAddress, ...]
    elements: tuple[tuple[str | None, str | None], ...]
    affect: Affect

    def xml(self) -> str:
        """The elements that would be taken out."""
        return "".join((live or saved or "").strip() + "\n" for live, saved in self.elements)

    def row(self) -> dict[str, Any]:
        """``{"vm", "devices", "changed", "live", "config"}``."""
        return {
            "vm": self.name,
            "devices": [str(address) for address in self.devices],
            "changed": True,
            "live": any(live is not None for live, _ in self.elements),
            "config": any(saved is not None for _, saved in self.elements),
        }


def plan_detach(
    hypervisor: Hypervisor, name: str, selectors: Sequence[PciSelector], *, live: bool = False, config: bool = False
) -> Detach:
    """Find the devices in the VM's definitions. Raises NotFound where it has no such device."""
    domain = hypervisor.find(name)
    wanted = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    in_live = dict(hostdev_elements(live_xml)) if live_xml is not None and wanted.live else {}
    in_saved = dict(hostdev_elements(saved_xml)) if saved_xml is not None and wanted.config else {}
    have = list(dict.fromkeys([*in_live, *in_saved]))
    addresses: dict[PciAddress, None] = {}
    judge = judge_host(hypervisor) if any(s.ids is not None or s.group or s.vf for s in selectors) else None
    for selector in selectors:
        hits = [a for a in have if _means(selector, a, judge)]
        if not hits:
            raise NotFound(f"{shown} has no PCI device {selector.text[:60]} of the host", f"see 'kvmctl info {shown}'")
        addresses.update(dict.fromkeys(hits))
    texts = tuple(
        (
            xml.raw(in_live[a]).strip() if a in in_live else None,
            xml.raw(in_saved[a]).strip() if a in in_saved else None,
        )
        for a in addresses
    )
    return Detach(domain, shown, tuple(addresses), texts, wanted)


def _means(selector: PciSelector, address: PciAddress, judge: Judge | None) -> bool:
    device = judge.devices.get(address) if judge is not None else None
    if selector.address is not None and address == selector.address:
        return True
    if device is None or judge is None:
        return False
    if selector.vf and selector.address is not None:
        return device.physical_function == selector.address
    if selector.group and selector.address is not None:
        named = judge.devices.get(selector.address)
        return named is not None and device in judge.members(named)
    return selector.ids == (device.vendor_id, device.product_id)


def run_detach(
    hypervisor: Hypervisor, plan: Detach, timeout: float, progress: Progress | None = None
) -> dict[str, Any]:
    """Take the devices out, wait until the guest has let go of them, and say which drivers have them now.

    Raises TimedOut where the guest does not let go; the saved definition is changed only after it did.
    """
    progress = progress or Progress()
    with definition_kept(plan.domain, f"pci detach {plan.name} {' '.join(map(str, plan.devices))}"):
        for address, (live, saved) in zip(plan.devices, plan.elements, strict=True):
            if live is not None:
                progress.step(f"waiting for {plan.name} to let go of {address}")
                _unplug(hypervisor, plan, address, live, timeout)
            if saved is not None:
                with translated(hypervisor.uri):
                    plan.domain.detachDeviceFlags(saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    judge = judge_host(hypervisor)
    drivers = {str(a): judge.devices[a].driver if a in judge.devices else None for a in plan.devices}
    return {**plan.row(), "drivers": drivers}


def _unplug(hypervisor: Hypervisor, plan: Detach, address: PciAddress, element: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    again = 0.0
    while True:
        with translated(hypervisor.uri):
            if not plan.domain.isActive():
                return
            live, _saved = definitions(plan.domain)
            if live is None or address not in hostdevs(live):
                return
        now = time.monotonic()
        if now >= deadline:
            raise TimedOut(
                f"{plan.name} has not let go of {address} in {timeout:.0f} s, and still has it",
                "is its system up? Try again then, or use --config and restart it",
            )
        if now >= again:
            _ask(hypervisor, plan, element)
            again = time.monotonic() + _ASK_AGAIN_SECONDS
        time.sleep(0.2)


def _ask(hypervisor: Hypervisor, plan: Detach, element: str) -> None:
    try:
        plan.domain.detachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        found = explain(error, hypervisor.uri)
        # QEMU refuses a second request while the first is on its way; that it is gone already is what is wanted.
        if "already in the process of unplug" in found.message or isinstance(found, NotFound):
            return
        raise found from error
