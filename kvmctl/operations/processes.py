"""The QEMU processes of VMs, from this machine's /proc: what libvirt itself does not tell, or not finely enough."""

import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_UUID = re.compile(rb"\0-uuid\0([0-9a-f-]{36})\0")


@dataclass(frozen=True)
class Process:
    """A VM's QEMU: its process id, and the seconds that it has run."""

    pid: int
    uptime_seconds: float


def find(uuids: Collection[str], proc: Path = PROC) -> dict[str, Process]:
    """``{uuid: Process}`` for those of ``uuids`` whose process is seen here (hidepid may hide others')."""
    wanted = set(uuids)
    found: dict[str, Process] = {}
    if not wanted:
        return found
    ticks = os.sysconf("SC_CLK_TCK")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    # Not by Path's own methods: they take as long again as the kernel does, for each of a thousand processes.
    with os.scandir(proc) as entries:
        pids = [entry.name for entry in entries if entry.name.isdigit()]
    for pid in pids:
        try:
            match = _UUID.search(_read(f"{proc}/{pid}/cmdline"))
            if match is None or match[1].decode() not in wanted:
                continue
            # proc(5): field 22 is the start time in clock ticks; field 2 may hold spaces and ')'.
            fields = _read(f"{proc}/{pid}/stat").rpartition(b")")[2].split()
            found[match[1].decode()] = Process(int(pid), round(now - int(fields[19]) / ticks, 1))
        except (OSError, IndexError, ValueError):
            # The process ended while it was read.
            continue
    return found


def cpu_times(processes: Mapping[str, Process], proc: Path = PROC) -> dict[str, tuple[float, int]]:
    """``{uuid: (when in seconds, CPU time in ns)}`` by the scheduler's own accounts, one a thread.

    Those whose accounts cannot be read (the kernel keeps none, the process has ended) are left out.
    """
    found = {}
    for uuid, process in processes.items():
        try:
            # sched-stats: the first number is the time on a CPU in ns.
            with os.scandir(f"{proc}/{process.pid}/task") as tasks:
                used = sum(int(_read(f"{task.path}/schedstat").split()[0]) for task in tasks)
            found[uuid] = (time.monotonic(), used)
        except (OSError, IndexError, ValueError):
            continue
    return found


def _read(path: str) -> bytes:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(number, 65536), b""))
    finally:
        os.close(number)
