import os
import time
from pathlib import Path

from kvmctl.operations.uptime import uptimes

UUID = "c0ffee00-0000-4000-8000-000000000000"


def process(proc: Path, pid: str, command: list[str], stat: str) -> None:
    folder = proc / pid
    folder.mkdir()
    (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in command) + b"\0")
    (folder / "stat").write_text(stat)


def test_the_process_of_a_guest_is_found_by_its_uuid(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    started = int((time.clock_gettime(time.CLOCK_BOOTTIME) - 100) * ticks)
    stat = f"7 (a) b) R {' '.join(['0'] * 18)} {started} 0"
    process(tmp_path, "7", ["qemu", "-uuid", UUID, "-x"], stat)
    process(tmp_path, "8", ["qemu", "-uuid", UUID.replace("c0", "d0"), "-x"], stat)
    process(tmp_path, "9", ["grep", UUID], "nonsense")
    (tmp_path / "10").mkdir()
    (tmp_path / "self").mkdir()
    found = uptimes([UUID], tmp_path)
    assert list(found) == [UUID]
    assert 99 <= found[UUID] <= 1000
    assert uptimes([], tmp_path) == {}
