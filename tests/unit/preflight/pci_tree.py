"""Builds the /sys and /proc of a host with PCI devices, as Linux lays them out."""

from pathlib import Path


class PciTree:
    """A root directory. Paths in /sys/devices follow the bus: a device below a bridge is below it there too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, Path] = {}
        for folder in ("sys/bus/pci/devices", "sys/class/net", "sys/class/block", "sys/block", "proc/net"):
            (root / folder).mkdir(parents=True)

    def device(
        self,
        address: str,
        ids: str,
        code: str,
        driver: str | None = None,
        group: int | None = None,
        below: str | None = None,
        **files: str,
    ) -> "PciTree":
        """One device: ``ids`` as 8086:10d3, ``code`` its class as 020000; ``files`` are more of its attributes."""
        parent = self.paths[below] if below else self.root / "sys/devices" / f"pci{address[:7]}"
        path = parent / address
        path.mkdir(parents=True)
        self.paths[address] = path
        vendor, product = ids.split(":")
        for name, text in {"vendor": f"0x{vendor}", "device": f"0x{product}", "class": f"0x{code}", **files}.items():
            (path / name).write_text(text + "\n")
        if driver:
            (path / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if group is not None:
            (path / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
        (self.root / "sys/bus/pci/devices" / address).symlink_to(path)
        return self

    def interface(self, name: str, address: str | None, lower: tuple[str, ...] = (), state: str = "down") -> "PciTree":
        """A network interface of the device ``address``, or a virtual one above ``lower``."""
        base = self.paths[address] / "net" if address else self.root / "sys/devices/virtual/net"
        path = base / name
        path.mkdir(parents=True)
        (path / "operstate").write_text(state + "\n")
        for other in lower:
            (path / f"lower_{other}").symlink_to(f"../{other}")
        (self.root / "sys/class/net" / name).symlink_to(path)
        return self

    def disk(self, name: str, address: str, *partitions: str) -> "PciTree":
        """A disk of the device ``address``."""
        path = self.paths[address] / "ata1/host0/target0:0:0/0:0:0:0/block" / name
        path.mkdir(parents=True)
        (self.root / "sys/block" / name).symlink_to(path)
        (self.root / "sys/class/block" / name).symlink_to(path)
        for partition in partitions:
            (path / partition).mkdir()
            (self.root / "sys/class/block" / partition).symlink_to(path / partition)
        return self

    def mapped(self, name: str, title: str, *slaves: str) -> "PciTree":
        """A device-mapper device (LVM, LUKS) on ``slaves``."""
        path = self.root / "sys/devices/virtual/block" / name
        (path / "dm").mkdir(parents=True)
        (path / "slaves").mkdir()
        (path / "dm/name").write_text(title + "\n")
        for slave in slaves:
            (path / "slaves" / slave).symlink_to(f"../../{slave}")
        (self.root / "sys/block" / name).symlink_to(path)
        (self.root / "sys/class/block" / name).symlink_to(path)
        return self

    def link(self, address: str, name: str, other: str) -> "PciTree":
        """A link such as physfn or virtfn0 from one device to another."""
        (self.paths[address] / name).symlink_to(f"../{other}")
        return self

    def proc(self, name: str, text: str) -> "PciTree":
        """A file of /proc."""
        path = self.root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self

    def default_route(self, interface: str) -> "PciTree":
        """An IPv4 default route."""
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        return self.proc("net/route", head + f"{interface}\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
