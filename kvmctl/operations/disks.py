"""A VM's disks: list them, plug them in, pull them out."""

import time
from dataclasses import dataclass, field
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, TimedOut, UsageProblem
from kvmctl.model import disk as media
from kvmctl.model import xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.operations import disk_secret, disk_sources, metadata, pools
from kvmctl.operations.affect import Affect, affect
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.pci import free_root_ports
from kvmctl.operations.pci_host import definitions
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo

# QEMU plugs these into a running guest; SATA, IDE and floppy drives are there from the start or not at all.
HOTPLUG_BUSES = ("virtio", "scsi", "usb")
_ASK_AGAIN_SECONDS = 5.0


def listing(hypervisor: Hypervisor, name: str) -> list[dict[str, Any]]:
    """The disks of one VM, those of the running definition first.

    ``{target, device, bus, source, format, capacity_bytes, allocation_bytes, cache, discard, serial, encrypted,
    readonly, shareable, iops, bps, live, saved}``: the limits are None where there is none, ``live`` and ``saved`` in
    which definition the disk is.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        live, saved = definitions(domain)
    in_live = disks_of(live)
    in_saved = disks_of(saved)
    rows = []
    for target in [*in_live, *(t for t in in_saved if t not in in_live)]:
        element = in_live[target] if target in in_live else in_saved[target]
        rows.append(
            {
                **_described(element),
                **_sizes(domain, element, target),
                "live": target in in_live,
                "saved": target in in_saved,
            }
        )
    return rows


def disks_of(domain: xml.Element | None) -> dict[str, xml.Element]:
    """The ``<disk>`` elements of a domain by their target (``vda``)."""
    found: dict[str, xml.Element] = {}
    for disk in domain.iterfind("devices/disk") if domain is not None else ():
        target = disk.find("target")
        if target is not None:
            found[target.get("dev", "")] = disk
    return found


def _described(disk: xml.Element) -> dict[str, Any]:
    target, driver, tune = disk.find("target"), disk.find("driver"), disk.find("iotune")
    return {
        "target": target.get("dev") if target is not None else None,
        "device": disk.get("device", "disk"),
        "bus": target.get("bus") if target is not None else None,
        "source": source_of(disk),
        "format": driver.get("type") if driver is not None else None,
        "cache": driver.get("cache") if driver is not None else None,
        "discard": driver.get("discard") if driver is not None else None,
        "serial": disk.findtext("serial"),
        "encrypted": disk.find("source/encryption") is not None or disk.find("encryption") is not None,
        "readonly": disk.find("readonly") is not None,
        "shareable": disk.find("shareable") is not None,
        "iops": _number(tune, "total_iops_sec"),
        "bps": _number(tune, "total_bytes_sec"),
    }


def source_of(disk: xml.Element) -> str | None:
    """A path, ``pool/volume``, or the name of a network source; None for an empty drive."""
    source = disk.find("source")
    if source is None:
        return None
    if source.get("pool"):
        return f"{source.get('pool')}/{source.get('volume')}"
    return source.get("file") or source.get("dev") or source.get("name")


def _number(element: xml.Element | None, tag: str) -> int | None:
    text = element.findtext(tag) if element is not None else None
    return int(text) or None if text and text.isdigit() else None


def _sizes(domain: libvirt.virDomain, disk: xml.Element, target: str) -> dict[str, int | None]:
    try:
        capacity, allocation, _physical = domain.blockInfo(target) if source_of(disk) else (None, None, None)
    except libvirt.libvirtError:
        # The file is gone, or lies where this libvirt cannot look while the guest is off.
        capacity, allocation = None, None
    return {"capacity_bytes": capacity, "allocation_bytes": allocation}


@dataclass(frozen=True)
class Attach:
    """What run_attach() would do: the disk, the volume to make for it (None: it is there), the controller it needs."""

    domain: libvirt.virDomain
    name: str
    target: str
    element: xml.Element
    affect: Affect
    volume: OwnedVolume | None = None
    volume_xml: xml.Element | None = None
    controller: xml.Element | None = None
    passphrase: bytes | None = field(default=None, repr=False)

    def xml(self) -> str:
        """Everything that would be handed to libvirt."""
        parts = (self.volume_xml, self.controller, self.element)
        return "".join(xml.text(part) for part in parts if part is not None)


def plan_attach(
    hypervisor: Hypervisor,
    name: str,
    wanted: media.DiskRequest,
    *,
    live: bool = False,
    config: bool = False,
    passphrase: bytes | None = None,
) -> Attach:
    """Look at the VM and at the disk. With ``passphrase`` a new disk is encrypted (LUKS).

    Raises NotFound and UsageProblem for what is no disk, Refused for one that another VM writes to, and
    where a running guest cannot take one on that bus.
    """
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    trees = [t for t, on in ((live_xml, halves.live), (saved_xml, halves.config)) if on and t is not None]
    bus = wanted.tuning.bus or ("scsi" if halves.live else _cdrom_bus(trees[0])) if _is_cd(wanted) else _bus(wanted)
    if halves.live and live_xml is not None:
        _check_hotplug(live_xml, shown, bus)
    taken = {target for tree in (live_xml, saved_xml) for target in disks_of(tree)}
    target = media.next_target(bus, taken)
    volume, volume_xml = None, None
    if isinstance(wanted, media.NewDisk):
        volume, volume_xml, source, format_ = _new_volume(hypervisor, shown, wanted)
    else:
        if passphrase is not None:
            raise UsageProblem("a passphrase is for a new disk", "give a size, not a path")
        source, format_ = disk_sources.existing(hypervisor, wanted)
        if any(source.path in disk_sources.sources(d) for tree in trees for d in disks_of(tree).values()):
            raise Conflict(f"{shown} has the disk {source.path} already", f"see 'kvmctl disk list {shown}'")
        if not (wanted.tuning.readonly or wanted.tuning.shareable):
            disk_sources.refuse_shared(hypervisor, source.path)
    element = media.disk_element(source, target, bus, format_, wanted.tuning)
    needs = bus == "scsi" and any(t.find("devices/controller[@type='scsi']") is None for t in trees)
    controller = xml.new("controller", type_="scsi", model="virtio-scsi") if needs else None
    return Attach(domain, shown, target, element, halves, volume, volume_xml, controller, passphrase)


def _is_cd(wanted: media.DiskRequest) -> bool:
    return wanted.tuning.device == "cdrom"


def _bus(wanted: media.DiskRequest) -> str:
    return wanted.tuning.bus or "virtio"


def _cdrom_bus(domain: xml.Element) -> str:
    machine = domain.find("os/type")
    kind = machine.get("machine", "") if machine is not None else ""
    return "sata" if "q35" in kind else "ide" if kind.startswith("pc") else "scsi"


def _check_hotplug(domain: xml.Element, name: str, bus: str) -> None:
    if bus not in HOTPLUG_BUSES:
        raise Refused(
            f"a {bus} drive cannot be plugged into a running guest",
            "--config adds it for the next start; virtio, scsi and usb can be plugged in at once",
        )
    machine = domain.find("os/type")
    pcie = machine is not None and ("q35" in machine.get("machine", "") or "virt" in machine.get("machine", ""))
    needs_port = bus == "virtio" or (bus == "scsi" and domain.find("devices/controller[@type='scsi']") is None)
    if pcie and needs_port and not free_root_ports(domain):
        raise Refused(
            f"{name} runs with no free PCIe root port, so no {bus} disk can be plugged in",
            "use ,bus=scsi or ,bus=usb where it has such a controller, or --config",
        )


def _new_volume(
    hypervisor: Hypervisor, vm: str, wanted: media.NewDisk
) -> tuple[OwnedVolume, xml.Element, media.Source, str]:
    format_ = wanted.format or "qcow2"
    if wanted.tuning.device == "cdrom":
        raise UsageProblem("a CD drive takes an ISO image, not a size")
    pool = pools.ensure_pool(hypervisor, wanted.pool) if wanted.pool else pools.default_pool(hypervisor)
    pools.refresh(pool)
    ending = "qcow2" if format_ == "qcow2" else "img"
    number = 1
    while pools.find_volume(pool, f"{vm}-{number}.{ending}") is not None:
        number += 1
    name = f"{vm}-{number}.{ending}"
    source, path = disk_sources.in_pool(pool, name)
    element = disk_sources.volume_element(name, format_, wanted.size_bytes)
    return OwnedVolume(pool.name(), name, path, "disk"), element, source, format_


def run_attach(hypervisor: Hypervisor, plan: Attach) -> dict[str, Any]:
    """Make the volume where there is one to make, and plug the disk in; where a step fails nothing is left."""
    with definition_kept(plan.domain, f"disk attach {plan.name} {plan.target}"), Undo() as undo:
        if plan.volume is not None and plan.volume_xml is not None:
            if plan.passphrase is not None:
                _encrypt(hypervisor, plan, plan.volume, plan.volume_xml, plan.passphrase, undo)
            _make_volume(hypervisor, plan, plan.volume, plan.volume_xml, undo)
        with translated(hypervisor.uri):
            if plan.controller is not None:
                _add_controller(plan, plan.controller, undo)
            undo.add(f"take {plan.target} out again", lambda: _pull(plan))
            plan.domain.attachDeviceFlags(xml.raw(plan.element), plan.affect.flags)
            _verify(plan)
        undo.keep()
    row = next(row for row in listing(hypervisor, plan.name) if row["target"] == plan.target)
    return {"vm": plan.name, "changed": True, **row}


def _encrypt(
    hypervisor: Hypervisor, plan: Attach, volume: OwnedVolume, element: xml.Element, passphrase: bytes, undo: Undo
) -> None:
    target, source = element.find("target"), plan.element.find("source")
    assert target is not None
    assert source is not None
    uuid = disk_secret.keep(hypervisor, volume.path or volume.name, passphrase, undo)
    disk_secret.encrypt(target, uuid)
    disk_secret.encrypt(source, uuid)


def _make_volume(hypervisor: Hypervisor, plan: Attach, volume: OwnedVolume, element: xml.Element, undo: Undo) -> None:
    pool = pools.ensure_pool(hypervisor, volume.pool)
    pools.create_volume(pool, element)
    undo.add(f"delete volume {volume.name}", lambda: pools.delete_volume(hypervisor, volume.pool, volume.name))
    before = metadata.read(plan.domain)
    metadata.write(plan.domain, before._replace(volumes=(*before.volumes, volume)))
    undo.add("forget the volume", lambda: metadata.write(plan.domain, before))


def _add_controller(plan: Attach, controller: xml.Element, undo: Undo) -> None:
    live, saved = definitions(plan.domain)
    halves = ((live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG))
    for tree, flag in halves:
        if tree is None or not plan.affect.flags & flag or tree.find("devices/controller[@type='scsi']") is not None:
            continue
        # Without one libvirt would add its default model, which a guest of today has no driver for.
        plan.domain.attachDeviceFlags(xml.raw(controller), flag)
        undo.add("take the SCSI controller out again", _detacher(plan.domain, "controller[@type='scsi']", flag))


def _detacher(domain: libvirt.virDomain, path: str, flag: int) -> Any:
    def step() -> None:
        live, saved = definitions(domain)
        tree = live if flag == libvirt.VIR_DOMAIN_AFFECT_LIVE else saved
        element = tree.find(f"devices/{path}") if tree is not None else None
        if element is not None:
            domain.detachDeviceFlags(xml.raw(element), flag)

    return step


def _pull(plan: Attach) -> None:
    """Take back an attach that may have been done in one definition, both, or none."""
    live, saved = definitions(plan.domain)
    for tree, flag in ((live, libvirt.VIR_DOMAIN_AFFECT_LIVE), (saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG)):
        element = disks_of(tree).get(plan.target) if plan.affect.flags & flag else None
        if element is not None:
            plan.domain.detachDeviceFlags(xml.raw(element), flag)


def _verify(plan: Attach) -> None:
    live, saved = definitions(plan.domain)
    for tree, on, where in ((live, plan.affect.live, "running"), (saved, plan.affect.config, "saved")):
        if on and plan.target not in disks_of(tree):
            raise KvmctlError(f"{plan.name} has no {plan.target} in its {where} definition though libvirt agreed")


@dataclass(frozen=True)
class Detach:
    """What run_detach() would do. ``boots``: the running guest started from this disk."""

    domain: libvirt.virDomain
    name: str
    target: str
    source: str | None
    live: str | None
    saved: str | None
    boots: bool
    volume: OwnedVolume | None

    def row(self) -> dict[str, Any]:
        """``{"vm", "target", "source", "changed", "live", "config"}``."""
        return {
            "vm": self.name,
            "target": self.target,
            "source": self.source,
            "changed": True,
            "live": self.live is not None,
            "config": self.saved is not None,
        }


def plan_detach(
    hypervisor: Hypervisor, name: str, which: str, *, live: bool = False, config: bool = False, delete: bool = False
) -> Detach:
    """Find the disk by its target (``vdb``) or its source.

    Raises NotFound, Refused where a running guest cannot give up a drive on that bus, and with ``delete``
    where the volume is not one that kvmctl made for this VM.
    """
    domain = hypervisor.find(name)
    halves = affect(domain, live, config)
    with translated(hypervisor.uri):
        shown = domain.name()
        live_xml, saved_xml = definitions(domain)
    in_live = disks_of(live_xml) if halves.live else {}
    in_saved = disks_of(saved_xml) if halves.config else {}
    target = find_target({**in_saved, **in_live}, which, shown)
    element = in_live[target] if target in in_live else in_saved[target]
    if target in in_live:
        bus = element.find("target")
        if bus is not None and bus.get("bus") not in HOTPLUG_BUSES:
            raise Refused(
                f"{target} is a {bus.get('bus')} drive, which a running guest cannot give up",
                "--config takes it out for the next start"
                + (f"; 'kvmctl disk eject {shown}' empties it now" if element.get("device") == "cdrom" else ""),
            )
    source = source_of(element)
    owned = next((v for v in metadata.read(domain).volumes if v.path == source), None)
    if delete and owned is None:
        raise Refused(f"kvmctl did not make {source} for {shown}", "leave out --delete")
    half_left = bool(owned) and (
        (not halves.config and target in disks_of(saved_xml)) or (not halves.live and target in disks_of(live_xml))
    )
    if delete and half_left:
        raise UsageProblem(
            f"{shown} would still have {target} in its other definition", "leave out --live and --config"
        )
    return Detach(
        domain,
        shown,
        target,
        source,
        xml.raw(in_live[target]).strip() if target in in_live else None,
        xml.raw(in_saved[target]).strip() if target in in_saved else None,
        target in in_live and _boots_from(in_live) == target,
        None if half_left else owned,
    )


def find_target(disks: dict[str, xml.Element], which: str, vm: str) -> str:
    """The target that ``which`` names: itself, or a disk's source."""
    if which in disks:
        return which
    hits = [target for target, disk in disks.items() if source_of(disk) == which]
    if not hits:
        raise NotFound(f"{vm} has no disk {which[:200]!a}", f"'kvmctl disk list {vm}' shows those it has")
    return hits[0]


