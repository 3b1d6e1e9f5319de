"""Every domain that create can make is valid against libvirt's own schema."""

import itertools
from pathlib import Path

import pytest
from lxml import etree

from kvmctl.model import disk, domain, nic, xml
from kvmctl.model.firmware import FIRMWARES, Firmware
from kvmctl.model.metadata import Forward, Metadata, OwnedVolume, from_domain
from kvmctl.model.pci import PciAddress
from kvmctl.model.profile import PROFILES, Profile, defaults

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
UUID = "7a1a2c0e-7f0e-4c39-9f5c-2c8a8f4f0a11"

NICS = (
    "user",
    "nat,model=e1000",
    "network:lan,mac=52:54:00:12:34:56",
    "bridge:br0,model=rtl8139",
    "macvtap:eth0:private",
)
DISKS = (
    ("10G", "virtio", disk.Source("file", "/var/lib/libvirt/images/a.qcow2")),
    ("10G,bus=scsi,cache=none,discard=unmap,serial=one", "scsi", disk.Source("block", "/dev/vg/a")),
    ("10G,bus=sata,readonly", "sata", disk.Source("volume", "a", "rbd", "a")),
)


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    assert SCHEMA.exists(), "libvirt's schemas come with the package libvirt0/libvirt-daemon; tests/run.sh installs it"
    return etree.RelaxNG(etree.parse(SCHEMA))


def spec(
    profile: Profile = "linux", firmware: Firmware = "bios", machine: str = "q35", virt: str = "qemu"
) -> domain.DomainSpec:
    tuned = [disk.parse_disk(text) for text, _, _ in DISKS]
    taken: set[str] = set()
    return domain.DomainSpec(
        name="web",
        uuid=UUID,
        hardware=domain.Hardware("kvm" if virt == "kvm" else "qemu", "x86_64", machine, "/usr/bin/qemu-system-x86_64"),
        defaults=defaults(profile, "x86_64", machine),
        memory_bytes=2**31,
        max_memory_bytes=2**32,
        vcpus=2,
        max_vcpus=4,
        cpu="maximum",
        title="a <title> & more",
        description="two\nlines",
        profile=profile,
        hyperv=("relaxed", "vpindex", "synic", "stimer"),
        firmware=firmware,
        tpm=True,
        kernel="/boot/vmlinuz",
        initrd="/boot/initrd",
        cmdline="a=1 b='2'",
        disks=tuple(
            disk.disk_element(source, disk.next_target(bus, taken), bus, "raw", wanted.tuning, order + 1)
            for order, ((_, bus, source), wanted) in enumerate(zip(DISKS, tuned, strict=True))
        ),
        nics=tuple(nic.to_element(card) for text in NICS if (card := nic.parse_nic(text)) is not None),
        pci=(PciAddress.parse("01:00.0"),),
        graphics="spice",
        sound=True,
        os_url="http://debian.org/debian/12",
        metadata=Metadata(
            created="2024-01-01T00:00:00+00:00",
            image="debian-12",
            volumes=(OwnedVolume("default", "web.qcow2", "/x/web.qcow2"),),
            forwards=(Forward("tcp", 8080, 80), Forward("udp", 53, 53, "127.0.0.1")),
        ),
    )


@pytest.mark.parametrize(("profile", "firmware", "virt"), list(itertools.product(PROFILES, FIRMWARES, ("kvm", "qemu"))))
def test_libvirts_schema_takes_it(schema: etree.RelaxNG, profile: Profile, firmware: Firmware, virt: str) -> None:
    tree = xml.parse(xml.text(domain.build(spec(profile, firmware, virt=virt))))
    assert schema.validate(tree), schema.error_log


def test_the_schema_would_notice(schema: etree.RelaxNG) -> None:
    tree = domain.build(spec())
    xml.add(tree, "nonsense")
    assert not schema.validate(xml.parse(xml.text(tree)))


def test_pc_machine_has_no_pcie_ports(schema: etree.RelaxNG) -> None:
    tree = xml.parse(xml.text(domain.build(spec(machine="pc"))))
    assert tree.find("devices/controller[@model='pcie-root-port']") is None
    assert schema.validate(tree), schema.error_log


def test_placeholder_is_valid_and_remembers(schema: etree.RelaxNG) -> None:
    metadata = Metadata(volumes=(OwnedVolume("default", "a", None, "seed"),))
    tree = xml.parse(xml.text(domain.placeholder("web", UUID, domain.Hardware("qemu", "x86_64", "q35"), metadata)))
    assert schema.validate(tree), schema.error_log
    assert from_domain(tree) == metadata


def test_texts_cannot_become_markup() -> None:
    tree = xml.parse(xml.text(domain.build(spec())))
    assert tree.findtext("title") == "a <title> & more"
    assert tree.findtext("description") == "two\nlines"
    assert [child.tag for child in tree].count("title") == 1
