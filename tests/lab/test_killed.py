"""kvmctl killed with -9 while it takes, goes to and deletes snapshots: nothing is lost, nothing left, nothing untrue.

When exactly the signal arrives is left to the machine: what is asserted must hold at every moment.
"""

import contextlib
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.test_clones import source
from tests.lab.test_snapshots import Open, create, names, read, write

# Before the first call that changes something, while libvirt is at it, and towards the end: a command here takes one
# to four seconds.
MOMENTS = (0.15, 0.5, 1.0)
Moments = tuple[float, ...]
KINDS = pytest.mark.parametrize("how", [(), ("--external",)], ids=["internal", "external"])


def killed(host: Host, after: float, *args: str) -> None:
    """Run kvmctl and kill it after so many seconds, if it has not ended by then."""
    process = subprocess.Popen(
        host.kvmctl_command(*args),
        env=host.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.kill()
    process.wait()


def files(host: Host, vm: str) -> set[str]:
    """The files of ``vm``: its disks' layers, memory, UEFI variables."""
    return {path for path in host.files() if f"/{vm}" in path}


def used(host: Host, vm: str) -> set[str]:
    """Those that its definition and its snapshots name, with all that they stand on."""
    disks = {row["source"] for row in host.kvmctl("info", vm, "-o", "json").json()["disks"]}
    for name in host.virsh("snapshot-list", vm, "--name").stdout.split():
        shown = host.kvmctl("snapshot", "show", vm, name, "-o", "json").json()
        disks |= {disk["source"] for disk in shown["disks"]} | {shown["memory_file"]}
    found: set[str] = set()
    for path in disks - {None}:
        above: str | None = path
        while above:
            found.add(above)
            told = host.run(["qemu-img", "info", "-U", above]).stdout if above.endswith(".qcow2") else ""
            above = told.partition("backing file: ")[2].partition("\n")[0] or None
    return found


def is_whole(host: Host, vm: str) -> None:
    """No file is there that nothing needs, and none is missing; and nobody is noted to be at work."""
    told = host.kvmctl("dumpxml", vm).stdout
    left = files(host, vm)
    assert left == used(host, vm), f"{host.virsh('snapshot-list', vm, '--tree').stdout}\n{told}"
    assert "kvmctl:work" not in told


def shows(open_console: Callable[[], Guest], expected: str) -> None:
    """The guest runs, and has ``expected`` on its disk."""
    guest = open_console()
    try:
        assert read(guest.ready()) == expected
    finally:
        guest.close()


def _kill_in_the_middle(
    host: Host, tiny: images.Tiny, console: Open, vm: str, how: tuple[str, ...], moments: Moments
) -> None:
    create(host, tiny, vm)

    def opened() -> Guest:
        return console(host, vm)

    def put(text: str) -> None:
        guest = opened()
        write(guest.ready(), text)
        guest.close()

    put("first")
    host.kvmctl("snapshot", "create", vm, "first", *how)
    for number, moment in enumerate(moments):
        now = f"now {number}"
        put(now)
        # Taking one: it is there, whole, or it is not; done again it is there.
        killed(host, moment, "snapshot", "create", vm, "mid")
        again = host.kvmctl("snapshot", "create", vm, "mid", "-o", "json", check=False)
        assert again.returncode in (0, 4), again.stderr
        assert again.returncode == 0 or "already has a snapshot named 'mid'" in again.error()["message"]
        assert set(names(host, vm)) >= {"first", "mid"}
        shows(opened, now)
        is_whole(host, vm)

        # Going back: whatever came of it, done again the guest is there, and its present can be come back to.
        killed(host, moment, "snapshot", "revert", vm, "first")
        # Where it had been done, once more would keep the moment that it went to as the present.
        last = host.kvmctl("undo", vm, "--dry-run", "-o", "json", check=False)
        done = last.returncode == 0 and last.json()["command"] == f"snapshot revert {vm} first"
        # Either tidies up first.
        host.kvmctl(*(("start", vm) if done else ("snapshot", "revert", vm, "first")))
        shows(opened, "first")
        is_whole(host, vm)
        host.kvmctl("snapshot", "revert", vm, "before-revert")
        shows(opened, now)

        # Deleting one: it is there still, or it has gone.
        killed(host, moment, "snapshot", "delete", vm, "mid", "-y")
        assert host.kvmctl("snapshot", "delete", vm, "mid", "-y", check=False).returncode in (0, 3)
        assert "mid" not in names(host, vm)
        shows(opened, now)
        is_whole(host, vm)
    host.kvmctl("destroy", vm)
    host.kvmctl("start", vm)
    shows(opened, now)
    host.kvmctl("delete", vm, "-y")


@KINDS
@pytest.mark.usefixtures("leaves_nothing")
def test_killed_at_snapshots(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str], how: tuple[str, ...]
) -> None:
    _kill_in_the_middle(host_a, tiny, console, vm_name("kill"), how, MOMENTS[1:2])


