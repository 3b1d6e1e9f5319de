"""Deciding how a new VM will be: everything that can be refused is refused here, before anything is made."""

import time
from typing import Any, Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import ConnectionFailed, KvmctlError, Refused, UsageProblem
from kvmctl.model import domain as domains
from kvmctl.model import nic as wires
from kvmctl.model import xml
from kvmctl.model.firmware import FIRMWARES
from kvmctl.model.forward import written
from kvmctl.model.graphics import LOOPBACK
from kvmctl.model.metadata import Metadata
from kvmctl.model.pci import PciAddress, check_count
from kvmctl.model.profile import hyperv_features
from kvmctl.model.tuned import Tuning
from kvmctl.model.units import human_size
from kvmctl.operations import claim, create_network, create_system
from kvmctl.operations.create_parts import Parts, VolumePlan
from kvmctl.operations.create_request import DEFAULT_MEMORY, DEFAULT_VCPUS, Request, check
from kvmctl.operations.new_uuid import new_uuid
from kvmctl.operations.progress import Progress
from kvmctl.preflight import overcommit
from kvmctl.preflight.accel import AccelChoice, choose_accel


class Plan(NamedTuple):
    """All that will happen. ``domain`` is the definition as it will be given to libvirt."""

    name: str
    uuid: str
    hardware: domains.Hardware
    accel: AccelChoice
    domain: xml.Element
    volumes: tuple[VolumePlan, ...]
    metadata: Metadata
    start_networks: tuple[str, ...]
    autostart: bool
    start: bool
    warnings: tuple[str, ...] = ()
    leftover: libvirt.virDomain | None = None

    def steps(self) -> list[str]:
        """What will be done, a sentence each, for ``--dry-run``."""
        told = [f"remove what a killed creation of {self.name} left"] if self.leftover is not None else []
        for plan in self.volumes:
            where = f"{plan.volume.name} in the storage pool {plan.volume.pool}"
            if plan.backing is not None:
                told.append(
                    f"make the disk {where}, {human_size(plan.capacity_bytes)} over the image {plan.backing.name}"
                )
            elif plan.upload is not None:
                told.append(f"upload the {plan.volume.role} {where}")
            else:
                kind = "empty" if plan.secret is None else "empty encrypted"
                told.append(f"make the {kind} disk {where}, {human_size(plan.capacity_bytes)}")
        told.append(f"define the VM {self.name} ({self.accel.accel})")
        told += [f"start the network {name}" for name in self.start_networks]
        told += [f"reserve {kept.ip} in the network {kept.network}" for kept in self.metadata.reservations]
        if self.start:
            told.append(f"start the VM {self.name}")
        told += [f"publish {written(forward)}" for forward in self.metadata.forwards]
        return told


