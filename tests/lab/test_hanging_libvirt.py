"""Ctrl-C and SIGTERM while libvirtd hangs: it is there and answers nothing."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.hosts import Host, wait_until
from tests.lab.moving import Define, Running, qemu_pids, until_sending

MIB = 2**20
Named = Callable[[str], str]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A raw disk, an "ISO" as well, that takes some seconds to upload."""
    path = tmp_path / "big.iso"
    with path.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa" + os.urandom(16 * 2048 - 512))
        file.write(b"\x01CD001\x01" + bytes(2041))
        block = os.urandom(MIB)
        for _ in range(600):
            file.write(block)
    return path


def begin(host: Host, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        host.kvmctl_command(*args),
        env=host.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_half_there(process: "subprocess.Popen[str]", file: Path) -> None:
    end = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size > 20 * MIB):
        assert process.poll() is None, f"over before it could be interrupted: {process.communicate()}"
        assert time.monotonic() < end, "the upload never began"
        time.sleep(0.002)


def interrupted(process: "subprocess.Popen[str]", uri: str) -> str:
    """What it says, sent Ctrl-C, and once more when it has said what it waits for."""
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    first = ""
    while "libvirt does not answer" not in first:
        line = process.stderr.readline()
        assert line, f"ended without saying what it waits for: {first}"
        first += line
    assert "Ctrl-C again" in line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, first + rest
    assert f"interrupted, and libvirt does not answer ({uri})" in rest
    assert "Traceback" not in rest
    return rest


@pytest.mark.usefixtures("leaves_nothing")
def test_an_import_is_interrupted(host_a: Host, big: Path) -> None:
    file = host_a.folder / "lib" / "kvmctl-images" / "cut.iso"
    process = begin(host_a, "image", "import", str(big), "--name", "cut")
    until_half_there(process, file)
    with host_a.hanging_libvirtd():
        said = interrupted(process, host_a.uri)
    assert "when libvirt answers again" in said
    host_a.kvmctl("image", "delete", "cut.iso", "--yes")
    assert not file.exists()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_creation_on_another_host_is_interrupted(host_a: Host, host_b: Host, big: Path, vm_name: Named) -> None:
    name = vm_name("hung")
    options = ("--memory", "256M", "--graphics", "none", "--net", "none", "--disk", "1G")
    host_b.run(["mount", "-t", "tmpfs", "tmpfs", str(big.parent)])
    try:
        process = begin(host_a, "-c", host_b.tcp_uri, "create", name, "--cdrom", str(big), *options)
        until_half_there(process, host_b.folder / "lib" / "images" / f"{name}-cdrom.iso")
        with host_b.hanging_libvirtd():
            said = interrupted(process, host_b.tcp_uri)
    finally:
        host_b.run(["umount", str(big.parent)])
    assert "could not undo" in said and name in said
    host_a.kvmctl("-c", host_b.tcp_uri, "delete", name, "--yes")


@pytest.mark.full
@pytest.mark.usefixtures("leaves_nothing")
def test_one_signal_suffices(host_a: Host, big: Path) -> None:
    process = begin(host_a, "image", "import", str(big), "--name", "cut", "-o", "json")
    until_half_there(process, host_a.folder / "lib" / "kvmctl-images" / "cut.iso")
    with host_a.hanging_libvirtd():
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, '"code": "interrupted"' in said) == (130, True), said
    host_a.kvmctl("image", "delete", "cut.iso", "--yes")


@pytest.mark.full
@pytest.mark.parametrize("work", [("save",), ("snapshot", "create")])
def test_what_waits_for_the_guests_qemu(host_a: Host, tiny: images.Tiny, vm_name: Named, work: tuple[str, ...]) -> None:
    """Neither QEMU nor libvirtd answers; when both do again, libvirt ends what it was asked for, or gives it up."""
    name = vm_name("hung")
    boot = ("--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline)
    host_a.kvmctl("create", name, *boot, "--memory", "256M", "--net", "none", "--disk", "1G", "--wait", "agent")
    (qemu,) = qemu_pids(host_a, name)
    host_a.run(["kill", "-STOP", str(qemu)])
    try:
        process = begin(host_a, *work, name)
        time.sleep(3)
        with host_a.hanging_libvirtd(goes_on=True):
            interrupted(process, host_a.uri)
    finally:
        host_a.run(["kill", "-CONT", str(qemu)])
    wait_until(lambda: host_a.virsh("domjobinfo", name, check=False).stdout.split()[-1:] in ([], ["None"]), "its end")
    host_a.kvmctl("start", name, "--wait", "agent")
    host_a.kvmctl("resume", name)
    assert "hung" in host_a.kvmctl("exec", name, "--", "echo", "hung").stdout
    host_a.kvmctl("delete", name, "--yes")


@pytest.mark.full
@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_move(moving: Define, host_a: Host, host_b: Host, which: str) -> None:
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, "--bandwidth", "1M")
    until_sending(host_a, guest.name)
    with (host_a if which == "source" else host_b).hanging_libvirtd(goes_on=True):
        running.send(signal.SIGINT)
        time.sleep(5)
        running.send(signal.SIGINT)
        result = running.end()
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json")
    guest.assert_one(host_a)
