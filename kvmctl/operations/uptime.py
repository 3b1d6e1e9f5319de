"""Since when a VM's QEMU process runs, from this machine's /proc: libvirt itself does not tell."""

import os
import re
import time
from collections.abc import Collection
from pathlib import Path

_UUID = re.compile(rb"\0-uuid\0([0-9a-f-]{36})\0")


def uptimes(uuids: Collection[str], proc: Path = Path("/proc")) -> dict[str, float]:
    """``{uuid: seconds}`` for those of ``uuids`` whose process is seen here (hidepid may hide others')."""
    wanted = set(uuids)
    found: dict[str, float] = {}
    if not wanted:
        return found
    ticks = os.sysconf("SC_CLK_TCK")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            match = _UUID.search(command)
            if match is None or match[1].decode() not in wanted:
                continue
            # proc(5): field 22 is the start time in clock ticks; field 2 may hold spaces and ')'.
            fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            found[match[1].decode()] = round(now - int(fields[19]) / ticks, 1)
        except (OSError, IndexError, ValueError):
            # The process ended while it was read.
            continue
    return found
