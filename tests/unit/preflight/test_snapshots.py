"""What cannot be in a snapshot is named."""

import pytest

from kvmctl.model import xml
from kvmctl.preflight import snapshots

GUEST = "<domain type='qemu'><os/><devices>{}</devices></domain>"
DISK = "<disk type='file' device='disk'><driver type='{}'/><source file='/d'/><target dev='vda' bus='virtio'/>{}</disk>"


def tree(devices: str) -> xml.Element:
    return xml.parse(GUEST.format(devices))


def test_a_plain_qcow2_disk_can_be_in_either_kind() -> None:
    domain = tree(DISK.format("qcow2", ""))
    assert snapshots.against_disks(domain, "internal") == snapshots.against_disks(domain, "external") == []
    assert snapshots.against_memory(domain) == []
    assert not snapshots.has_nvram(domain)


def test_raw_goes_only_outside() -> None:
    domain = tree(DISK.format("raw", ""))
    assert snapshots.against_disks(domain, "internal") == ["the disk vda is raw, and only qcow2 holds snapshots inside"]
    assert snapshots.against_disks(domain, "external") == []


@pytest.mark.parametrize(("tag", "word"), [("<shareable/>", "shared"), ("<transient/>", "transient")])
def test_disks_that_can_be_in_neither(tag: str, word: str) -> None:
    for kind in ("internal", "external"):
        (reason,) = snapshots.against_disks(tree(DISK.format("qcow2", tag)), kind)
        assert word in reason


def test_read_only_disks_do_not_matter() -> None:
    domain = tree(DISK.format("raw", "<readonly/>"))
    assert snapshots.against_disks(domain, "internal") == []
    assert not snapshots.has_written_disks(domain)


@pytest.mark.parametrize(
    ("device", "word"),
    [
        ("<hostdev type='pci'/>", "pci"),
        ("<interface type='hostdev'><mac address='52:54:00:00:00:01'/></interface>", "52:54:00:00:00:01"),
        ("<tpm model='tpm-crb'/>", "TPM"),
        ("<filesystem><driver type='virtiofs'/><target dir='src'/></filesystem>", "src (virtiofs)"),
    ],
)
def test_devices_with_state_of_their_own_are_named(device: str, word: str) -> None:
    (reason,) = snapshots.against_memory(tree(device))
    assert word in reason


@pytest.mark.parametrize(
    "os", ["<os firmware='efi'/>", "<os><loader type='pflash'/></os>", "<os><nvram>/n</nvram></os>"]
)
def test_uefi_is_seen(os: str) -> None:
    assert snapshots.has_nvram(xml.parse(f"<domain>{os}</domain>"))
