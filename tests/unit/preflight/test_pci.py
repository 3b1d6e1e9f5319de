from pathlib import Path

import pytest

from kvmctl.errors import NotFound
from kvmctl.model.pci import PciAddress
from kvmctl.operations.pci_host import judge_tree, rows
from kvmctl.preflight.pci import Judge, User
from kvmctl.preflight.pci_sysfs import read
from tests.unit.preflight.pci_tree import PciTree

NIC = "8086:1521"


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    """A server: a boot disk, a management NIC, a card behind a root port, a graphics card with its sound."""
    made = PciTree(tmp_path)
    made.device("0000:00:00.0", "8086:3ec2", "060000", group=0)
    made.device("0000:00:01.0", "8086:1901", "060400", "pcieport", group=1)
    made.device("0000:00:1c.0", "8086:a338", "060400", "pcieport", group=2)
    made.device("0000:00:17.0", "8086:a352", "010601", "ahci", group=3)
    made.device("0000:00:1f.0", "8086:a305", "060100", group=4)
    made.device("0000:00:1f.4", "8086:a323", "0c0500", "i801_smbus", group=4)
    made.device("0000:00:1f.6", "8086:15bb", "020000", "e1000e", group=5)
    made.device("0000:01:00.0", "10de:1e87", "030000", "nouveau", group=1, below="0000:00:01.0", boot_vga="1")
    made.device("0000:01:00.1", "10de:10f8", "040300", "snd_hda_intel", group=1, below="0000:00:01.0")
    made.device("0000:02:00.0", NIC, "020000", "igb", group=6, below="0000:00:1c.0", sriov_totalvfs="7")
    made.disk("sda", "0000:00:17.0", "sda1", "sda2")
    made.interface("eno1", "0000:00:1f.6", state="up").interface("ens1", "0000:02:00.0")
    made.proc("mounts", "sysfs /sys sysfs rw 0 0\n/dev/sda2 / ext4 rw 0 0\n").default_route("eno1")
    return made


def _verdicts(tree: PciTree) -> dict[str, tuple[bool | None, str | None]]:
    judge = judge_tree(tree.root)
    found = {address: judge.verdict(device) for address, device in judge.devices.items()}
    return {str(address): (verdict.assignable, verdict.reason) for address, verdict in found.items()}


def test_a_device_alone_in_its_group_can_be_passed(tree: PciTree) -> None:
    assert _verdicts(tree)["0000:02:00.0"] == (True, None)


def test_bridges_stay_with_the_host(tree: PciTree) -> None:
    for address in ("0000:00:00.0", "0000:00:01.0", "0000:00:1f.0"):
        assignable, reason = _verdicts(tree)[address]
        assert assignable is False
        assert reason is not None and "bridge" in reason


def test_the_boot_disk_and_the_default_route_stay_with_the_host(tree: PciTree) -> None:
    verdicts = _verdicts(tree)
    assert verdicts["0000:00:17.0"] == (False, "the host needs it: the host has / mounted from /dev/sda2")
    assert verdicts["0000:00:1f.6"] == (False, "the host needs it: the host's default route goes through eno1")


def test_a_shared_group_names_who_shares_it_and_leaves_root_ports_out(tree: PciTree) -> None:
    judge = judge_tree(tree.root)
    card = judge.devices[PciAddress.parse("01:00.0")]
    verdict = judge.verdict(card)
    assert verdict.assignable is False
    assert verdict.with_group is True
    assert verdict.others == (PciAddress.parse("01:00.1"),)
    assert verdict.reason is not None
    assert "shares IOMMU group 1 with 0000:01:00.1" in verdict.reason
    assert "snd_hda_intel" in verdict.reason
    assert "00:01.0" not in verdict.reason
    assert [use.kind for use in card.uses] == ["mild"]


def test_a_group_with_something_of_the_hosts_cannot_go_even_whole(tree: PciTree) -> None:
    judge = judge_tree(tree.root)
    verdict = judge.verdict(judge.devices[PciAddress.parse("00:1f.4")])
    assert (verdict.assignable, verdict.with_group) == (False, False)
    assert verdict.reason is not None and "0000:00:1f.0 cannot go: a bridge" in verdict.reason


