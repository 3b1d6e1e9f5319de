"""What the device modules make, together in one domain, is valid for libvirt's own schema."""

from pathlib import Path

import pytest
from lxml import etree

from kvmctl.model import graphics, mdev, pci, xml
from kvmctl.model.firmware import Firmware, apply_firmware, tpm_element
from kvmctl.model.profile import Profile, apply_profile, tablet_element, usb_controller_element

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not there (libvirt0 brings it)")
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("profile", ["linux", "windows", "generic"])
@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-secure"])
def test_a_domain_of_it_all_is_valid(schema: etree.RelaxNG, profile: Profile, firmware: Firmware) -> None:
    domain = xml.new("domain", type_="qemu")
    xml.add(domain, "name", "all")
    xml.add(domain, "memory", 262144)
    xml.add(xml.add(domain, "os"), "type", "hvm", arch="x86_64", machine="q35")
    devices = xml.add(domain, "devices")
    apply_firmware(domain, firmware)
    apply_profile(domain, profile, "kvm", ("vpindex", "synic", "stimer", "reset", "frequencies", "tlbflush", "ipi"))
    devices.extend(pci.root_ports())
    devices.extend(
        [
            usb_controller_element(),
            tablet_element(),
            tpm_element(),
            graphics.graphics_element("vnc"),
            graphics.graphics_element("spice", tls=True),
            graphics.spice_channel_element(),
            graphics.video_element("virtio"),
            graphics.sound_element(),
            mdev.hostdev_element("4b20d080-1b54-4048-85b3-a6a62d165c01", display=True),
            pci.hostdev_element(pci.PciAddress(0, 1, 0, 0)),
        ]
    )
    again = xml.parse(xml.text(domain))
    assert schema.validate(again), schema.error_log.last_error
