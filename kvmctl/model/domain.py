"""A new guest's ``<domain>``, put together from what was decided. No decision is made here."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from kvmctl.model import graphics as screen
from kvmctl.model import metadata as remembered
from kvmctl.model import xml
from kvmctl.model.extras import ExtraDevice, add_to
from kvmctl.model.firmware import Firmware, apply_firmware, tpm_element
from kvmctl.model.pci import PciAddress, hostdev_element, root_ports
from kvmctl.model.profile import Defaults, Profile, apply_profile, tablet_element, usb_controller_element

# The namespace in which libosinfo's users (virt-manager, virt-install) keep a guest's operating system.
LIBOSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
# Modes that libvirt has for a CPU; anything else is a model's name.
CPU_MODES = ("host-passthrough", "host-model", "maximum")
# Free PCI Express root ports for what is plugged in later; virt-install leaves as many.
SPARE_ROOT_PORTS = 14


class Hardware(NamedTuple):
    """The kind of machine: ``virt`` is libvirt's domain type (kvm or qemu)."""

    virt: Literal["kvm", "qemu"]
    arch: str
    machine: str
    emulator: str | None = None


class DomainSpec(NamedTuple):
    """Everything that goes into the XML. Sizes are bytes; ``disks`` and ``nics`` are finished elements."""

    name: str
    uuid: str
    hardware: Hardware
    defaults: Defaults
    memory_bytes: int
    vcpus: int
    max_memory_bytes: int | None = None
    max_vcpus: int | None = None
    cpu: str | None = None
    title: str | None = None
    description: str | None = None
    profile: Profile = "linux"
    hyperv: Collection[str] = ()
    firmware: Firmware = "bios"
    tpm: bool = False
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    disks: tuple[xml.Element, ...] = ()
    nics: tuple[xml.Element, ...] = ()
    pci: tuple[PciAddress, ...] = ()
    graphics: Literal["none", "vnc", "spice"] = "vnc"
    graphics_listen: str = screen.LOOPBACK
    graphics_tls: bool = False
    video: str | None = None
    graphics_password: str | None = None
    extras: tuple[ExtraDevice, ...] = ()
    sound: bool = False
    os_url: str | None = None
    metadata: remembered.Metadata = remembered.Metadata()

    def __repr__(self) -> str:
        """Without the password, which must not be seen in a traceback."""
        return f"{type(self).__name__}(name={self.name!r})"


def placeholder(name: str, uuid: str, hardware: Hardware, metadata: remembered.Metadata) -> xml.Element:
    """The smallest domain that holds ``name`` while the guest's disks are still being made."""
    domain = xml.new("domain", type_=hardware.virt)
    xml.add(domain, "name", name)
    xml.add(domain, "uuid", uuid)
    xml.add(domain, "memory", 1024, unit="KiB")
    os = xml.add(domain, "os")
    xml.add(os, "type", "hvm", arch=hardware.arch, machine=hardware.machine)
    remembered.put(domain, metadata)
    return domain


def build(spec: DomainSpec) -> xml.Element:
    """The whole ``<domain>``."""
    hardware = spec.hardware
    domain = xml.new("domain", type_=hardware.virt)
    xml.add(domain, "name", spec.name)
    xml.add(domain, "uuid", spec.uuid)
    if spec.title:
        xml.add(domain, "title", spec.title)
    if spec.description:
        xml.add(domain, "description", spec.description)
    if spec.os_url:
        holder = xml.add(domain, "metadata")
        info = xml.etree.SubElement(holder, f"{{{LIBOSINFO}}}libosinfo", nsmap={"libosinfo": LIBOSINFO})
        xml.add(info, f"{{{LIBOSINFO}}}os", id=spec.os_url)
    xml.add(domain, "memory", (spec.max_memory_bytes or spec.memory_bytes) // 1024, unit="KiB")
    xml.add(domain, "currentMemory", spec.memory_bytes // 1024, unit="KiB")
    current = spec.vcpus if spec.max_vcpus and spec.max_vcpus != spec.vcpus else None
    xml.add(domain, "vcpu", spec.max_vcpus or spec.vcpus, current=current)
    os = xml.add(domain, "os")
    xml.add(os, "type", "hvm", arch=hardware.arch, machine=hardware.machine)
    for tag, value in (("kernel", spec.kernel), ("initrd", spec.initrd), ("cmdline", spec.cmdline)):
        if value:
            xml.add(os, tag, value)
    apply_firmware(domain, spec.firmware)
    _cpu(domain, spec.cpu)
    apply_profile(domain, spec.profile, "kvm" if hardware.virt == "kvm" else "tcg", spec.hyperv)
    remembered.put(domain, spec.metadata)
    domain.append(_devices(spec))
    add_to(domain, spec.extras)
    return domain


def _cpu(domain: xml.Element, cpu: str | None) -> None:
    if cpu is None:
        return
    if cpu in CPU_MODES:
        # Without check='none' a guest on "maximum" could not be migrated: libvirt would compare the whole CPU.
        check = "partial" if cpu == "host-model" else "none"
        xml.add(domain, "cpu", mode=cpu, check=check)
        return
    element = xml.add(domain, "cpu", mode="custom", match="exact", check="partial")
    xml.add(element, "model", cpu, fallback="forbid")


def _devices(spec: DomainSpec) -> xml.Element:
    hardware, defaults = spec.hardware, spec.defaults
    devices = xml.new("devices")
    if hardware.emulator:
        xml.add(devices, "emulator", hardware.emulator)
    pcie = "q35" in hardware.machine or hardware.machine.startswith("virt")
    if pcie:
        for port in root_ports(SPARE_ROOT_PORTS):
            devices.append(port)
    devices.append(usb_controller_element())
    if any(disk.find("target[@bus='scsi']") is not None for disk in spec.disks):
        xml.add(devices, "controller", type_="scsi", model="virtio-scsi")
    for element in (*spec.disks, *spec.nics):
        devices.append(element)
    xml.add(xml.add(devices, "serial", type_="pty"), "target", port=0)
    xml.add(xml.add(devices, "console", type_="pty"), "target", type_="serial", port=0)
    if defaults.agent:
        channel = xml.add(devices, "channel", type_="unix")
        xml.add(channel, "target", type_="virtio", name="org.qemu.guest_agent.0")
    if spec.graphics != "none":
        devices.append(
            screen.graphics_element(spec.graphics, spec.graphics_listen, spec.graphics_password, tls=spec.graphics_tls)
        )
        devices.append(screen.video_element(spec.video or defaults.video))
        devices.append(tablet_element())
        if spec.graphics == "spice":
            devices.append(screen.spice_channel_element())
    if spec.sound:
        devices.append(screen.sound_element(defaults.sound))
    if spec.tpm:
        devices.append(tpm_element(hardware.arch))
    if defaults.rng:
        rng = xml.add(devices, "rng", model="virtio")
        xml.add(rng, "backend", "/dev/urandom", model="random")
    if defaults.balloon:
        # QEMU asks the guest's driver this often, in seconds, so that overcommit can be seen.
        xml.add(xml.add(devices, "memballoon", model="virtio"), "stats", period=10)
    for address in spec.pci:
        devices.append(hostdev_element(address))
    return devices
