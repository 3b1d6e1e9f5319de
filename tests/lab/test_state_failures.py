"""Snapshots and copies that go wrong in the middle: full disks, Ctrl-C, kill -9."""

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab import images
from tests.lab.hosts import Host, wait_until
from tests.lab.test_snapshots import COUNTER, Open, create, names, read, write


@pytest.fixture
def small_pool(host_a: Host) -> Iterator[str]:
    """A storage pool with 48 MiB of room, less than any guest's memory."""
    place = "/var/lib/libvirt/small"
    host_a.run(["mkdir", "-p", place])
    host_a.run(["mount", "-t", "tmpfs", "-o", "size=48m", "small", place])
    pool = host_a.conn.storagePoolCreateXML(
        f"<pool type='dir'><name>small</name><target><path>{place}</path></target></pool>", 0
    )
    yield "small"
    for domain in host_a.conn.listAllDomains(0):
        if "/small/" in domain.XMLDesc(0):
            host_a.kvmctl("delete", domain.name(), "-y", check=False)
    pool.destroy()
    host_a.run(["umount", "-l", place])


def test_a_full_disk_leaves_the_guest_running_and_nothing_else(
    host_a: Host, tiny: images.Tiny, small_pool: str, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, fork = vm_name("full"), vm_name("fork")
    create(host_a, tiny, vm, disk=f"16M,pool={small_pool}")
    guest = console(host_a, vm).ready()
    guest.run(COUNTER)
    write(guest, "mine")
    # Memory that no compression of zero pages makes small.
    guest.run("dd if=/dev/urandom of=/tmp/noise bs=1M count=50 2>/dev/null")
    before = host_a.files()
    for args in (("snapshot", "create", vm, "two", "--external"), ("clone", vm, fork, "--live")):
        refused = host_a.kvmctl(*args, "-o", "json", check=False)
        assert (refused.returncode, refused.error()["code"]) == (7, "refused"), refused.stderr
        assert "free" in refused.error()["message"]
    failed = host_a.kvmctl("snapshot", "create", vm, "one", "-o", "json", check=False)
    assert failed.returncode != 0
    assert names(host_a, vm) == {}
    assert host_a.kvmctl("info", vm, "-o", "json").json()["state"] == "running"
    inside = host_a.run(["qemu-img", "snapshot", "-U", "-l", f"/var/lib/libvirt/small/{vm}.qcow2"]).stdout
    assert inside.strip() == ""
    assert host_a.files() == before
    assert read(guest) == "mine"


def _fill(host: Host, vm: str) -> None:
    host.run(["qemu-io", "-c", "write -P 7 0 400M", f"/var/lib/libvirt/images/{vm}.qcow2"])


def _started(host: Host, vm: str, copy: str) -> "subprocess.Popen[bytes]":
    """A full copy that is under way, and stays so until _go_on(): what copies for libvirt stands still."""
    process = subprocess.Popen(
        host.kvmctl_command("clone", vm, copy, "--full"),
        env=host.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: host.run(["pkill", "-STOP", "-x", "qemu-img"], check=False).returncode == 0, "the copying")
    return process


def _go_on(host: Host) -> None:
    host.run(["pkill", "-CONT", "-x", "qemu-img"])


@pytest.mark.usefixtures("leaves_nothing")
def test_ctrl_c_and_kill_in_the_middle_of_a_copy(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("src"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start", disk="512M")
    _fill(host_a, vm)
    before = host_a.files()
    process = _started(host_a, vm, copy)
    process.send_signal(signal.SIGINT)
    _go_on(host_a)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert host_a.files() == before
    assert host_a.kvmctl("info", copy, check=False).returncode == 3

    process = _started(host_a, vm, copy)
    process.kill()
    process.communicate()
    _go_on(host_a)
    # Done again it begins anew, over what the killed one left.
    wait_until(lambda: host_a.virsh("pool-refresh", "default", check=False).returncode == 0, "the copy libvirt makes")
    made = host_a.kvmctl("clone", vm, copy, "--full", "-o", "json").json()
    host_a.run(["qemu-img", "compare", made["disks"][0]["source"], f"/var/lib/libvirt/images/{vm}.qcow2"])
    host_a.kvmctl("delete", copy, vm, "-y")