def _boots_from(disks: dict[str, xml.Element]) -> str | None:
    ordered = sorted(
        (int(boot.get("order", "0")), target)
        for target, disk in disks.items()
        if (boot := disk.find("boot")) is not None and boot.get("order", "").isdigit()
    )
    if ordered:
        return ordered[0][1]
    return next((target for target, disk in disks.items() if disk.get("device", "disk") == "disk"), None)


def run_detach(
    hypervisor: Hypervisor, plan: Detach, timeout: float, *, delete: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Pull the disk out, and with ``delete`` delete its volume. Adds ``deleted`` to Detach.row().

    Raises TimedOut where the guest does not let go; then the saved definition still has it as well.
    """
    progress = progress or Progress()
    with translated(hypervisor.uri), definition_kept(plan.domain, f"disk detach {plan.name} {plan.target}"):
        if plan.live is not None:
            progress.step(f"waiting for {plan.name} to let go of {plan.target}")
            _unplug(hypervisor, plan, plan.live, timeout)
        if plan.saved is not None:
            plan.domain.detachDeviceFlags(plan.saved, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        deleted = False
        if plan.volume is not None:
            if delete:
                deleted = pools.delete_volume(hypervisor, plan.volume.pool, plan.volume.name)
                disk_secret.forget(hypervisor, plan.volume.path)
            # It is the user's own now: deleting the VM later must not take it along.
            before = metadata.read(plan.domain)
            metadata.write(plan.domain, before._replace(volumes=tuple(v for v in before.volumes if v != plan.volume)))
    return {**plan.row(), "deleted": deleted}


def _unplug(hypervisor: Hypervisor, plan: Detach, element: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    again = 0.0
    while True:
        with translated(hypervisor.uri):
            live, _saved = definitions(plan.domain)
        if live is None or plan.target not in disks_of(live):
            return
        now = time.monotonic()
        if now >= deadline:
            raise TimedOut(
                f"{plan.name} has not let go of {plan.target} in {timeout:.0f} s, and still has it",
                "is its system up? Try again then, or use --config and restart it",
            )
        if now >= again:
            try:
                plan.domain.detachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                found = explain(error, hypervisor.uri)
                if "already in the process of unplug" not in found.message and not isinstance(found, NotFound):
                    raise found from error
            again = now + _ASK_AGAIN_SECONDS
        time.sleep(0.1)
