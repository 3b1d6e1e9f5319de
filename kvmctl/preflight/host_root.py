"""Reading a machine's /proc, /sys and /dev: the running machine's, or a copy below another directory."""

import os
import re
import stat
from pathlib import Path

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.preflight import host_cpu

# The most that is read of one file: everything looked at here but cpuinfo is far smaller.
_LARGEST = 4 * 1024 * 1024
# Read in parts of this size: below /proc/sys the kernel refuses to read 4 MiB at once (ENOMEM).
_PART = 64 * 1024


class Root:
    """A file system as seen from one directory, from which nothing (no link either) leads out.

    Paths are given without the leading slash. What is missing or cannot be read is None or empty,
    because nearly all of it is optional on a real machine.
    """

    def __init__(self, top: str = "/") -> None:
        self.top = Path(os.path.realpath(top))
        self.is_running = self.top == Path("/")

    @classmethod
    def given(cls, top: str) -> "Root":
        """The one that the user named.

        Raises NotFound where there is none, UsageProblem where it is no directory.
        """
        try:
            if not top or not Path(top).is_dir():
                if top and not os.path.lexists(top):
                    raise NotFound(f"no directory {top!a}", "--root takes a directory that holds proc/ and sys/")
                raise UsageProblem(f"{top!a} is no directory", "--root takes a directory that holds proc/ and sys/")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageProblem(f"cannot read {top[:200]!a}: {reason}") from None
        return cls(top)

    def path(self, name: str) -> Path | None:
        """Where ``name`` really is, or None where it is missing or a link leads out of the root."""
        try:
            found = (self.top / name).resolve(strict=True)
        except (OSError, RuntimeError):
            return None
        return found if found.is_relative_to(self.top) else None

    def exists(self, name: str) -> bool:
        """Whether ``name`` is there."""
        return self.path(name) is not None

    def text(self, name: str) -> str | None:
        """What the file ``name`` holds, without white space at its ends; None where it cannot be read."""
        path = self.path(name)
        if path is None:
            return None
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return None
            with path.open("rb", buffering=0) as file:
                parts = [part := file.read(_PART)]
                while part and sum(map(len, parts)) < _LARGEST:
                    parts.append(part := file.read(_PART))
        except OSError:
            return None
        return b"".join(parts).decode("utf-8", errors="replace").strip()

    def cpuinfo(self) -> str | None:
        """The text of proc/cpuinfo, which may be far larger than the rest; None where there is none."""
        path = self.path("proc/cpuinfo")
        return None if path is None else host_cpu.read_text(str(path))

    def number(self, name: str) -> int | None:
        """The number in the file ``name``; None where there is none."""
        text = self.text(name)
        if text is None or not re.fullmatch(r"-?[0-9]{1,20}", text):
            return None
        return int(text)

    def link(self, name: str) -> str | None:
        """What the link ``name`` holds; None where it is none."""
        above = self.path(name.rpartition("/")[0])
        try:
            return None if above is None else str((above / name.rpartition("/")[2]).readlink())
        except OSError:
            return None

    def names(self, name: str) -> list[str]:
        """What the directory ``name`` holds, sorted; empty where it is none."""
        path = self.path(name)
        if path is None:
            return []
        try:
            return sorted(entry.name for entry in path.iterdir())
        except OSError:
            return []

    def is_device(self, name: str) -> bool:
        """Whether ``name`` is a character device."""
        path = self.path(name)
        try:
            return path is not None and stat.S_ISCHR(path.stat().st_mode)
        except OSError:
            return False
