"""Deciding how a new VM will be: everything that can be refused is refused here, before anything is made."""

import datetime
import uuid as uuids
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, ConnectionFailed, KvmctlError, NotFound, Refused, UsageProblem
from kvmctl.model import disk as media
from kvmctl.model import domain as domains
from kvmctl.model import nic as wires
from kvmctl.model import xml
from kvmctl.model.extras import ExtraDevice
from kvmctl.model.firmware import FIRMWARES, Firmware
from kvmctl.model.forward import written
from kvmctl.model.graphics import LOOPBACK
from kvmctl.model.metadata import Forward, Metadata, OwnedVolume
from kvmctl.model.names import check_new_name
from kvmctl.model.pci import PciAddress, PciSelector, check_count
from kvmctl.model.profile import Profile, hyperv_features
from kvmctl.model.units import MIB, human_size
from kvmctl.operations import claim, create_network, create_system, disk_sources, hypervisor_files, pools
from kvmctl.operations.images import Image
from kvmctl.operations.images import resolve as resolve_image
from kvmctl.operations.pci import choose
from kvmctl.operations.pci_host import judge_host
from kvmctl.operations.progress import Progress
from kvmctl.operations.seed import Seed, hostname_for
from kvmctl.preflight import osinfo, overcommit
from kvmctl.preflight.accel import AccelChoice, choose_accel

DEFAULT_MEMORY = 2048 * MIB
DEFAULT_VCPUS = 2
SMALLEST_MEMORY = 16 * MIB


@dataclass(frozen=True)
class Request:
    """What the user asked for, read and checked for itself but not yet against any hypervisor."""

    name: str
    image: str | None = None
    cdrom: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    import_: str | None = None
    pxe: bool = False
    vcpus: int | None = None
    max_vcpus: int | None = None
    memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    cpu: str | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    machine: str | None = None
    arch: str | None = None
    disks: tuple[media.DiskRequest, ...] = ()
    # None: nothing was said of networks; empty: none is wanted.
    nics: tuple[wires.Nic, ...] | None = None
    nic_model: str | None = None
    forwards: tuple[Forward, ...] = ()
    pci: tuple[PciSelector, ...] = ()
    firmware: Firmware | None = None
    tpm: bool | None = None
    profile: Profile | None = None
    os: str | None = None
    graphics: Literal["none", "vnc", "spice"] = "vnc"
    graphics_listen: str | None = None
    graphics_password: str | None = field(default=None, repr=False)
    devices: tuple[ExtraDevice, ...] = ()
    sound: bool = False
    title: str | None = None
    description: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    password_hash: str | None = None
    user_data: str | None = None
    hostname: str | None = None
    seed: bool | None = None
    autostart: bool = False
    start: bool = True
    strict: bool = False


@dataclass(frozen=True)
class VolumePlan:
    """A volume to be made: empty, over a backing image, or filled from ``upload``."""

    volume: OwnedVolume
    format: str
    capacity_bytes: int
    backing: Image | None = None
    upload: bytes | str | None = None
    mode: Literal["0600", "0644"] = "0600"


@dataclass(frozen=True)
class Plan:
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
    leftover: libvirt.virDomain | None = field(default=None, compare=False)

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
                told.append(f"make the empty disk {where}, {human_size(plan.capacity_bytes)}")
        told.append(f"define the VM {self.name} ({self.accel.accel})")
        told += [f"start the network {name}" for name in self.start_networks]
        told += [f"reserve {kept.ip} in the network {kept.network}" for kept in self.metadata.reservations]
        if self.start:
            told.append(f"start the VM {self.name}")
        told += [f"publish {written(forward)}" for forward in self.metadata.forwards]
        return told


