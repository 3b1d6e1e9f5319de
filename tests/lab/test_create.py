"""create and delete: all of it or nothing, whatever happens in between."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.process import Result

Named = Callable[[str], str]
SMALL = ("--memory", "256M", "--vcpus", "1", "--graphics", "none")


def boot(tiny: images.Tiny, more: str = "") -> tuple[str, ...]:
    return ("--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", f"{tiny.cmdline} {more}".strip())


def copied(tiny: images.Tiny, folder: Path) -> images.Tiny:
    """The same guest from files that no host sees, so that they must be uploaded."""
    for file in (tiny.kernel, tiny.initrd):
        shutil.copy(file, folder)
    return dataclasses.replace(tiny, kernel=folder / tiny.kernel.name, initrd=folder / tiny.initrd.name)


def volumes(host: Host) -> list[str]:
    return sorted(v.name() for pool in host.conn.listAllStoragePools(2) for v in pool.listAllVolumes(0))


def domains(host: Host) -> list[str]:
    return sorted(domain.name() for domain in host.conn.listAllDomains(0))


@pytest.fixture
def hidden(tmp_path: Path, host_b: Host) -> Iterator[Path]:
    """A folder of this machine's that host b does not see, so that what b needs of it must be uploaded."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    host_b.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)])
    yield folder
    host_b.run(["umount", str(folder)])


@pytest.fixture
def big_iso(hidden: Path) -> Path:
    """An "ISO" that takes some seconds to upload, so that there is a middle to be interrupted in."""
    path = hidden / "big.iso"
    with path.open("wb") as file:
        file.write(os.urandom(16 * 2048))
        file.write(b"\x01CD001\x01" + bytes(2041))
        block = os.urandom(2**20)
        for _ in range(700):
            file.write(block)
    return path


@pytest.mark.usefixtures("leaves_nothing")
def test_a_guest_is_made_reached_and_removed(
    host_a: Host, tiny: images.Tiny, vm_name: Named, console: Callable[[Host, str], Guest]
) -> None:
    name = vm_name("web")
    made = host_a.kvmctl(
        "create",
        name,
        *boot(tiny),
        *SMALL,
        "--net",
        "user",
        "-p",
        "2222:22",
        "--disk",
        "1G",
        "--disk",
        "64M,bus=scsi",
        "--title",
        "a title",
        "-o",
        "json",
    )
    row = made.json()
    assert row["name"] == name
    assert row["state"] == "running"
    assert row["changed"] is True
    assert row["accel"] == "tcg"
    assert "no KVM" in made.stderr
    assert [disk["target"] for disk in row["disks"]] == ["vda", "sda"]
    assert [disk["capacity_bytes"] for disk in row["disks"]] == [2**30, 64 * 2**20]
    assert row["nics"][0]["mode"] == "user"
    guest = console(host_a, name).ready()
    assert "1073741824" in guest.run("echo $(($(cat /sys/block/vda/size) * 512))")
    guest.wait_for("address eth0")
    banner = host_a.client(["socat", "-t", "5", "TCP:127.0.0.1:2222", "STDIO"], input="")
    assert banner.stdout.startswith("SSH-2.0-")
    guest.close()
    again = host_a.kvmctl("create", name, *boot(tiny), *SMALL, "-o", "json", check=False)
    assert again.returncode == 4
    assert again.error()["code"] == "conflict"
    gone = host_a.kvmctl("delete", name, "--yes", "-o", "json").json()
    assert gone["name"] == name
    assert len(gone["deleted"]) == 2
    assert gone["kept"] == []
    assert host_a.kvmctl("delete", name, "--yes", check=False).returncode == 3


