import os
import time
from pathlib import Path

from kvmctl.operations.processes import Process, cpu_times, find

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
    found = find([UUID], tmp_path)
    assert list(found) == [UUID] and found[UUID].pid == 7
    assert 99 <= found[UUID].uptime_seconds <= 1000
    assert find([], tmp_path) == {}


def test_the_time_on_cpus_is_that_of_all_threads(tmp_path: Path) -> None:
    for task, accounts in (("7", "3000 5 1\n"), ("8", "400 0 1\n")):
        (tmp_path / "7" / "task" / task).mkdir(parents=True)
        (tmp_path / "7" / "task" / task / "schedstat").write_text(accounts)
    (tmp_path / "9" / "task" / "9").mkdir(parents=True)
    known = {UUID: Process(7, 1.0), "without accounts": Process(9, 1.0), "gone": Process(10, 1.0)}
    found = cpu_times(known, tmp_path)
    assert {uuid: used for uuid, (_, used) in found.items()} == {UUID: 3400}


def test_this_process_has_used_some() -> None:
    before = cpu_times({UUID: Process(os.getpid(), 0.0)})
    assert before, "this kernel keeps no accounts (CONFIG_SCHED_INFO)"
    while (after := cpu_times({UUID: Process(os.getpid(), 0.0)}))[UUID][1] == before[UUID][1]:
        pass
    assert after[UUID][0] > before[UUID][0] and after[UUID][1] > before[UUID][1]