def check(request: Request) -> None:
    """Raise UsageProblem for what is wrong whatever the hypervisor."""
    check_new_name(request.name)
    sources = [
        flag
        for flag, value in (("--image", request.image), ("--cdrom", request.cdrom), ("--import", request.import_))
        if value is not None
    ]
    if len(sources) > 1 and sources != ["--cdrom", "--import"]:
        raise UsageProblem(f"{' and '.join(sources)} do not go together", "give one of them")
    if not sources and not request.pxe and request.kernel is None:
        raise UsageProblem(
            "nothing was given to boot from", "give --image, --cdrom, --import, --kernel or --pxe ('kvmctl image list')"
        )
    if request.kernel is None and (request.initrd or request.cmdline):
        raise UsageProblem("--initrd and --cmdline go with --kernel")
    vcpus, memory = request.vcpus or DEFAULT_VCPUS, request.memory_bytes or DEFAULT_MEMORY
    if request.max_vcpus is not None and request.max_vcpus < vcpus:
        raise UsageProblem(f"{vcpus} vCPUs are more than their maximum of {request.max_vcpus}")
    if request.max_memory_bytes is not None and request.max_memory_bytes < memory:
        raise UsageProblem("the memory is more than its maximum")
    if memory < SMALLEST_MEMORY:
        raise UsageProblem(f"{human_size(memory)} of memory is less than any guest can start with", "give at least 16M")
    if request.user_data is not None and (request.user or request.password_hash or request.ssh_keys):
        raise UsageProblem("--user-data is the whole user-data: --user, --ssh-key and --password-file belong into it")
    if request.pxe and request.nics == ():
        raise UsageProblem("--pxe needs a network card", "leave out --net none")
    if request.forwards and request.nics == ():
        raise UsageProblem("-p needs a network card", "leave out --net none")
    check_count(0, len(request.pci))


def plan(hypervisor: Hypervisor, request: Request, progress: Progress | None = None, *, bring: bool = True) -> Plan:
    """Look at the hypervisor and decide. Raises NotFound, Conflict, Refused or UsageProblem; changes nothing.

    One exception: an image that is a URL or a file that is in no storage pool is brought into the pool of
    images first, where it stays for the next guest; without ``bring`` that is NotFound.
    """
    check(request)
    system = osinfo.find(request.os) if request.os is not None else None
    profile = request.profile or (system.profile if system is not None else "linux")
    leftover = claim.check_free(hypervisor, request.name)
    hardware, choice, capabilities = _hardware(hypervisor, request)
    _check_limits(capabilities, request)
    suited = create_system.suited(profile, hardware, system)
    uuid = str(uuids.uuid4())
    network = create_network.choose(
        hypervisor,
        request.nics,
        request.forwards,
        request.nic_model or suited.nic_model,
        leftover.UUIDString() if leftover is not None else None,
    )
    parts = _Parts(
        hypervisor,
        replace(request, profile=profile),
        suited.disk_bus,
        suited.cdrom_bus,
        leftover,
        progress or Progress(),
        bring,
    )
    parts.collect()
    metadata = Metadata(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        image=parts.image.name if parts.image else None,
        user=request.user,
        volumes=tuple(planned.volume for planned in parts.volumes),
        forwards=request.forwards,
        reservations=network.reservations,
    )
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
        graphics_password=request.graphics_password,
        extras=request.devices,
        sound=request.sound,
        os_url=system.url if system is not None else None,
        metadata=metadata,
    )
    sizes = [volume.capacity_bytes for volume in parts.volumes if volume.volume.role == "disk"]
    too_much: list[str] = []
    if request.start:
        promise = overcommit.Promise(spec.vcpus, spec.memory_bytes)
        too_much = overcommit.check(hypervisor, promise, strict=request.strict)
    too_little = create_system.too_little(spec, sizes, system)
    said = (choice.warning, *too_much, *too_little, *parts.warnings, *network.warnings)
    warnings = [text for text in said if text]
    return Plan(
        request.name,
        uuid,
        hardware,
        choice,
        domains.build(spec),
        tuple(parts.volumes),
        metadata,
        network.start,
        request.autostart,
        request.start,
        tuple(warnings),
        leftover,
    )


def _with_boot(element: xml.Element, request: Request, parts: "_Parts", index: int) -> xml.Element:
    """Give the first card its place in the boot order where the guest shall boot from the network."""
    if request.pxe and index == 0:
        # Of the elements in <interface> libvirt's schema lets <boot> stand anywhere.
        xml.add(element, "boot", order=parts.next_boot())
    return element


def _hardware(hypervisor: Hypervisor, request: Request) -> tuple[domains.Hardware, AccelChoice, xml.Element]:
    host = xml.parse(hypervisor.capabilities, "capabilities", "capabilities")
    arch = request.arch or host.findtext("host/cpu/arch") or "x86_64"
    guests = {g.get("name", ""): g for g in host.iterfind("guest/arch") if g.getparent().findtext("os_type") == "hvm"}  # type: ignore[union-attr]
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
    devices = choose(judge_host(hypervisor), request.pci, request.name)
    check_count(0, len(devices))
    return tuple(device.address for device in devices)


