"""Names of PCI vendors, products and classes, from the ``pci.ids`` that Linux systems carry."""

from collections.abc import Iterable
from pathlib import Path

from kvmctl.model.names import harmless

# Debian's and openSUSE's place, Fedora's and Arch's, and that of systems with neither.
PLACES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids")


class PciNames:
    """The names of the ids that were asked for. Reads the file once and keeps only those."""

    def __init__(self, roots: Iterable[Path], ids: Iterable[tuple[int, int]]) -> None:
        self._vendors: dict[int, str] = {}
        self._products: dict[tuple[int, int], str] = {}
        self._classes: dict[int, str] = {}
        wanted: dict[str, set[str]] = {}
        for vendor, product in ids:
            wanted.setdefault(f"{vendor:04x}", set()).add(f"{product:04x}")
        for root in roots:
            for place in PLACES:
                path = root / place
                if path.is_file():
                    self._read(path, wanted)
                    return

    def vendor(self, vendor: int) -> str | None:
        """The vendor's name."""
        return self._vendors.get(vendor)

    def product(self, vendor: int, product: int) -> str | None:
        """The product's name."""
        return self._products.get((vendor, product))

    def class_name(self, code: int) -> str | None:
        """The name of a 16-bit class code; of its upper half where the whole has none."""
        return self._classes.get(code) or self._classes.get(code & 0xFF00)

    def _read(self, path: Path, wanted: dict[str, set[str]]) -> None:
        # A vendor's line begins at the margin, a product's with one tab, a subsystem's with two; classes
        # come last, as "C 02  Network controller" and then "\t00  Ethernet controller".
        vendor: str | None = None
        base: str | None = None
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("#", "\n", "\t\t")):
                    continue
                if line.startswith("C "):
                    vendor, base = None, line[2:4]
                    self._class(base, "00", line[4:])
                elif not line.startswith("\t"):
                    base = None
                    vendor = line[:4] if line[:4] in wanted else None
                    if vendor is not None:
                        self._vendors[int(vendor, 16)] = harmless(line[4:].strip())
                elif vendor is not None and line[1:5] in wanted[vendor]:
                    self._products[int(vendor, 16), int(line[1:5], 16)] = harmless(line[5:].strip())
                elif base is not None:
                    self._class(base, line[1:3], line[3:])

    def _class(self, base: str, sub: str, name: str) -> None:
        try:
            self._classes[int(base + sub, 16)] = harmless(name.strip())
        except ValueError:
            # A line that is no class; the file may be anybody's.
            return
