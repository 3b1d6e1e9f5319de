"""Mediated devices in trees laid out as the kernel does (Documentation/driver-api/vfio-mediated-device.rst)."""

from pathlib import Path

import pytest

from kvmctl.cli.root import run
from kvmctl.errors import NotFound
from kvmctl.model.mdev import Mdev, MdevType
from kvmctl.preflight import mdev_sysfs
from tests.unit.preflight.pci_tree import PciTree

UUID = "4b20d080-1b54-4048-85b3-a6a62d165c01"
KIND = "i915-GVTg_V5_4"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    tree = PciTree(tmp_path).device("0000:00:02.0", "8086:5916", "030000", "i915", 1)
    card = tree.paths["0000:00:02.0"]
    kind = card / "mdev_supported_types" / KIND
    kind.mkdir(parents=True)
    for name, text in (("name", "GVTg_V5_4"), ("available_instances", "1"), ("device_api", "vfio-pci")):
        (kind / name).write_text(text + "\n")
    made = card / UUID
    made.mkdir()
    (made / "mdev_type").symlink_to(f"../mdev_supported_types/{KIND}")
    (made / "iommu_group").symlink_to("../../../../kernel/iommu_groups/12")
    (made / "driver").symlink_to("../../../../bus/mdev/drivers/vfio_mdev")
    for folder in ("sys/bus/mdev/devices", "sys/class/mdev_bus"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sys/bus/mdev/devices" / UUID).symlink_to(made)
    (tmp_path / "sys/bus/mdev/devices/no-uuid").mkdir()
    (tmp_path / "sys/class/mdev_bus/0000:00:02.0").symlink_to(card)
    return tmp_path


def test_what_there_is_and_what_can_be_made(host: Path) -> None:
    made, types = mdev_sysfs.read(host)
    assert made == [Mdev(UUID, KIND, "0000:00:02.0", 12, "vfio_mdev")]
    assert types == [MdevType("0000:00:02.0", KIND, "GVTg_V5_4", "vfio-pci", 1)]


def test_the_command_lists_them(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pci", "list", "--mdev", "--root", str(host)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[UUID, KIND], ["-", KIND]]
    assert "GVTg_V5_4" in lines[1] and "0000:00:02.0" in lines[2]


def test_a_host_without_any(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no"):
        mdev_sysfs.read(tmp_path)
    (tmp_path / "sys").mkdir()
    assert mdev_sysfs.read(tmp_path) == ([], [])
