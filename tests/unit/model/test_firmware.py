import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.firmware import Firmware, apply_firmware, firmware_of, tpm_element

Q35 = "<domain><os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os></domain>"


@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-secure"])
def test_each_reads_back(firmware: Firmware) -> None:
    domain = xml.parse(Q35)
    apply_firmware(domain, firmware)
    assert firmware_of(domain) == firmware
    assert domain.find("os/boot") is not None


def test_secure_boot_asks_for_enrolled_keys_and_smm() -> None:
    domain = xml.parse(Q35)
    apply_firmware(domain, "uefi-secure")
    features = {f.get("name"): f.get("enabled") for f in domain.iterfind("os/firmware/feature")}
    assert features == {"secure-boot": "yes", "enrolled-keys": "yes"}
    assert domain.find("features/smm[@state='on']") is not None


def test_going_back_leaves_nothing_of_uefi() -> None:
    domain = xml.parse(Q35)
    apply_firmware(domain, "uefi-secure")
    nvram = domain.find("os")
    assert nvram is not None
    xml.add(nvram, "nvram", "/var/lib/x")
    apply_firmware(domain, "bios")
    assert domain.find("os/nvram") is None
    assert domain.find("os/loader") is None
    assert domain.find("os[@firmware]") is None
    assert domain.find("features/smm") is None


@pytest.mark.parametrize(
    ("arch", "machine", "firmware", "why"),
    [
        ("x86_64", "pc", "uefi-secure", "q35"),
        ("x86_64", "", "uefi-secure", "q35"),
        ("aarch64", "virt", "bios", "no BIOS for aarch64"),
    ],
)
def test_what_a_machine_cannot_have_is_refused(arch: str, machine: str, firmware: Firmware, why: str) -> None:
    domain = xml.parse(f"<domain><os><type arch='{arch}' machine='{machine}'>hvm</type></os></domain>")
    before = xml.raw(domain)
    with pytest.raises(UsageProblem, match=why):
        apply_firmware(domain, firmware)
    assert xml.raw(domain) == before


def test_an_arm_guest_gets_uefi_without_x86s_features() -> None:
    domain = xml.parse("<domain><os><type arch='aarch64' machine='virt'>hvm</type></os></domain>")
    apply_firmware(domain, "uefi")
    assert firmware_of(domain) == "uefi"
    assert domain.find("os/firmware/feature[@name='secure-boot'][@enabled='no']") is not None
    apply_firmware(domain, "uefi-secure")
    assert firmware_of(domain) == "uefi-secure"
    assert domain.find("features/smm") is None
    assert domain.find("os/loader") is None


def test_firmware_that_somebody_named_by_its_file() -> None:
    domain = xml.parse(
        "<domain><os><type>hvm</type><loader readonly='yes' secure='yes' type='pflash'>/x</loader></os></domain>"
    )
    assert firmware_of(domain) == "uefi-secure"


@pytest.mark.parametrize(("arch", "model"), [("x86_64", "tpm-crb"), ("aarch64", "tpm-tis"), ("ppc64le", "tpm-spapr")])
def test_tpm_model(arch: str, model: str) -> None:
    tpm = tpm_element(arch)
    assert tpm.get("model") == model
    assert tpm.find("backend[@type='emulator'][@version='2.0']") is not None
