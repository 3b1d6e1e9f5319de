"""The mediated devices of this host, or of a copied tree, from /sys/bus/mdev and /sys/class/mdev_bus."""

from pathlib import Path

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model.mdev import Mdev, MdevType, parse_uuid


def read(root: Path) -> tuple[list[Mdev], list[MdevType]]:
    """Those that were made below ``root``, and the kinds that could be. Raises NotFound where there is no sys/.

    The layout is the kernel's (Documentation/driver-api/vfio-mediated-device.rst).
    """
    if not (root / "sys").is_dir():
        raise NotFound(f"there is no {str(root / 'sys')!a}", "name a directory that has sys/ in it")
    made = []
    for path in _entries(root / "sys/bus/mdev/devices"):
        try:
            uuid = parse_uuid(path.name)
        except UsageProblem:
            continue
        group = _link(path / "iommu_group")
        # The device's folder lies in its parent's.
        parent = path.resolve().parent.name
        number = int(group) if group is not None and group.isascii() and group.isdigit() else None
        made.append(Mdev(uuid, _link(path / "mdev_type"), parent, number, _link(path / "driver")))
    types = []
    for parent_path in _entries(root / "sys/class/mdev_bus"):
        for kind in _entries(parent_path / "mdev_supported_types"):
            left = _text(kind / "available_instances")
            available = int(left) if left is not None and left.isascii() and left.isdigit() else None
            types.append(
                MdevType(parent_path.name, kind.name, _text(kind / "name"), _text(kind / "device_api"), available)
            )
    return made, types


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _link(path: Path) -> str | None:
    try:
        return path.readlink().name
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
