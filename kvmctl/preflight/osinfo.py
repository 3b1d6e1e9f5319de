"""What the osinfo database says of an operating system. Read as data, and only when somebody asks for one."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.model import xml
from kvmctl.model.profile import Profile

# Where osinfo-db lies: the variable that libosinfo itself honours, then the administrator's, then the package's.
_PLACES = ("/etc/osinfo", "/usr/share/osinfo")
_ID = re.compile(r"[a-z][a-z0-9.+-]{1,40}\Z")
_LINUX_NAMES = ("debian", "ubuntu", "fedora", "rhel", "centos", "alma", "rocky", "opensuse", "sle", "arch", "alpine")


@dataclass(frozen=True)
class OperatingSystem:
    """One of the database. Memory and storage in bytes, None where it says nothing.

    ``exact`` is False where the database lacks it and its nearest older relative stands in.
    """

    short_id: str
    url: str | None
    name: str
    profile: Profile
    min_memory: int | None = None
    min_vcpus: int | None = None
    min_storage: int | None = None
    needs_uefi: bool = False
    exact: bool = True


def find(short_id: str) -> OperatingSystem:
    """The system with this short id (``debian12``, ``win11``).

    One that the database does not have is no error: systems are newer than databases. It is then judged
    by its nearest relative, or by its name alone. Raises UsageProblem for what is no id at all.
    """
    wanted = short_id.lower()
    if not _ID.match(wanted):
        raise UsageProblem(f"{short_id[:60]!a} is no operating system's id", "write it like debian12 or win11")
    files = _files()
    tree = _read(files, wanted)
    if tree is not None:
        return _described(wanted, tree)
    return _relative(files, wanted)


def _files() -> list[Path]:
    chosen = os.environ.get("OSINFO_SYSTEM_DIR")
    roots = (chosen,) if chosen else _PLACES
    return sorted(path for root in roots for path in Path(root).glob("os/*/*.xml"))


def _read(files: list[Path], short_id: str) -> xml.Element | None:
    mark = f"<short-id>{short_id}</short-id>".encode()
    for path in files:
        try:
            text = path.read_bytes()
            if mark not in text:
                continue
            found = xml.parse(text, "osinfo entry").find("os")
        except (OSError, KvmctlError):
            # One bad file must not hide all the others.
            continue
        if found is not None:
            return found
    return None


def _relative(files: list[Path], wanted: str) -> OperatingSystem:
    match = re.match(r"([a-z+-]*[a-z])([0-9]+)(?:\.[0-9]+)?\Z", wanted)
    if match is not None:
        for number in range(int(match[2]) - 1, max(0, int(match[2]) - 6), -1):
            tree = _read(files, f"{match[1]}{number}")
            if tree is None:
                continue
            older = _described(f"{match[1]}{number}", tree)
            url = older.url
            # An id ends with the version, so the newer one's is known although the database lacks it.
            newer = f"{url[: -len(str(number))]}{match[2]}" if url and url.endswith(f"/{number}") else None
            return replace(older, short_id=wanted, url=newer, name=wanted, exact=False)
    profile: Profile = "windows" if wanted.startswith("win") else "generic"
    if wanted.startswith(_LINUX_NAMES) or "linux" in wanted:
        profile = "linux"
    return OperatingSystem(wanted, None, wanted, profile, exact=False)


def _described(short_id: str, tree: xml.Element) -> OperatingSystem:
    family = tree.findtext("family") or ""
    profile: Profile = "windows" if family == "winnt" else "linux" if family == "linux" else "generic"
    least = next(
        (r.find("minimum") for arch in ("x86_64", "all") for r in tree.iterfind(f"resources[@arch='{arch}']")), None
    )
    return OperatingSystem(
        short_id,
        tree.get("id"),
        tree.findtext("name") or short_id,
        profile,
        _number(least, "ram"),
        _number(least, "n-cpus"),
        _number(least, "storage"),
        tree.find("firmware[@type='bios'][@supported='false']") is not None,
    )


def _number(element: xml.Element | None, tag: str) -> int | None:
    text = (element.findtext(tag) or "").strip() if element is not None else ""
    return int(text) if text.isascii() and text.isdigit() else None