def test_a_group_of_which_the_rest_is_held_for_guests_can_be_passed(tree: PciTree) -> None:
    path = tree.paths["0000:01:00.1"] / "driver"
    path.unlink()
    path.symlink_to("../../../bus/pci/drivers/vfio-pci")
    assert _verdicts(tree)["0000:01:00.0"] == (True, None)


def test_without_an_iommu_nothing_can_be_passed(tmp_path: Path) -> None:
    PciTree(tmp_path).device("0000:02:00.0", NIC, "020000", "igb")
    judge = judge_tree(tmp_path)
    assert [row["assignable"] for row in rows(judge)] == [False]
    assert "no IOMMU group" in rows(judge)[0]["reason"]
    assert rows(judge)[0]["group_members"] == []


def test_sriov_parents_and_functions(tree: PciTree) -> None:
    for index in range(2):
        address = f"0000:02:10.{index}"
        tree.device(address, "8086:1520", "020000", "igbvf", group=20 + index, below="0000:00:1c.0")
        tree.link(address, "physfn", "0000:02:00.0").link("0000:02:00.0", f"virtfn{index}", address)
    judge = judge_tree(tree.root)
    by_address = {row["address"]: row for row in rows(judge)}
    parent = by_address["0000:02:00.0"]
    assert parent["virtual_functions"] == ["0000:02:10.0", "0000:02:10.1"]
    assert parent["max_virtual_functions"] == 7
    assert parent["assignable"] is False
    assert "virtual functions are enabled" in parent["reason"]
    assert by_address["0000:02:10.1"]["physical_function"] == "0000:02:00.0"
    assert by_address["0000:02:10.1"]["assignable"] is True


def test_lvm_on_luks_leads_to_the_disk_below(tree: PciTree) -> None:
    tree.device("0000:03:00.0", "144d:a808", "010802", "nvme", group=9).disk("nvme0n1", "0000:03:00.0", "nvme0n1p3")
    tree.mapped("dm-0", "cryptroot", "nvme0n1p3").mapped("dm-1", "vg-srv", "dm-0")
    tree.proc("mounts", "/dev/mapper/vg-srv /srv/my\\040data xfs rw 0 0\n")
    assert _verdicts(tree)["0000:03:00.0"] == (
        False,
        "the host needs it: the host has /srv/my data mounted from /dev/mapper/vg-srv",
    )
    assert _verdicts(tree)["0000:00:17.0"] == (True, None)


def test_a_mount_by_its_device_mapper_number(tree: PciTree) -> None:
    tree.mapped("dm-0", "root", "sda1").proc("mounts", "/dev/dm-0 / ext4 rw 0 0\n")
    assert _verdicts(tree)["0000:00:17.0"][0] is False


def test_swap_and_several_reasons(tree: PciTree) -> None:
    tree.proc("swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda1 partition 1000 0 -2\n/swapfile file 1 0 -3\n")
    assert _verdicts(tree)["0000:00:17.0"][1] == (
        "the host needs it: the host has / mounted from /dev/sda2 (and 1 more like that)"
    )


def test_a_default_route_over_a_bridge_on_a_vlan_on_a_bond(tree: PciTree) -> None:
    tree.interface("bond0", None, ("ens1",)).interface("bond0.7", None, ("bond0",))
    tree.interface("br0", None, ("bond0.7",)).default_route("br0")
    verdicts = _verdicts(tree)
    assert verdicts["0000:02:00.0"] == (False, "the host needs it: the host's default route goes through br0")
    assert verdicts["0000:00:1f.6"][0] is True


def test_an_ipv6_default_route_counts_and_a_reject_route_does_not(tree: PciTree) -> None:
    zero, none = "0" * 32, "0" * 32
    route = f"{zero} 00 {zero} 00 fe80{'0' * 28} 00000400 00000001 00000000 {{}} {{}}\n"
    tree.proc("net/route", "Iface\n").proc("net/ipv6_route", route.format("00000003", "ens1"))
    assert _verdicts(tree)["0000:02:00.0"][0] is False
    tree.proc("net/ipv6_route", f"{none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200       lo\n")
    assert _verdicts(tree)["0000:02:00.0"][0] is True