@pytest.mark.full
@KINDS
@pytest.mark.usefixtures("leaves_nothing")
def test_killed_at_snapshots_again_and_again(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str], how: tuple[str, ...]
) -> None:
    _kill_in_the_middle(host_a, tiny, console, vm_name("kill"), how, MOMENTS * 2)


@pytest.mark.usefixtures("leaves_nothing")
def test_a_freeze_that_was_never_used_is_taken_back_before_the_next_start(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("src"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start")
    # Killed at whatever step of it: the source starts, and the copy can be made.
    for number in range(6):
        killed(host_a, 0.08 + 0.03 * number, "clone", vm, copy)
        host_a.kvmctl("start", vm)
        host_a.kvmctl("destroy", vm)
    host_a.kvmctl("delete", copy, "-y", check=False)
    host_a.kvmctl("clone", vm, f"{copy}-2")
    host_a.kvmctl("delete", vm, f"{copy}-2", "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_killed_while_a_running_guest_is_forked(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, fork = vm_name("src"), vm_name("fork")
    host_a.start_default_network()
    source(host_a, tiny, vm, net="nat")
    guest = console(host_a, vm).ready()
    guest.address()
    write(guest, "first")
    guest.close()
    # While the memory is being written, or before: the source runs on.
    killed(host_a, 0.7, "clone", vm, fork, "--live")
    host_a.kvmctl("delete", fork, "-y", check=False)
    shows(lambda: console(host_a, vm), "first")
    assert not files(host_a, fork)

    # Ctrl-C is no kill: whatever was made by then is taken back, and what the kill before has left.
    process = subprocess.Popen(
        host_a.kvmctl_command("clone", vm, fork, "--live"), env=host_a.environment(), stderr=subprocess.PIPE
    )
    wait_until(lambda: fork in [domain.name() for domain in host_a.conn.listAllDomains(0)], "the copy's name")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, b"unexpected" in told) == (130, False), told
    assert not files(host_a, fork)
    assert fork not in [domain.name() for domain in host_a.conn.listAllDomains(0)]
    is_whole(host_a, vm)

    # When the copy goes on already: it is cut off, said to be unfinished, and goes altogether.
    process = subprocess.Popen(
        host_a.kvmctl_command("clone", vm, fork, "--live"),
        env=host_a.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: host_a.virsh("domstate", fork, check=False).stdout.strip() in ("running", "paused"), "a fork"
        )
    finally:
        process.kill()
        process.wait()
    mac = host_a.virsh("domiflist", fork).stdout.split()[-1]
    # It has not run, or is cut off.
    state = host_a.virsh("domstate", fork).stdout.strip()
    assert state == "paused" or "down" in host_a.virsh("domif-getlink", fork, mac).stdout
    resumed = host_a.kvmctl("resume", fork, "-o", "json", check=False)
    assert state == "running" or (resumed.returncode, "did not finish" in resumed.error()["message"]) == (4, True)
    again = host_a.kvmctl("clone", vm, fork, "--live", "-o", "json", check=False)
    assert (again.returncode, again.error()["code"]) == (4, "conflict")
    assert "did not finish" in again.error()["message"]
    host_a.kvmctl("delete", fork, "-y")
    assert not files(host_a, fork)
    # Nor is an address kept for it any more.
    assert mac not in host_a.conn.networkLookupByName("default").XMLDesc(0)
    shows(lambda: console(host_a, vm), "first")
    is_whole(host_a, vm)
    host_a.kvmctl("clone", vm, fork, "--live")
    host_a.kvmctl("delete", vm, fork, "-y")
