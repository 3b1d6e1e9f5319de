"""Which devices a user's words mean, and what speaks against each, on a copied host."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import xml
from kvmctl.model.host_pci import HostPci
from kvmctl.model.pci import PciAddress, PciSelector
from kvmctl.operations.pci import choose, free_root_ports
from kvmctl.preflight.pci import Judge, User
from kvmctl.preflight.pci_sysfs import read
from tests.unit.preflight.pci_tree import PciTree

Choose = Callable[..., list[str]]


@pytest.fixture
def devices(tmp_path: Path) -> list[HostPci]:
    tree = PciTree(tmp_path)
    tree.device("0000:00:01.0", "8086:1901", "060400", "pcieport", group=1)
    tree.device("0000:01:00.0", "10de:1e87", "030000", "nouveau", group=1)
    tree.device("0000:01:00.1", "10de:10f8", "040300", "snd_hda_intel", group=1)
    tree.device("0000:02:00.0", "8086:1521", "020000", "igb", group=2, sriov_totalvfs="7")
    tree.device("0000:03:00.0", "8086:1521", "020000", "igb", group=3)
    tree.device("0000:04:00.0", "8086:10ed", "020000", "ixgbe", group=4, sriov_totalvfs="63")
    for index in range(2):
        address = f"0000:04:10.{index}"
        tree.device(address, "8086:1515", "020000", "ixgbevf", group=40 + index)
        tree.link(address, "physfn", "0000:04:00.0").link("0000:04:00.0", f"virtfn{index}", address)
    tree.device("0000:05:00.0", "144d:a808", "010802", "nvme", group=5).disk("nvme0n1", "0000:05:00.0")
    tree.proc("mounts", "rpool / zfs rw 0 0\n")
    return read(tmp_path)


@pytest.fixture
def pick(devices: list[HostPci]) -> Choose:
    def run(
        *texts: str, users: dict[str, list[User]] | None = None, vm: str | None = None, force: bool = False
    ) -> list[str]:
        judge = Judge(devices, {PciAddress.parse(address): found for address, found in (users or {}).items()})
        return [str(d.address) for d in choose(judge, [PciSelector.parse(t) for t in texts], vm, force=force)]

    return run


def test_by_address_and_each_once(pick: Choose) -> None:
    assert pick("02:00.0", "0000:02:00.0", "03:00.0") == ["0000:02:00.0", "0000:03:00.0"]


def test_ids_take_one_that_is_free(pick: Choose) -> None:
    assert pick("8086:1521") == ["0000:02:00.0"]
    assert pick("8086:1521", "8086:1521") == ["0000:02:00.0", "0000:03:00.0"]
    assert pick("8086:1521", users={"02:00.0": [User("web", False)]}) == ["0000:03:00.0"]
    with pytest.raises(Conflict, match="other VMs have them all"):
        pick("8086:1521", users={"02:00.0": [User("a", False)], "03:00.0": [User("b", True)]})


def test_a_free_virtual_function(pick: Choose) -> None:
    assert pick("04:00.0,vf") == ["0000:04:10.0"]
    assert pick("04:00.0,vf", "8086:10ed,vf") == ["0000:04:10.0", "0000:04:10.1"]
    assert pick("04:00.0,vf", users={"04:10.0": [User("web", True)]}) == ["0000:04:10.1"]
    with pytest.raises(Refused, match="no virtual function enabled, of the 7") as caught:
        pick("02:00.0,vf")
    assert caught.value.hint == "echo 4 > /sys/bus/pci/devices/0000:02:00.0/sriov_numvfs"
    with pytest.raises(Refused, match="no SR-IOV"):
        pick("03:00.0,vf")


def test_a_group_goes_whole_without_its_bridge(pick: Choose) -> None:
    assert pick("01:00.0,group") == ["0000:01:00.0", "0000:01:00.1"]
    assert pick("10de:10f8,group") == ["0000:01:00.0", "0000:01:00.1"]
    assert pick("01:00.0", "01:00.1") == ["0000:01:00.0", "0000:01:00.1"]
    with pytest.raises(Refused, match="shares IOMMU group 1") as caught:
        pick("01:00.0")
    assert caught.value.hint is not None and "--group" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "users", "error", "words"),
    [
        ("0b:00.0", {}, NotFound, "no PCI device 0000:0b:00.0"),
        ("beef:beef", {}, NotFound, "no PCI device beef:beef"),
        ("00:01.0", {}, Refused, "a bridge"),
        ("04:00.0", {}, Refused, "virtual functions are enabled"),
        ("05:00.0", {}, Refused, "ZFS"),
        ("02:00.0", {"02:00.0": [User("web", True)]}, Conflict, "in use by the running VM web"),
        ("02:00.0", {"02:00.0": [User("web", False)]}, Conflict, "in the definition of VM web"),
        ("01:00.0,group", {"01:00.1": [User("web", True)]}, KvmctlError, "VM web"),
    ],
)
def test_what_speaks_against_it(
    pick: Choose, text: str, users: dict[str, list[User]], error: type[KvmctlError], words: str
) -> None:
    with pytest.raises(error, match=words):
        pick(text, users=users)


def test_force_takes_what_is_unknown_or_saved_elsewhere_and_never_what_runs(pick: Choose) -> None:
    assert pick("05:00.0", force=True) == ["0000:05:00.0"]
    assert pick("02:00.0", users={"02:00.0": [User("web", False)]}, force=True) == ["0000:02:00.0"]
    with pytest.raises(Conflict):
        pick("02:00.0", users={"02:00.0": [User("web", True)]}, force=True)
    with pytest.raises(Refused):
        pick("00:01.0", force=True)


def test_what_a_vm_has_already_is_its_own(pick: Choose) -> None:
    assert pick("02:00.0", users={"02:00.0": [User("web", True)]}, vm="web") == ["0000:02:00.0"]


def test_free_root_ports_are_those_with_nothing_behind_them() -> None:
    domain = xml.parse(
        """<domain><devices><controller type='pci' index='0' model='pcie-root'/>
        <controller type='pci' index='1' model='pcie-root-port'><address type='pci' bus='0x00' slot='0x1'/></controller>
        <controller type='pci' index='10' model='pcie-root-port'><address type='pci' bus='0x00' slot='0x2'/>
        </controller>
        <controller type='pci' index='3' model='pcie-root-port'><address type='pci' bus='0x00' slot='0x3'/></controller>
        <interface><address type='pci' bus='0x0a' slot='0x00'/></interface></devices></domain>"""
    )
    assert free_root_ports(domain) == 2
