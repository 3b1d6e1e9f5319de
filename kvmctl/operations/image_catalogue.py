"""The images that ``image pull`` knows by name, and which operating system a name speaks of."""

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from kvmctl.errors import NotFound

DATA = Path(__file__).parent.parent / "data" / "images.toml"
Algorithm = Literal["sha256", "sha512"]


@dataclass(frozen=True)
class Entry:
    """One published image: where it is, where its checksum is, its libosinfo id, and cloud-init's default user."""

    name: str
    url: str
    checksums: str
    algorithm: Algorithm
    os: str
    user: str
    aliases: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """All of the catalogue, as kvmctl/data/images.toml has it."""
    table = tomllib.loads(DATA.read_text(encoding="utf-8"))
    return tuple(Entry(**{**row, "aliases": tuple(row.get("aliases", ()))}) for row in table["image"])


def find(name: str) -> Entry:
    """The entry with this name or alias. Raises NotFound, naming what there is."""
    wanted = name.lower()
    for entry in entries():
        if wanted == entry.name or wanted in entry.aliases:
            return entry
    known = ", ".join(entry.name for entry in entries())
    raise NotFound(f"the catalogue has no image {name[:60]!a}", f"there are {known}; a URL works, too")


# The libosinfo short id that a name like debian-12-genericcloud-amd64.qcow2 or AlmaLinux-9-GenericCloud means.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"debian-?(?:sid|testing|unstable)", "debiantesting"),
    (r"debian-?(\d{1,2})", r"debian\1"),
    (r"(?:debian-?)?bullseye", "debian11"),
    (r"(?:debian-?)?bookworm", "debian12"),
    (r"(?:debian-?)?trixie", "debian13"),
    (r"ubuntu-?(\d\d\.\d\d)", r"ubuntu\1"),
    (r"jammy", "ubuntu22.04"),
    (r"noble", "ubuntu24.04"),
    (r"fedora-?(?:cloud-?)?(?:base-?)?(?:generic-?)?(\d\d)", r"fedora\1"),
    (r"almalinux-?(\d{1,2})", r"almalinux\1"),
    (r"rocky-?(?:linux-?)?(\d{1,2})", r"rocky\1"),
    (r"centos-?stream-?(?:genericcloud-?)?(\d{1,2})", r"centos-stream\1"),
    (r"opensuse-?leap-?(\d\d\.\d)", r"opensuse\1"),
    (r"opensuse-?tumbleweed", "opensusetumbleweed"),
    (r"arch(?:-?linux)?", "archlinux"),
    (r"(?:nocloud-?|generic-?)?alpine-?(\d\.\d+)", r"alpinelinux\1"),
    (r"freebsd-?(\d\d\.\d)", r"freebsd\1"),
)


def os_of(name: str) -> str | None:
    """The libosinfo short id of the system that an image's ``name`` begins with, or None where it says nothing."""
    lowered = name.lower().replace("_", "-")
    for pattern, short_id in _PATTERNS:
        match = re.match(rf"{pattern}(?![a-z0-9])", lowered)
        if match:
            return match.expand(short_id)
    return None
