"""What suits a kind of guest: the machine's clock, features and the models of its devices.

The choices are those of virt-install 4.1 for the same guest; docs/windows.md compares them point by point.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

from kvmctl.model import xml
from kvmctl.model.firmware import Firmware

Profile = Literal["linux", "windows", "generic"]
PROFILES: tuple[Profile, ...] = ("linux", "windows", "generic")

# What QEMU starts with whatever the accelerator. virt-install always sets these three for Windows.
_HYPERV_ANYWHERE = ("relaxed", "vapic", "spinlocks")
# Each needs something of KVM in the kernel ("kernel doesn't allow setting HyperV VP_INDEX" without), so only
# what the domain capabilities name is set. In this order, since synic needs vpindex and stimer needs both.
_HYPERV_WITH_KVM = (
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
)
_HYPERV_NEEDS = {
    "synic": ("vpindex",),
    "stimer": ("vpindex", "synic"),
    "tlbflush": ("vpindex",),
    "ipi": ("vpindex",),
}
# The number of tries before a spinning CPU tells the hypervisor; Microsoft's recommended 0x1fff.
_SPINLOCK_RETRIES = 8191


class Defaults(NamedTuple):
    """The models to use where the user named none. Buses and models are libvirt's names.

    ``tpm`` and ``firmware`` are what the guest's installer insists on; ``driver_cd`` whether a second CD
    with the virtio drivers helps its installer; ``min_memory`` (bytes) and ``min_vcpus`` what it needs.
    """

    disk_bus: str
    cdrom_bus: str
    nic_model: str
    video: str
    sound: str
    firmware: Firmware
    tpm: bool
    rng: bool
    balloon: bool
    agent: bool
    driver_cd: bool
    min_vcpus: int = 1
    min_memory: int = 0


def defaults(profile: Profile, arch: str = "x86_64", machine: str = "q35") -> Defaults:
    """The device models and the firmware for ``profile`` on that machine.

    Windows has drivers for SATA and e1000e within its installer, and none for virtio. ``generic`` is a
    guest that nothing is known of: real hardware that every system since long has drivers for.
    """
    pcie = "q35" in machine or machine.startswith("virt")
    x86 = arch in ("x86_64", "i686")
    cdrom = "sata" if x86 and pcie else "ide" if x86 else "scsi"
    firmware: Firmware = "bios" if x86 else "uefi"
    if profile == "linux":
        return Defaults("virtio", cdrom, "virtio", "virtio", _sound(pcie), firmware, False, True, True, True, False)
    nic = "e1000e" if pcie else "e1000"
    video = "vga" if x86 else "virtio"
    if profile == "generic":
        # Only x86's machines have AHCI and VGA to fall back on; elsewhere virtio is what everybody has.
        bus = cdrom if x86 else "virtio"
        return Defaults(
            bus, cdrom, nic if x86 else "virtio", video, _sound(pcie), firmware, False, False, True, False, False
        )
    return Defaults(
        disk_bus=cdrom if x86 else "virtio",
        cdrom_bus=cdrom,
        nic_model=nic,
        video=video,
        sound=_sound(pcie),
        firmware="uefi-secure" if x86 and pcie else firmware,
        tpm=pcie or not x86,
        rng=False,
        balloon=True,
        agent=True,
        driver_cd=True,
        # What Microsoft's installer of Windows 11 refuses to go below.
        min_vcpus=2,
        min_memory=4 * 1024**3,
    )


def apply_profile(
    domain: xml.Element, profile: Profile, accel: Literal["kvm", "tcg"], hyperv: Collection[str] = ()
) -> None:
    """Set features, clock, power management and the tablet in a whole ``<domain>`` of x86; on others its clock.

    ``hyperv`` are the enlightenments that libvirt's domain capabilities name for this guest (see
    hyperv_features()). What the domain says already of any of these stays.
    """
    type_ = domain.find("os/type")
    x86 = type_ is None or type_.get("arch", "x86_64") in ("x86_64", "i686")
    windows = profile == "windows"
    if x86:
        features = _child(domain, "features")
        for tag in ("acpi", "apic"):
            _child(features, tag)
        if windows:
            _enlighten(features, accel, hyperv)
        if features.find("vmport") is None:
            # VMware's backdoor: it only ever confuses a mouse here.
            xml.add(features, "vmport", state="off")
    _set_clock(domain, windows, x86)
    if x86 and domain.find("pm") is None:
        power = xml.add(domain, "pm")
        xml.add(power, "suspend-to-mem", enabled="no")
        xml.add(power, "suspend-to-disk", enabled="no")


def tablet_element() -> xml.Element:
    """A pointer with absolute positions, so that a viewer's mouse and the guest's agree."""
    return xml.new("input", type_="tablet", bus="usb")


def usb_controller_element() -> xml.Element:
    """An xHCI controller with room for what may be plugged in: 15 ports, as virt-install has it."""
    return xml.new("controller", type_="usb", model="qemu-xhci", ports=15)


def hyperv_features(capabilities: xml.Element) -> frozenset[str]:
    """The enlightenments that a ``<domainCapabilities>`` names."""
    return frozenset(
        value.text
        for value in capabilities.iterfind("features/hyperv[@supported='yes']/enum[@name='features']/value")
        if value.text
    )


def _enlighten(features: xml.Element, accel: str, supported: Collection[str]) -> None:
    if features.find("hyperv") is not None:
        return
    hyperv = xml.add(features, "hyperv")
    for name in _HYPERV_ANYWHERE:
        xml.add(hyperv, name, state="on", retries=_SPINLOCK_RETRIES if name == "spinlocks" else None)
    if accel != "kvm":
        return
    for name in _HYPERV_WITH_KVM:
        if name in supported and all(need in supported for need in _HYPERV_NEEDS.get(name, ())):
            xml.add(hyperv, name, state="on")


def _set_clock(domain: xml.Element, windows: bool, x86: bool) -> None:
    if domain.find("clock") is not None:
        return
    clock = xml.add(domain, "clock", offset="localtime" if windows else "utc")
    if not x86:
        return
    xml.add(clock, "timer", name="rtc", tickpolicy="catchup")
    xml.add(clock, "timer", name="pit", tickpolicy="delay")
    xml.add(clock, "timer", name="hpet", present="no")
    if windows:
        xml.add(clock, "timer", name="hypervclock", present="yes")


def _child(parent: xml.Element, tag: str) -> xml.Element:
    found = parent.find(tag)
    return found if found is not None else xml.add(parent, tag)


def _sound(pcie: bool) -> str:
    return "ich9" if pcie else "ich6"