def _machine(guest: xml.Element, arch: str) -> str:
    """The machine type for new guests: PCI Express where the architecture has it, else what libvirt lists first."""
    known = [machine.text for machine in guest.iterfind("machine") if machine.text]
    wanted = "q35" if arch in ("x86_64", "i686") else "virt"
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


class _Parts:
    """The disks, seed and boot files of one plan, collected in the order in which the guest sees them."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        request: Request,
        bus: str,
        cdrom_bus: str,
        leftover: libvirt.virDomain | None,
        progress: Progress,
        bring: bool,
    ) -> None:
        self.hypervisor, self.request, self.progress, self.bring = hypervisor, request, progress, bring
        self.bus, self.cdrom_bus, self.leftover = bus, cdrom_bus, leftover
        self.volumes: list[VolumePlan] = []
        self.disks: list[xml.Element] = []
        self.warnings: list[str] = []
        self.image: Image | None = None
        self.kernel: str | None = None
        self.initrd: str | None = None
        self._targets: set[str] = set()
        self._boot = 0

    def next_boot(self) -> int:
        """The next place in the boot order."""
        self._boot += 1
        return self._boot

    def collect(self) -> None:
        """Everything, root disk first: it keeps its name whatever comes after it."""
        request = self.request
        more = list(request.disks)
        if request.image is not None:
            self._root_over_image(more)
        elif request.import_ is not None:
            self._existing(media.ExistingDisk(request.import_), boot=True)
        for index, wanted in enumerate(more):
            # Without an image the first disk is the one an installer fills and the guest then boots from.
            boots = index == 0 and not self.disks and request.kernel is None
            if isinstance(wanted, media.NewDisk):
                self._new(wanted, boot=boots)
            else:
                self._existing(wanted, boot=boots)
        if request.cdrom is not None:
            self._cdrom(request.cdrom)
        if request.kernel is not None:
            self.kernel = self._boot_file(request.kernel, "kernel")
            self.initrd = self._boot_file(request.initrd, "initrd") if request.initrd else None
        if self._wants_seed():
            self._seed()

    def _wants_seed(self) -> bool:
        request = self.request
        told = request.user or request.ssh_keys or request.password_hash or request.user_data or request.hostname
        if request.seed is not None:
            if told and not request.seed:
                raise UsageProblem("--no-seed leaves nobody to read --user, --ssh-key, --user-data or --hostname")
            return request.seed
        return bool(told) or (request.image is not None and request.profile != "windows")

    def _root_over_image(self, more: list[media.DiskRequest]) -> None:
        assert self.request.image is not None
        image = resolve_image(self.hypervisor, self.request.image, self.progress, bring=self.bring)
        self.image = image
        root = more.pop(0) if more and isinstance(more[0], media.NewDisk) else media.NewDisk(image.virtual_size_bytes)
        assert isinstance(root, media.NewDisk)
        if root.size_bytes < image.virtual_size_bytes:
            raise UsageProblem(
                f"a disk of {human_size(root.size_bytes)} is smaller than the image {image.name}, "
                f"{human_size(image.virtual_size_bytes)}",
                "give a larger --disk, or none for the image's own size",
            )
        if root.format == "raw":
            raise UsageProblem("a disk over an image is copy-on-write, which raw cannot be", "leave out format=raw")
        self._new(root, boot=self.request.kernel is None, backing=image)

    def _new(self, wanted: media.NewDisk, boot: bool, backing: Image | None = None) -> None:
        format_ = wanted.format or "qcow2"
        number = sum(planned.volume.role == "disk" for planned in self.volumes)
        suffix = f"-{number}" if number else ""
        name = f"{self.request.name}{suffix}.{'qcow2' if format_ == 'qcow2' else 'img'}"
        volume, source = self._free_volume(wanted.pool, name, "disk")
        self.volumes.append(VolumePlan(volume, format_, wanted.size_bytes, backing))
        self._add(source, format_, wanted.tuning, boot)

    def _existing(self, wanted: media.ExistingDisk, boot: bool) -> None:
        source, format_ = disk_sources.existing(self.hypervisor, wanted)
        if not (wanted.tuning.readonly or wanted.tuning.shareable):
            disk_sources.refuse_shared(self.hypervisor, source.path)
        self._add(source, format_, wanted.tuning, boot)

    def _cdrom(self, path: str) -> None:
        tuning = media.DiskTuning(readonly=True, device="cdrom")
        source, head = self._hypervisor_or_upload(path, "ISO", "cdrom", ".iso", disk_sources.HEAD)
        disk_sources.check_iso(path, head)
        self._add(source, "raw", tuning, boot=True, bus=self.cdrom_bus)

    def _boot_file(self, path: str, what: str) -> str:
        source, head = self._hypervisor_or_upload(path, what, what, "", 512)
        if not head:
            raise UsageProblem(f"the {what} {path[:200]!a} is empty")
        return source.path

    def _hypervisor_or_upload(
        self, path: str, what: str, role: str, suffix: str, head: int
    ) -> tuple[media.Source, bytes]:
        """The file where the hypervisor has it, else this machine's, to be uploaded for this guest alone."""
        local = path if path.startswith("/") else None
        if local is None and not self.hypervisor.is_remote:
            local = hypervisor_files.absolute(self.hypervisor, path)
        if local is not None:
            found = hypervisor_files.look(self.hypervisor, local, head)
            if found is not None:
                return media.Source(found.kind, found.path), found.head
        from pathlib import Path

        mine = Path(path)
        if not mine.is_file():
            raise NotFound(f"there is no {what} {path[:200]!a}, neither here nor on the host of {self.hypervisor.uri}")
        with mine.open("rb") as file:
            beginning = file.read(head)
        volume, source = self._free_volume(None, f"{self.request.name}-{role}{suffix}", "other")
        self.volumes.append(VolumePlan(volume, "raw", mine.stat().st_size, upload=str(mine.absolute()), mode="0644"))
        return source, beginning

    def _seed(self) -> None:
        request = self.request
        from kvmctl.operations import seed as seeds

        hostname = request.hostname or hostname_for(request.name)
        seed = Seed(
            str(uuids.uuid4()), hostname, request.user, request.ssh_keys, request.password_hash, request.user_data
        )
        content = seeds.build(seed)
        volume, source = self._free_volume(None, f"{request.name}-seed.iso", "seed")
        self.volumes.append(VolumePlan(volume, "raw", len(content), upload=content))
        # A CD drive would be the natural place, but Debian's cloud kernel has no driver for AHCI. Where the
        # guest's disks are on SATA or IDE it has one, and there libvirt takes no disk that is read-only.
        drive = self.bus in ("sata", "ide")
        self._add(source, "raw", media.DiskTuning(readonly=True, device="cdrom" if drive else "disk"), boot=False)

    def _free_volume(
        self, pool_name: str | None, name: str, role: Literal["disk", "seed", "other"]
    ) -> tuple[OwnedVolume, media.Source]:
        """A volume name that nothing has yet, and where the volume will be."""
        place = pools.place(self.hypervisor, pool_name or pools.DEFAULT)
        with translated(self.hypervisor.uri):
            listed = metadata_volumes(self.leftover)
            taken = place.pool is not None and pools.find_volume(place.pool, name) is not None
            if taken and (place.name, name) not in listed:
                raise Conflict(
                    f"the storage pool {place.name} has a volume {name} that no VM of kvmctl's owns",
                    "choose another VM name, or see whose it is with 'virsh vol-info'",
                )
        source, path = disk_sources.in_place(place, name)
        return OwnedVolume(place.name, name, path, role), source

    def _add(
        self, source: media.Source, format_: str, tuning: media.DiskTuning, boot: bool, bus: str | None = None
    ) -> None:
        chosen = tuning.bus or bus or (self.cdrom_bus if tuning.device == "cdrom" else self.bus)
        target = media.next_target(chosen, self._targets)
        order = self.next_boot() if boot else None
        self.disks.append(media.disk_element(source, target, chosen, format_, tuning, order))


def metadata_volumes(domain: libvirt.virDomain | None) -> set[tuple[str, str]]:
    """(pool, name) of the volumes that ``domain`` lists as its own."""
    from kvmctl.operations import metadata

    return {(v.pool, v.name) for v in metadata.read(domain).volumes} if domain is not None else set()


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