def plan(hypervisor: Hypervisor, request: Request, progress: Progress | None = None, *, bring: bool = True) -> Plan:
    """Look at the hypervisor and decide. Raises NotFound, Conflict, Refused or UsageProblem; changes nothing.

    One exception: an image that is a URL or a file that is in no storage pool is brought into the pool of
    images first, where it stays for the next guest; without ``bring`` that is NotFound.
    """
    check(request)
    _check_mdevs(hypervisor, request)
    system = None
    if request.os is not None:
        # Imported late: only --os needs it.
        from kvmctl.preflight import osinfo

        system = osinfo.find(request.os)
    profile = request.profile or (system.profile if system is not None else "linux")
    leftover = claim.check_free(hypervisor, request.name)
    hardware, choice, capabilities = _hardware(hypervisor, request)
    _check_limits(capabilities, request)
    suited = create_system.suited(profile, hardware, system)
    uuid = new_uuid()
    network = create_network.choose(
        hypervisor,
        request.nics,
        request.forwards,
        request.nic_model or suited.nic_model,
        leftover.UUIDString() if leftover is not None else None,
    )
    parts = Parts(
        hypervisor,
        request._replace(profile=profile),
        suited.disk_bus,
        suited.cdrom_bus,
        leftover,
        progress or Progress(),
        bring,
    )
    parts.collect()
    metadata = Metadata(
        created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        image=parts.image.name if parts.image else None,
        user=request.user,
        volumes=tuple(planned.volume for planned in parts.volumes),
        forwards=request.forwards,
        reservations=network.reservations,
    )
    start_warning = None
    if request.tuning.start_order:
        from kvmctl.operations import start_order

        metadata = start_order.ordered(hypervisor, metadata, request.tuning.start_order, request.tuning.start_delay)
        start_warning = None if start_order.in_force(hypervisor) else start_order.NOT_IN_FORCE
    spec = domains.DomainSpec(
        name=request.name,
        uuid=uuid,
        hardware=hardware,
        defaults=suited,
        memory_bytes=request.memory_bytes or max(DEFAULT_MEMORY, suited.min_memory),
        max_memory_bytes=request.max_memory_bytes,
        vcpus=request.vcpus or max(DEFAULT_VCPUS, suited.min_vcpus),
        max_vcpus=request.max_vcpus,
        cpu=_cpu(capabilities, request, hardware),
        title=request.title,
        description=request.description,
        profile=profile,
        hyperv=hyperv_features(capabilities),
        firmware=request.firmware or suited.firmware,
        tpm=suited.tpm if request.tpm is None else request.tpm,
        kernel=parts.kernel,
        initrd=parts.initrd,
        cmdline=request.cmdline,
        disks=tuple(parts.disks),
        nics=tuple(_with_boot(wires.to_element(card), request, parts, n) for n, card in enumerate(network.nics)),
        pci=_pci(hypervisor, request),
        graphics=request.graphics,
        graphics_listen=request.graphics_listen or LOOPBACK,
        graphics_tls=request.graphics_tls,
        video=request.video,
        graphics_password=request.graphics_password,
        extras=request.devices,
        sound=request.sound,
        os_url=system.url if system is not None else None,
        metadata=metadata,
    )
    domain = domains.build(spec)
    if request.tuning != Tuning():
        # Imported late, as above: most guests are not tuned.
        from kvmctl.operations import settings_tuning

        settings_tuning.of_new(hypervisor, domain, request.tuning, request.name)
    sizes = [volume.capacity_bytes for volume in parts.volumes if volume.volume.role == "disk"]
    too_much: list[str] = []
    if request.start:
        promise = overcommit.Promise(spec.vcpus, spec.memory_bytes)
        too_much = overcommit.check(hypervisor, promise, strict=request.strict)
    too_little = create_system.too_little(spec, sizes, system)
    said = (choice.warning, *too_much, *too_little, *parts.warnings, *network.warnings, start_warning)
    warnings = [text for text in said if text]
    return Plan(
        request.name,
        uuid,
        hardware,
        choice,
        domain,
        tuple(parts.volumes),
        metadata,
        network.start,
        request.autostart,
        request.start,
        tuple(warnings),
        leftover,
    )


def _with_boot(element: xml.Element, request: Request, parts: "Parts", index: int) -> xml.Element:
    """Give the first card its place in the boot order where the guest shall boot from the network."""
    if request.pxe and index == 0:
        # Of the elements in <interface> libvirt's schema lets <boot> stand anywhere.
        xml.add(element, "boot", order=parts.next_boot())
    return element


def _hardware(hypervisor: Hypervisor, request: Request) -> tuple[domains.Hardware, AccelChoice, xml.Element]:
    host = xml.parse(hypervisor.capabilities, "capabilities", "capabilities")
    arch = request.arch or host.findtext("host/cpu/arch") or "x86_64"
    whole = [guest for guest in host.iterfind("guest") if guest.findtext("os_type") == "hvm"]
    guests = {found.get("name", ""): found for guest in whole for found in guest.iterfind("arch")}
    if arch not in guests:
        raise UsageProblem(
            f"{hypervisor.uri} runs no guests of the architecture {arch[:40]!a}",
            f"it runs {', '.join(sorted(guests)) or 'none'}; the package is qemu-system-…",
        )
    choice = choose_accel(hypervisor, request.accel, arch)
    virt: Literal["kvm", "qemu"] = "kvm" if choice.accel == "kvm" else "qemu"
    machine = request.machine or _machine(guests[arch], arch)
    try:
        text = hypervisor.domain_capabilities(virt, arch, machine)
    except KvmctlError as error:
        if request.machine is None or isinstance(error, ConnectionFailed):
            raise
        known = sorted({m.text for m in guests[arch].iterfind("machine") if m.text and m.get("canonical")})
        raise UsageProblem(
            f"no machine type {machine[:60]!a} for {arch}", f"among others: {', '.join(known)}"
        ) from error
    capabilities = xml.parse(text, "domain capabilities", "domainCapabilities")
    return domains.Hardware(virt, arch, machine, capabilities.findtext("path")), choice, capabilities


