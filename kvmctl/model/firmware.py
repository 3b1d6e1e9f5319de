"""BIOS, UEFI, secure boot and the TPM. libvirt itself picks the files, from the host's firmware descriptors."""

from typing import Literal

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

Firmware = Literal["bios", "uefi", "uefi-secure"]
FIRMWARES: tuple[Firmware, ...] = ("bios", "uefi", "uefi-secure")

_X86 = ("x86_64", "i686")


def apply_firmware(domain: xml.Element, firmware: Firmware) -> None:
    """Set ``firmware`` in a whole ``<domain>``, replacing what it said of firmware before.

    ``uefi`` asks for one without secure boot, ``uefi-secure`` for one that has it with the vendor's and
    Microsoft's keys enrolled. Raises UsageProblem where the machine cannot have it: bios exists on x86
    alone, and secure boot there needs q35 for its system management mode.
    """
    os = domain.find("os")
    assert os is not None, "the domain has <os>"
    type_ = os.find("type")
    arch = type_.get("arch", "x86_64") if type_ is not None else "x86_64"
    machine = type_.get("machine", "") if type_ is not None else ""
    if firmware == "bios" and arch not in _X86:
        raise UsageProblem(f"there is no BIOS for {arch}", "use --firmware uefi")
    if firmware == "uefi-secure" and arch in _X86 and "q35" not in machine:
        raise UsageProblem(
            f"secure boot needs the machine type q35, not {machine or 'the default'}", "use --machine q35"
        )
    _clear(domain, os)
    if firmware == "bios":
        return
    os.set("firmware", "efi")
    secure = firmware == "uefi-secure"
    features = xml.new("firmware")
    # Said for the plain kind too: libvirt would take the first that fits, and that may be one with keys enrolled.
    xml.add(features, "feature", enabled="yes" if secure else "no", name="secure-boot")
    if secure:
        xml.add(features, "feature", enabled="yes", name="enrolled-keys")
    place = os.index(type_) + 1 if type_ is not None else 0
    os.insert(place, features)
    if secure and arch in _X86:
        os.insert(place + 1, xml.new("loader", secure="yes"))
        xml.add(_features(domain), "smm", state="on")


def firmware_of(domain: xml.Element) -> Firmware:
    """Which of the three a ``<domain>`` has, whether libvirt chose the files or somebody named them."""
    os = domain.find("os")
    if os is None:
        return "bios"
    loader = os.find("loader")
    efi = os.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    if not efi:
        return "bios"
    wanted = os.find("firmware/feature[@name='secure-boot']")
    if wanted is not None:
        return "uefi-secure" if wanted.get("enabled") == "yes" else "uefi"
    return "uefi-secure" if loader is not None and loader.get("secure") == "yes" else "uefi"


def tpm_element(arch: str = "x86_64") -> xml.Element:
    """A TPM 2.0 that swtpm emulates: CRB on x86 (what Windows 11 wants), TIS on Arm, SPAPR on POWER."""
    model = "tpm-crb" if arch in _X86 else "tpm-spapr" if arch.startswith("ppc") else "tpm-tis"
    tpm = xml.new("tpm", model=model)
    xml.add(tpm, "backend", type_="emulator", version="2.0")
    return tpm


def _clear(domain: xml.Element, os: xml.Element) -> None:
    os.attrib.pop("firmware", None)
    for tag in ("firmware", "loader", "nvram"):
        for old in os.findall(tag):
            os.remove(old)
    for old in domain.findall("features/smm"):
        _features(domain).remove(old)


def _features(domain: xml.Element) -> xml.Element:
    features = domain.find("features")
    return features if features is not None else xml.add(domain, "features")