@pytest.mark.usefixtures("leaves_nothing")
def test_dry_run_shows_the_xml_and_touches_nothing(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = vm_name("dry")
    row = host_a.kvmctl(
        "create", name, *boot(tiny), "--disk", "1G", "--net", "nat", "--firmware", "uefi", "--dry-run", "-o", "json"
    ).json()
    assert row["dry_run"] is True
    assert any("1 GiB" in step for step in row["steps"])
    host_a.conn.defineXML(row["xml"])
    host_a.conn.lookupByName(name).undefineFlags(4)
    assert name not in domains(host_a)
    text = host_a.kvmctl("create", name, *boot(tiny), "--dry-run").stdout
    assert "would define the VM" in text
    assert f"<name>{name}</name>" in text


@pytest.mark.usefixtures("leaves_nothing")
def test_a_guest_that_does_not_get_far_enough_is_taken_back_unless_it_shall_stay(
    host_a: Host, tiny: images.Tiny, vm_name: Named
) -> None:
    name = vm_name("late")
    # The tiny guest has no cloud-init: that is waited for in vain.
    make = ("create", name, *boot(tiny), *SMALL, "--disk", "1G", "--net", "user")
    wait = ("--wait", "cloud-init", "--timeout", "3s")
    gone = host_a.kvmctl(*make, *wait, check=False)
    assert (gone.returncode, f"so {name} was taken back" in gone.stderr) == (6, True), gone.stderr
    assert (domains(host_a), volumes(host_a)) == ([], [])
    kept = host_a.kvmctl(*make, *wait, "--keep", check=False)
    assert (kept.returncode, "the VM runs on" in kept.stderr) == (6, True), kept.stderr
    assert host_a.conn.lookupByName(name).isActive()
    host_a.kvmctl("delete", name, "--yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("leaves_nothing")
def test_an_interrupted_creation_leaves_nothing(
    host_a: Host, host_b: Host, big_iso: Path, vm_name: Named, number: signal.Signals
) -> None:
    name = vm_name("cut")
    process = start_upload(host_a, host_b, name, big_iso)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert domains(host_b) == []
    assert volumes(host_b) == []


def start_upload(host_a: Host, host_b: Host, name: str, iso: Path) -> "subprocess.Popen[str]":
    """A creation on b, seen from a, in the middle of its upload."""
    process = subprocess.Popen(
        host_a.kvmctl_command(
            "-c", host_b.tcp_uri, "create", name, "--cdrom", str(iso), *SMALL, "--disk", "1G", "--net", "none"
        ),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        if f"{name}-cdrom.iso" in files(host_b):
            return process
        time.sleep(0.01)
    raise AssertionError("the upload never began")


def files(host: Host) -> list[str]:
    folder = host.folder / "lib" / "images"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.usefixtures("leaves_nothing")
def test_what_a_killed_creation_left_is_cleaned_by_delete_or_by_the_next_one(
    host_a: Host, host_b: Host, big_iso: Path, tiny: images.Tiny, hidden: Path, vm_name: Named
) -> None:
    name = vm_name("killed")
    own = boot(copied(tiny, hidden))
    for clean in ("delete", "create"):
        process = start_upload(host_a, host_b, name, big_iso)
        process.kill()
        process.communicate(timeout=60)
        assert name in domains(host_b)
        if clean == "delete":
            host_a.kvmctl("-c", host_b.tcp_uri, "delete", name, "--yes")
        else:
            host_a.kvmctl(
                "-c", host_b.tcp_uri, "create", name, *own, *SMALL, "--net", "none", "--disk", "1G", "--no-start"
            )
            assert files(host_b) == [f"{name}-initrd", f"{name}-kernel", f"{name}.qcow2"]
            host_a.kvmctl("-c", host_b.tcp_uri, "delete", name, "--yes")
        assert domains(host_b) == []
        assert files(host_b) == []


@pytest.mark.usefixtures("leaves_nothing")
def test_of_two_creations_of_one_name_one_wins(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = vm_name("twice")
    command = host_a.kvmctl_command("create", name, *boot(tiny), *SMALL, "--net", "none", "--disk", "1G", "-o", "json")
    racers = [
        subprocess.Popen(command, env=host_a.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outcomes = [(racer.communicate(timeout=120), racer.returncode) for racer in racers]
    assert sorted(code for _, code in outcomes) == [0, 4, 4, 4], outcomes
    winner = next(json.loads(streams[0]) for streams, code in outcomes if code == 0)
    assert host_a.conn.lookupByName(name).UUIDString() == winner["uuid"]
    host_a.kvmctl("delete", name, "--yes")
    assert files(host_a) == []


@pytest.mark.usefixtures("leaves_nothing")
def test_a_port_in_use_undoes_the_creation(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    holder = subprocess.Popen(
        ["nsenter", f"--net={host_a.net.path}", "--", "socat", "TCP-LISTEN:2299,bind=127.0.0.1,fork", "SYSTEM:cat"]
    )
    try:
        wait_for_listener(host_a, 2299)
        result = host_a.kvmctl(
            "create",
            vm_name("port"),
            *boot(tiny),
            *SMALL,
            "--disk",
            "1G",
            "--net",
            "user",
            "-p",
            "2299:22",
            check=False,
        )
    finally:
        holder.kill()
        holder.wait()
    assert result.returncode == 4
    assert "2299" in result.stderr
    assert domains(host_a) == []
    assert files(host_a) == []


def wait_for_listener(host: Host, port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if f":{port} " in host.run(["ss", "-Hltn"]).stdout:
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on {port}")


@pytest.mark.usefixtures("leaves_nothing")
def test_a_port_published_for_another_guest_is_refused_with_its_name(
    host_a: Host, tiny: images.Tiny, vm_name: Named
) -> None:
    first, second = vm_name("first"), vm_name("second")
    options = (*boot(tiny), *SMALL, "--net", "user", "-p", "2200:22", "--no-start")
    host_a.kvmctl("create", first, *options)
    result = host_a.kvmctl("create", second, *options, check=False)
    assert result.returncode == 4
    assert first in result.stderr
    assert domains(host_a) == [first]
    host_a.kvmctl("delete", first, "--yes")


@pytest.fixture
def small_pool(host_b: Host) -> Iterator[None]:
    """Host b's pool of disks on a file system of 20 MiB."""
    target = "/var/lib/libvirt/images"
    host_b.run(["mkdir", "-p", target])
    # libvirt has looked at the pool when there was room.
    host_b.define_default_pool()
    host_b.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", target])
    try:
        yield
        for pool in host_b.conn.listAllStoragePools(0):
            if pool.isActive():
                pool.destroy()
            pool.undefine()
    finally:
        host_b.run(["umount", "-l", target])


@pytest.mark.usefixtures("small_pool")
def test_a_full_disk_undoes_the_creation(host_a: Host, host_b: Host, big_iso: Path, vm_name: Named) -> None:
    result = host_a.kvmctl(
        "-c", host_b.tcp_uri, "create", vm_name("full"), "--cdrom", str(big_iso), *SMALL, "--net", "none", check=False
    )
    assert result.returncode != 0
    assert "space" in result.stderr.lower()
    assert domains(host_b) == []
    assert volumes(host_b) == []


def test_a_libvirt_that_dies_in_the_middle(host_a: Host, host_b: Host, big_iso: Path, vm_name: Named) -> None:
    name = vm_name("orphan")
    process = start_upload(host_a, host_b, name, big_iso)
    host_b.kill_libvirtd()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 5, stderr
    assert "Traceback" not in stderr
    host_b.start_libvirtd()
    # What could not be undone without libvirt is known to it, and goes with the VM.
    host_a.kvmctl("-c", host_b.tcp_uri, "delete", name, "--yes")
    assert files(host_b) == []


@pytest.mark.usefixtures("leaves_nothing")
def test_a_guest_on_another_host(host_a: Host, host_b: Host, tiny: images.Tiny, hidden: Path, vm_name: Named) -> None:
    name = vm_name("far")
    tiny = copied(tiny, hidden)
    address = host_b.address
    row = host_a.kvmctl(
        "-c",
        host_b.tcp_uri,
        "create",
        name,
        *boot(tiny),
        *SMALL,
        "--disk",
        "1G",
        "--net",
        "user",
        "-p",
        f"{address}:2222:22",
        "-o",
        "json",
    ).json()
    assert row["state"] == "running"
    assert files(host_b) == [f"{name}-initrd", f"{name}-kernel", f"{name}.qcow2"]
    banner = host_a.client(
        [
            "sh",
            "-c",
            f"for i in $(seq 100); do socat -t 5 TCP:{address}:2222 STDIO </dev/null | grep -a SSH && exit; "
            "sleep 0.3; done; exit 1",
        ],
        timeout=90,
    )
    assert banner.stdout.startswith("SSH-2.0-")
    host_a.kvmctl("-c", host_b.tcp_uri, "delete", name, "--yes")
    assert files(host_b) == []


@pytest.mark.usefixtures("leaves_nothing")
def test_delete_keeps_what_kvmctl_did_not_make(host_a: Host, vm_name: Named) -> None:
    path = Path(host_a.shared) / "mine.qcow2"
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"])
    name = vm_name("imported")
    row = host_a.kvmctl(
        "create", name, "--import", str(path), *SMALL, "--net", "none", "--no-start", "-o", "json"
    ).json()
    assert row["disks"][0]["format"] == "qcow2"
    other = host_a.kvmctl("create", vm_name("second"), "--import", str(path), *SMALL, "--net", "none", check=False)
    assert other.returncode == 7
    assert name in other.stderr
    gone = host_a.kvmctl("delete", name, "--yes", "-o", "json").json()
    assert gone["kept"] == [str(path)]
    host_a.run(["rm", str(path)])


def test_delete_refuses_what_others_stand_on(host_a: Host, vm_name: Named) -> None:
    name = vm_name("base")
    host_a.kvmctl("create", name, "--pxe", *SMALL, "--net", "user", "--disk", "64M", "--no-start")
    host_a.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            f"/var/lib/libvirt/images/{name}.qcow2",
            "/var/lib/libvirt/images/child.qcow2",
        ]
    )
    host_a.virsh("pool-refresh", "default")
    result = host_a.kvmctl("delete", name, "--yes", check=False)
    assert result.returncode == 7
    assert "child.qcow2" in result.stderr
    assert name in domains(host_a)


def bad(host: Host, *args: str) -> Result:
    """``create bad`` with these options, which must fail with one clear line and leave nothing."""
    result = host.kvmctl("create", "bad", *SMALL, *args, check=False, timeout=60)
    assert "Traceback" not in result.stderr
    assert "unexpected" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("  ", "warning:"))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert domains(host) == []
    return result


@pytest.mark.usefixtures("leaves_nothing")
def test_bad_input_is_refused_before_anything_is_made(host_a: Host, tmp_path: Path) -> None:
    (tmp_path / "empty.iso").touch()
    (tmp_path / "text.iso").write_text("no ISO at all\n" * 4000)
    (tmp_path / "folder").mkdir()
    kernel = ("--kernel", "/etc/hostname")
    expected = {
        ("--cdrom", str(tmp_path / "none.iso")): 3,
        ("--cdrom", str(tmp_path / "empty.iso")): 2,
        ("--cdrom", str(tmp_path / "text.iso")): 2,
        ("--cdrom", str(tmp_path / "folder")): 2,
        ("--import", str(tmp_path / "none.qcow2")): 3,
        ("--import", str(tmp_path / "empty.iso")): 2,
        ("--import", str(tmp_path / "folder")): 2,
        ("--image", "no-such-image"): 3,
        ("--kernel", str(tmp_path / "none")): 3,
        (*kernel, "--machine", "amiga"): 2,
        (*kernel, "--arch", "vax"): 2,
        (*kernel, "--cpu", "z80"): 2,
        (*kernel, "--accel", "kvm"): 7,
        (*kernel, "--vcpus", "99999"): 2,
        (*kernel, "--vcpus", "0"): 2,
        (*kernel, "--vcpus", "two"): 2,
        (*kernel, "--memory", "1k"): 2,
        (*kernel, "--memory", "lots"): 2,
        (*kernel, "--disk", "0"): 2,
        (*kernel, "--disk", "1G,pool=nowhere"): 3,
        (*kernel, "--net", "network:nowhere"): 3,
        (*kernel, "--net", "user", "-p", "80"): 2,
        (*kernel, "--pci", "1:2:3"): 2,
        (*kernel, "--firmware", "openfirmware"): 2,
        (*kernel, "--wait", "someday"): 2,
        (*kernel, "--timeout", "soon"): 2,
        (*kernel, "--ssh-key", str(tmp_path / "none.pub")): 3,
        (*kernel, "--no-such-option"): 2,
    }
    wrong = {
        args: result.stderr for args, code in expected.items() if (result := bad(host_a, *args)).returncode != code
    }
    assert not wrong, wrong


def test_no_libvirt_is_exit_5_and_names_the_uri(host_a: Host, tmp_path: Path) -> None:
    uri = f"qemu:///system?socket={tmp_path}/none"
    result = host_a.kvmctl("-c", uri, "create", "x", "--pxe", "-o", "json", check=False)
    assert result.returncode == 5
    assert uri in result.error()["message"]