def _pci(hypervisor: Hypervisor, request: Request) -> tuple[PciAddress, ...]:
    """The host's devices that were asked for. Raises what pci.choose() raises, and UsageProblem for too many."""
    if not request.pci:
        return ()
    from kvmctl.operations.pci import choose
    from kvmctl.operations.pci_host import judge_host

    devices = choose(judge_host(hypervisor), request.pci, request.name)
    check_count(0, len(devices))
    return tuple(device.address for device in devices)


def _check_mdevs(hypervisor: Hypervisor, request: Request) -> None:
    uuids_ = [device.mdev for device in request.devices if device.mdev is not None]
    if not uuids_:
        return
    from kvmctl.operations import mdev

    for uuid in uuids_:
        mdev.check(hypervisor, uuid, request.name)


def _machine(guest: xml.Element, arch: str) -> str:
    """The machine type for new guests: PCI Express where the architecture has it, else what libvirt lists first."""
    known = [machine.text for machine in guest.iterfind("machine") if machine.text]
    wanted = "q35" if arch in ("x86_64", "i686") else "virt"
    if not known:
        raise UsageProblem(f"the hypervisor names no machine type for {arch} guests", "give one: --machine")
    return wanted if wanted in known else known[0]


def _check_limits(capabilities: xml.Element, request: Request) -> None:
    element = capabilities.find("vcpu")
    most = int(element.get("max", "0")) if element is not None else 0
    wanted = request.max_vcpus or request.vcpus or DEFAULT_VCPUS
    if most and wanted > most:
        raise UsageProblem(f"{wanted} vCPUs are more than this machine type can have", f"it takes up to {most}")
    if request.firmware is not None and request.firmware not in FIRMWARES:
        raise UsageProblem(f"no firmware {request.firmware!a}", f"one of {', '.join(FIRMWARES)}")
    if (request.firmware or "").startswith("uefi"):
        offered = [v.text for v in capabilities.iterfind("os/enum[@name='firmware']/value")]
        if "efi" not in offered:
            raise Refused("that host has no UEFI firmware for guests", "install the package ovmf (or edk2-ovmf) there")
    if request.video is not None:
        models = [v.text or "" for v in capabilities.iterfind("devices/video/enum[@name='modelType']/value")]
        if request.video not in models:
            raise UsageProblem(f"no video {request.video[:40]!a} on that host", f"one of {', '.join(models)}")
    if request.tpm and capabilities.find("devices/tpm[@supported='yes']") is None:
        raise Refused("that host cannot emulate a TPM", "install the packages swtpm and swtpm-tools there")


def _cpu(capabilities: xml.Element, request: Request, hardware: domains.Hardware) -> str | None:
    """The CPU mode or model: what was asked for where this host has it, else the fullest that can be migrated."""
    modes = {m.get("name"): m for m in capabilities.iterfind("cpu/mode") if m.get("supported") == "yes"}
    if request.cpu is not None:
        models = {m.text: m.get("usable") for m in capabilities.iterfind("cpu/mode[@name='custom']/model")}
        if request.cpu not in modes and request.cpu not in models:
            raise UsageProblem(f"no CPU mode or model {request.cpu[:60]!a} on that host", "see 'virsh domcapabilities'")
        if models.get(request.cpu) == "no":
            raise Refused(f"that host cannot give a guest the CPU {request.cpu}: it lacks features of it")
        return request.cpu
    preferred = ("host-model", "host-passthrough") if hardware.virt == "kvm" else ("maximum",)
    return next((mode for mode in preferred if mode in modes), None)


def _without_password(domain: xml.Element) -> str:
    """The XML for people's eyes, as libvirt too hands it out."""
    shown = xml.parse(xml.raw(domain), "domain", "domain")
    for graphics in shown.iterfind("devices/graphics[@passwd]"):
        del graphics.attrib["passwd"]
    return xml.text(shown)


def described(plan_: Plan) -> dict[str, Any]:
    """The plan as ``--dry-run`` prints it."""
    return {
        "name": plan_.name,
        "uuid": plan_.uuid,
        "dry_run": True,
        "accel": plan_.accel.accel,
        "steps": plan_.steps(),
        "warnings": list(plan_.warnings),
        "xml": _without_password(plan_.domain),
    }