def test_zfs_makes_disks_unknown(tree: PciTree) -> None:
    tree.proc("mounts", "rpool/root / zfs rw 0 0\n")
    assignable, reason = _verdicts(tree)["0000:00:17.0"]
    assert assignable is None
    assert reason is not None and "ZFS" in reason


def test_the_hosts_own_mounts_come_before_those_of_a_namespace(tree: PciTree) -> None:
    tree.proc("1/mounts", "/dev/sda2 / ext4 rw 0 0\n").proc("mounts", "overlay / overlay rw 0 0\n")
    assert _verdicts(tree)["0000:00:17.0"][0] is False


def test_users_are_named_and_a_running_one_holds_it(tree: PciTree) -> None:
    nic = PciAddress.parse("02:00.0")
    devices = read(tree.root)
    saved = Judge(devices, {nic: [User("web", False)]})
    assert saved.verdict(saved.devices[nic]).assignable is True
    assert [row["used_by"] for row in rows(saved) if row["address"] == str(nic)] == [["web"]]
    running = Judge(devices, {nic: [User("web", True)]})
    assert running.verdict(running.devices[nic]).reason == "in use by VM web"


def test_a_group_of_which_a_guest_has_one_is_taken(tree: PciTree) -> None:
    judge = Judge(read(tree.root), {PciAddress.parse("01:00.1"): [User("game", True)]})
    verdict = judge.verdict(judge.devices[PciAddress.parse("01:00.0")])
    assert verdict.assignable is False
    assert verdict.reason is not None and "used by VM game" in verdict.reason


def test_names_come_from_the_trees_own_database(tree: PciTree) -> None:
    place = tree.root / "usr/share/hwdata"
    place.mkdir(parents=True)
    (place / "pci.ids").write_text(
        "# a comment\n8086  Intel Corporation\n\t1521  I350 Gigabit\x1b[31m\n\t\t8086 0001  A subsystem\n"
        "8087  Another\n\t1521  Not this\nC 02  Network controller\n\t00  Ethernet controller\n\tzz  nonsense\n"
    )
    row = next(row for row in rows(judge_tree(tree.root)) if row["address"] == "0000:02:00.0")
    assert row["vendor"] == "Intel Corporation"
    assert row["product"] == "I350 Gigabit\\x1b[31m"
    assert row["class"] == "Ethernet controller"


def test_the_row_has_the_contracts_keys(tree: PciTree) -> None:
    contract = {"address", "vendor", "product", "class", "driver", "iommu_group", "group_members", "assignable"}
    for row in rows(judge_tree(tree.root)):
        assert contract | {"reason", "used_by"} <= set(row)
        assert row["assignable"] is True or row["reason"]


def test_nonsense_in_sys_is_left_out(tmp_path: Path) -> None:
    tree = PciTree(tmp_path)
    tree.device("0000:02:00.0", NIC, "020000", group=6, numa_node="-1", sriov_totalvfs="many")
    tree.paths["0000:02:00.0"].joinpath("vendor").write_bytes(b"\xff\xfe")
    (tmp_path / "sys/bus/pci/devices/not-an-address").mkdir()
    tree.proc("mounts", "one\n\n/dev/nowhere\n").proc("swaps", "").proc("net/route", "x\ny 0\n")
    tree.proc("net/ipv6_route", "zz\n")
    (only,) = rows(judge_tree(tmp_path))
    assert (only["vendor_id"], only["numa_node"], only["max_virtual_functions"]) == ("0000", None, 0)
    assert only["assignable"] is True


@pytest.mark.parametrize("made", ["", "sys"])
def test_a_root_that_is_none(tmp_path: Path, made: str) -> None:
    root = tmp_path / "root"
    if made:
        (root / made).mkdir(parents=True)
    with pytest.raises(NotFound):
        judge_tree(root)
