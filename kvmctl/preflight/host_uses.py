"""What a host does with its own PCI devices: mounted disks, swap, default routes, the console.

Reads /proc and /sys below a root directory, so that a copied tree can be judged too. Everything there may
be missing or nonsense; what cannot be read is left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kvmctl.model.host_pci import HostUse
from kvmctl.model.pci import PciAddress

_IN_PATH = re.compile(r"/([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?=/)", re.IGNORECASE)
_RTF_UP, _RTF_REJECT = 0x1, 0x200
# What the kernel shows of the namespaces of process 1, the host's, rather than of those kvmctl runs in.
_HOST_PROC = ("proc/1", "proc/self", "proc")


class HostUses:
    """The uses of every device, found once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uses: dict[PciAddress, list[HostUse]] = {}
        self.interfaces: dict[PciAddress, list[str]] = {}
        self.disks: dict[PciAddress, list[str]] = {}
        self._find_devices()
        self._find_mounts()
        self._find_swaps()
        self._find_routes()
        self._find_interfaces_up()

    def _find_devices(self) -> None:
        for name in _names(self.root / "sys/class/net"):
            for address in self._behind(self.root / "sys/class/net" / name):
                self.interfaces.setdefault(address, []).append(name)
        for name in _names(self.root / "sys/block"):
            for address in self._behind(self.root / "sys/block" / name):
                self.disks.setdefault(address, []).append(name)

    def _find_mounts(self) -> None:
        unseen = False
        for device, where, kind in _mounts(self._proc("mounts")):
            if kind == "zfs":
                unseen = True
            elif device.startswith("/dev/"):
                for address in self._under_block(self._block_name(device), set()):
                    self._add(address, HostUse("vital", f"the host has {where} mounted from {device}"))
        if unseen:
            for address in self.disks:
                self._add(address, HostUse("unseen", "ZFS is mounted here and does not say on which disks"))

    def _find_swaps(self) -> None:
        for line in _lines(self._proc("swaps"))[1:]:
            device = line.split()[0] if line.split() else ""
            if device.startswith("/dev/"):
                for address in self._under_block(self._block_name(device), set()):
                    self._add(address, HostUse("vital", f"the host swaps on {device}"))

    def _find_routes(self) -> None:
        for name in sorted(
            {*_default_routes(self._proc("net/route")), *_default_routes6(self._proc("net/ipv6_route"))}
        ):
            for address in self._under_interface(name, set()):
                self._add(address, HostUse("vital", f"the host's default route goes through {name}"))

    def _find_interfaces_up(self) -> None:
        for address, names in self.interfaces.items():
            for name in names:
                if _text(self.root / "sys/class/net" / name / "operstate") == "up":
                    self._add(address, HostUse("mild", f"its interface {name} is up on the host"))

    def _add(self, address: PciAddress, use: HostUse) -> None:
        known = self.uses.setdefault(address, [])
        if use not in known:
            known.append(use)

    def _proc(self, name: str) -> Path:
        for place in _HOST_PROC:
            path = self.root / place / name
            if path.exists():
                return path
        return self.root / "proc" / name

    def _block_name(self, device: str) -> str:
        name = device.removeprefix("/dev/")
        if not name.startswith("mapper/"):
            return Path(name).name if "/" not in name else name.replace("/", "!")
        for candidate in _names(self.root / "sys/block"):
            if _text(self.root / "sys/block" / candidate / "dm/name") == name.removeprefix("mapper/"):
                return candidate
        return ""

    def _under_block(self, name: str, seen: set[str]) -> Iterator[PciAddress]:
        """The devices that a block device is on, through partitions, LVM, LUKS and RAID."""
        if not name or name in seen:
            return
        seen.add(name)
        path = self.root / "sys/class/block" / name
        if not path.exists():
            path = self.root / "sys/block" / name
        yield from self._behind(path)
        for slave in _names(path / "slaves"):
            yield from self._under_block(slave, seen)

    def _under_interface(self, name: str, seen: set[str]) -> Iterator[PciAddress]:
        """The devices that an interface is on, through bridges, bonds and VLANs."""
        if name in seen:
            return
        seen.add(name)
        path = self.root / "sys/class/net" / name
        yield from self._behind(path)
        for link in _names(path):
            if link.startswith("lower_"):
                yield from self._under_interface(link.removeprefix("lower_"), seen)

    def _behind(self, path: Path) -> Iterator[PciAddress]:
        """The nearest PCI device above ``path`` in /sys/devices; with NVMe multipath, every path's."""
        try:
            real = str(path.resolve(strict=True))
        except (OSError, RuntimeError):
            return
        found = _IN_PATH.findall(real)
        if found:
            yield PciAddress.parse(found[-1])
        elif "/nvme-subsystem/" in real:
            subsystem = Path(real.split("/nvme-subsystem/")[0]) / "nvme-subsystem"
            subsystem /= real.split("/nvme-subsystem/")[1].split("/")[0]
            for name in _names(subsystem):
                if re.fullmatch(r"nvme[0-9]+", name):
                    yield from self._behind(subsystem / name / "device")


def _mounts(path: Path) -> Iterator[tuple[str, str, str]]:
    for line in _lines(path):
        fields = line.split()
        if len(fields) >= 3:
            device, where, kind = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[:3])
            yield device, where, kind


def _default_routes(path: Path) -> Iterator[str]:
    for line in _lines(path)[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and _hex(fields[3]) & _RTF_UP:
            yield fields[0]


def _default_routes6(path: Path) -> Iterator[str]:
    for line in _lines(path):
        fields = line.split()
        if len(fields) >= 10 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            flags = _hex(fields[8])
            if flags & _RTF_UP and not flags & _RTF_REJECT:
                yield fields[9]


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError:
        return []


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
