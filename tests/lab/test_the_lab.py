"""The lab ends with the test run, however that ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import lab as labs
from tests.lab.hosts import REPOSITORY, wait_until
from tests.lab.lab import BASE, Lab
from tests.lab.process import run

_USER = """
import sys, time
from tests.lab.lab import Lab
lab = Lab(sys.argv[1]).start()
lab.a.start_default_network()
lab.a.start_sshd()
lab.a.conn.createXML(
    "<domain type='qemu'><name>idle</name><memory unit='MiB'>32</memory>"
    "<os><type machine='pc'>hvm</type></os></domain>"
)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def user() -> Iterator[tuple[Lab, "subprocess.Popen[bytes]"]]:
    """A lab with a guest on it, and the process that started it."""
    lab = Lab(f"u{os.getpid()}")
    with subprocess.Popen(
        [sys.executable, "-c", _USER, lab.name], stdout=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield lab, process
        finally:
            process.kill()
            process.wait()
            labs.clean_leftovers()


def _members(lab: Lab) -> list[int]:
    """The processes in the lab's namespaces."""
    inodes = {host.net.path.stat().st_ino for host in lab.hosts}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "net").stat().st_ino in inodes:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _nothing_of(lab: Lab, members: list[int]) -> bool:
    names = run(["ip", "netns", "list"]).stdout
    return lab.a.net.name not in names and not lab.root.exists() and not any(map(_lives, members))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # A zombie is dead; when its new parent notices is up to the machine.
    return state not in "ZX"


def test_nothing_is_left_after_kill_9(user: tuple[Lab, "subprocess.Popen[bytes]"]) -> None:
    lab, process = user
    members = _members(lab)
    programs = {(Path(f"/proc/{pid}") / "comm").read_text().strip() for pid in members}
    assert {"libvirtd", "dnsmasq", "sshd"} <= programs and any("qemu" in name for name in programs), programs
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: _nothing_of(lab, members), "the end of the killed run's lab")


def test_the_next_start_removes_what_a_killed_keeper_left(user: tuple[Lab, "subprocess.Popen[bytes]"]) -> None:
    lab, process = user
    members = _members(lab)
    keepers = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and lab.name.encode() in _command(entry) and b"keeper" in _command(entry)
    ]
    assert len(keepers) == 1
    os.kill(keepers[0], signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not _lives(keepers[0]), "the end of the keeper")
    labs.clean_leftovers()
    # Not asserted at once: another test run's start may be the one that is just removing it.
    wait_until(lambda: _nothing_of(lab, members), "the end of the killed run's lab")


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_lab_in_use_is_no_leftover(lab: Lab) -> None:
    assert lab.name not in labs.clean_leftovers()
    assert lab.is_up


def test_names_that_would_leave_the_folder_are_refused() -> None:
    for name in ("../x", "", "a-b", "x" * 20):
        with pytest.raises(ValueError, match="name"):
            Lab(name)
    assert not (BASE.parent / "x").exists()
