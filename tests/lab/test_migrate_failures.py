"""A migration that is disturbed: exactly one guest remains, nothing is left over, and kvmctl's words are true."""

import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab
from tests.lab.moving import Define, Moving, Running, dirty, disk, images, qemu_pids, until_sending

# Slow enough for something to happen while the memory is on its way.
SLOWLY = ("--bandwidth", "8M")
DISK = "/var/lib/libvirt/images/moving.qcow2"


@pytest.fixture
def moving(lab: Lab, moving: Define, leaves_nothing: None) -> Iterator[Define]:
    """Makes a guest on host a, that is removed at the end; whatever else is left then fails the test."""
    made: list[Moving] = []

    def one(**options: Any) -> Moving:
        made.append(moving(**options))
        return made[-1]

    yield one
    for guest in made:
        for host in lab.hosts:
            host.virsh("destroy", guest.uuid, check=False)
            host.virsh("undefine", guest.uuid, check=False)


@pytest.fixture
def with_disk(lab: Lab, moving: Define, host_a: Host) -> Iterator[Moving]:
    """A guest with 48 MiB of data on a disk that only host a has."""
    for host in lab.hosts:
        images(host)
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", DISK, "64M"])
    guest = moving(devices=disk(DISK))
    with Guest(host_a, guest.name) as console:
        console.run("dd if=/dev/urandom of=/dev/vda bs=1M count=48 conv=fsync")
        console.run("sha256sum /dev/vda >/tmp/sum")
    yield guest
    for host in lab.hosts:
        host.run(["rm", "-f", DISK])


def unharmed(guest: Moving) -> None:
    """What the guest wrote to its disk before is still what it reads."""
    with guest.alive() as console:
        console.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /tmp/sum", timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(moving: Define, host_a: Host, host_b: Host, number: signal.Signals) -> None:
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "-o", "json")
    until_sending(host_a, guest.name)
    running.send(number)
    result = running.end()
    assert result.returncode == 130, result.stderr
    error = result.error()
    assert error["code"] == "interrupted" and f"running on {host_a.uri}, as before" in error["message"]
    guest.assert_one(host_a)
    assert "urn:kvmctl:migration" not in host_a.virsh("dumpxml", guest.name).stdout


def test_killed_and_aborted(moving: Define, host_a: Host, host_b: Host) -> None:
    """After kill -9 libvirt goes on by itself; --abort ends that."""
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY)
    until_sending(host_a, guest.name)
    running.send(signal.SIGKILL)
    running.end()
    row = host_a.kvmctl("migrate", guest.name, "--abort", "-o", "json").json()
    assert row["changed"] is True and row["state"] == "running"
    again = host_a.kvmctl("migrate", guest.name, "--abort", "-o", "json").json()
    assert again["changed"] is False
    # Nothing else is to be done, but it also takes the note out of the metadata.
    assert "urn:kvmctl:migration" in host_a.virsh("dumpxml", guest.name).stdout
    row = host_a.kvmctl("migrate", guest.name, "--recover", "-o", "json").json()
    assert row["place"] == "source" and row["state"] == "running"
    assert "urn:kvmctl:migration" not in host_a.virsh("dumpxml", guest.name).stdout
    guest.assert_one(host_a)


def test_killed_and_finished_without_kvmctl(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    host_a.conn.lookupByName(guest.name).setAutostart(1)
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri)
    until_sending(host_a, guest.name)
    running.send(signal.SIGKILL)
    running.end()
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "destination" and row["state"] == "running"
    guest.assert_one(host_b)
    assert host_b.conn.lookupByName(guest.name).autostart() == 1
    assert "urn:kvmctl:migration" not in host_b.virsh("dumpxml", guest.name).stdout


def test_the_destinations_qemu_is_killed(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "-o", "json")
    until_sending(host_a, guest.name)
    for pid in qemu_pids(host_b, guest.name):
        host_b.run(["kill", "-9", str(pid)])
    result = running.end()
    assert result.returncode not in (0, 130) and f"running on {host_a.uri}" in result.error()["message"]
    guest.assert_one(host_a)


def test_the_sources_qemu_is_killed(moving: Define, host_a: Host, host_b: Host) -> None:
    """Nobody can save that guest; it is off, its definition is where it was, and that is said."""
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "-o", "json")
    until_sending(host_a, guest.name)
    for pid in qemu_pids(host_a, guest.name):
        host_a.run(["kill", "-9", str(pid)])
    result = running.end()
    assert result.returncode not in (0, 130) and "it is off" in result.error()["message"]
    assert (guest.state(host_a), guest.state(host_b)) == ("shut off", "absent")
    assert qemu_pids(host_b, guest.name) == []


@pytest.mark.parametrize("which", ["source", "destination"])
def test_a_libvirtd_is_killed(moving: Define, host_a: Host, host_b: Host, which: str) -> None:
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "-o", "json")
    until_sending(host_a, guest.name)
    host = host_a if which == "source" else host_b
    host.kill_libvirtd()
    host.start_libvirtd()
    result = running.end()
    assert result.returncode not in (0, 130)
    assert f"running on {host_a.uri}" in result.error()["message"], result.stderr
    guest.assert_one(host_a)
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "source"


def test_the_link_is_cut(moving: Define, host_a: Host, host_b: Host, lab: Lab) -> None:
    """libvirt itself notices after 30 s; the guest runs on all the time."""
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "-o", "json")
    until_sending(host_a, guest.name)
    lab.wire.ip("link", "set", "lab-b", "down")
    try:
        result = running.end()
    finally:
        lab.wire.ip("link", "set", "lab-b", "up")
    assert result.returncode not in (0, 130)
    assert f"running on {host_a.uri}" in result.error()["message"], result.stderr
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "source" and row["state"] == "running"
    guest.assert_one(host_a)


@pytest.mark.full
def test_the_link_is_cut_at_the_switchover(moving: Define, host_a: Host, host_b: Host, lab: Lab) -> None:
    """The worst moment: stopped here, not yet running there, and neither host hears of the other.

    What comes of it is left to the machine; the worst that can is the next test's.
    """
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, "-o", "json")
    cut = stopped_to_switch(host_a, guest, running)
    try:
        if cut:
            lab.wire.ip("link", "set", "lab-b", "down")
        result = running.end(timeout=150)
    finally:
        lab.wire.ip("link", "set", "lab-b", "up")
    recovered = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json", check=False)
    assert recovered.returncode == 0, (cut, result.stderr, recovered.stderr)
    place = host_a if recovered.json()["place"] == "source" else host_b
    guest.assert_one(place)
    if result.returncode == 0:
        assert place is host_b


def test_the_last_answer_is_lost(moving: Define, host_a: Host, host_b: Host) -> None:
    """The destination has let the guest run, and the source never hears of it: libvirt then lets it run there too."""
    guest = moving()
    lost = ["INPUT", "-s", host_b.address, "-p", "tcp", "--sport", "16509", "-j", "DROP"]
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, "--bandwidth", "40M", "-o", "json")
    until_sending(host_a, guest.name)
    host_a.run(["iptables", "-I", *lost])
    try:
        result = running.end(timeout=150)
        assert (guest.state(host_a), guest.state(host_b)) == ("running", "running")
    finally:
        host_a.run(["iptables", "-D", *lost])
    assert result.returncode == 5 and f"running on {host_a.uri}" in result.error()["message"], result.stderr
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "source" and "it was ended" in row["sentence"]
    guest.assert_one(host_a)
    assert "urn:kvmctl:migration" not in host_a.virsh("dumpxml", guest.name).stdout


@pytest.mark.full
def test_the_link_is_cut_while_it_copies_a_disk(with_disk: Moving, host_a: Host, host_b: Host, lab: Lab) -> None:
    """QEMU would wait for its connection for a quarter of an hour; kvmctl does not, and the guest runs on.

    Two minutes, therefore with the long ones.
    """
    running = Running(host_a, "migrate", with_disk.name, host_b.tcp_uri, "--copy-storage", *SLOWLY, "-o", "json")
    until_sending(host_a, with_disk.name)
    lab.wire.ip("link", "set", "lab-b", "down")
    try:
        result = running.end(timeout=240)
    finally:
        lab.wire.ip("link", "set", "lab-b", "up")
    assert result.returncode not in (0, 130)
    assert f"running on {host_a.uri}" in result.error()["message"], result.stderr
    wait_until(lambda: idle(host_a, with_disk), "the end of libvirt's job", 240)
    row = host_a.kvmctl("migrate", with_disk.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "source" and row["state"] == "running"
    assert not (images(host_b) / "moving.qcow2").exists()
    with_disk.assert_one(host_a)
    unharmed(with_disk)


@pytest.mark.full
def test_moves_after_a_switchover_that_failed_with_its_disk(
    with_disk: Moving, host_a: Host, host_b: Host, lab: Lab
) -> None:
    """Its QEMU had begun to give the disk up when the link died; it waits for TCP, then goes on, writes and moves.

    Minutes, therefore with the long ones.
    """
    options = ["--copy-storage", "--bandwidth", "40M"]
    running = Running(host_a, "migrate", with_disk.name, host_b.tcp_uri, *options, "--timeout", "30s", "-o", "json")
    assert stopped_to_switch(host_a, with_disk, running)
    lab.wire.ip("link", "set", "lab-b", "down")
    try:
        result = running.end(timeout=150)
    finally:
        lab.wire.ip("link", "set", "lab-b", "up")
    assert result.returncode not in (0, 130), result.stderr
    wait_until(lambda: idle(host_a, with_disk), "the end of libvirt's job", 240)
    row = host_a.kvmctl("migrate", with_disk.name, host_b.tcp_uri, "--recover", "-o", "json", timeout=400).json()
    assert row["place"] == "source" and row["state"] == "running"
    with_disk.assert_one(host_a)
    unharmed(with_disk)
    with with_disk.alive() as console:
        console.run("dd if=/dev/urandom of=/dev/vda bs=1M count=1 conv=fsync,notrunc; sha256sum /dev/vda >/tmp/sum")
    for source, there in ((host_a, host_b), (host_b, host_a)):
        source.kvmctl("migrate", with_disk.name, there.tcp_uri, "--copy-storage", "-o", "json")
        with_disk.assert_one(there)
        unharmed(with_disk)
        source.run(["rm", DISK])
        source.virsh("pool-refresh", "default")


def test_timeout(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    dirty(guest, 32)
    result = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, *SLOWLY, "--timeout", "4s", "-o", "json", check=False)
    assert result.returncode == 6 and f"running on {host_a.uri}, as before" in result.error()["message"]
    assert "not finished within 4 s" in result.error()["message"] and result.error()["hint"]
    guest.assert_one(host_a)


def test_the_sources_qemu_answers_nothing(moving: Define, host_a: Host, host_b: Host) -> None:
    """As one does whose disk waits for a dead link: libvirt waits for it, and kvmctl keeps its word all the same."""
    guest = moving()
    running = Running(host_a, "migrate", guest.name, host_b.tcp_uri, *SLOWLY, "--timeout", "6s", "-o", "json")
    until_sending(host_a, guest.name)
    (pid,) = qemu_pids(host_a, guest.name)
    host_a.run(["kill", "-STOP", str(pid)])
    try:
        result = running.end()
    finally:
        host_a.run(["kill", "-CONT", str(pid)])
    assert result.returncode == 6 and f"running on {host_a.uri}" in result.error()["message"], result.stderr
    wait_until(lambda: idle(host_a, guest), "the end of libvirt's job")
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--recover", "-o", "json").json()
    assert row["place"] == "source" and row["state"] == "running"
    guest.assert_one(host_a)


def test_interrupted_while_it_copies_a_disk(with_disk: Moving, host_a: Host, host_b: Host) -> None:
    running = Running(host_a, "migrate", with_disk.name, host_b.tcp_uri, "--copy-storage", *SLOWLY)
    until_sending(host_a, with_disk.name)
    assert (images(host_b) / "moving.qcow2").exists()
    running.send(signal.SIGINT)
    result = running.end()
    assert result.returncode == 130, result.stderr
    assert not (images(host_b) / "moving.qcow2").exists()
    with_disk.assert_one(host_a)
    unharmed(with_disk)


def test_killed_while_it_copies_a_disk(with_disk: Moving, host_a: Host, host_b: Host) -> None:
    """--abort, then --recover finds the half volume by the note and removes it."""
    running = Running(host_a, "migrate", with_disk.name, host_b.tcp_uri, "--copy-storage", *SLOWLY)
    until_sending(host_a, with_disk.name)
    running.send(signal.SIGKILL)
    running.end()
    assert host_a.kvmctl("migrate", with_disk.name, "--abort", "-o", "json").json()["changed"] is True
    assert (images(host_b) / "moving.qcow2").exists()
    row = host_a.kvmctl("migrate", with_disk.name, "--recover", "-o", "json").json()
    assert row["place"] == "source", row
    assert not (images(host_b) / "moving.qcow2").exists()
    with_disk.assert_one(host_a)
    unharmed(with_disk)


def test_no_room_on_the_destination(with_disk: Moving, host_a: Host, host_b: Host) -> None:
    """Seen before it starts, and survived where it only shows in the middle."""
    host_b.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", "/var/lib/libvirt/images"])
    try:
        host_b.virsh("pool-refresh", "default")
        result = host_a.kvmctl(
            "migrate", with_disk.name, host_b.tcp_uri, "--copy-storage", "--check", "-o", "json", check=False
        )
        refused = [check["name"] for check in result.json()["checks"] if check["level"] == "refused"]
        assert result.returncode == 7 and refused == ["room"]
        host_b.run(["mount", "-o", "remount,size=70m", "/var/lib/libvirt/images"])
        running = Running(host_a, "migrate", with_disk.name, host_b.tcp_uri, "--copy-storage", *SLOWLY, "-o", "json")
        until_sending(host_a, with_disk.name)
        host_b.run(["sh", "-c", "head -c 60M /dev/zero >/var/lib/libvirt/images/filler || true"])
        ended = running.end()
        assert ended.returncode == 1 and f"running on {host_a.uri}" in ended.error()["message"], ended.stderr
        assert host_b.run(["ls", "/var/lib/libvirt/images"]).stdout.split() == ["filler"]
    finally:
        host_b.run(["umount", "-l", "/var/lib/libvirt/images"])
    with_disk.assert_one(host_a)
    unharmed(with_disk)


def test_the_first_port_is_taken(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    host_b.run(["sh", "-c", "busybox nc -l -p 49152 >/dev/null 2>&1 &"])
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "-o", "json").json()
    assert row["state"] == "running"
    guest.assert_one(host_b)
    host_b.run(["busybox", "pkill", "-f", "nc -l -p 49152"], check=False)


# What a round of the matrix does to a migration; a cut link takes long, as libvirt notices only after 30 s.
DISTURBANCES = [
    "SIGINT",
    "SIGTERM",
    "SIGKILL",
    "qemu",
    "libvirtd here",
    "libvirtd there",
    "link",
    "switchover",
    "nothing",
]
PIECES, ROUNDS = 12, 10


@pytest.mark.full
@pytest.mark.parametrize("piece", range(PIECES))
def test_disturbed_at_any_moment(moving: Define, host_a: Host, host_b: Host, lab: Lab, piece: int) -> None:
    """A disturbance after a random time, sometimes too late: wherever the guest then is, it is there once, unharmed.

    One guest a piece, that goes on from wherever the last round left it; every other piece's has a disk to be copied.
    """
    for host in lab.hosts:
        images(host)
    if piece % 2:
        host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", DISK, "32M"])
    guest = moving(devices=disk(DISK) if piece % 2 else "")
    with Guest(host_a, guest.name) as console:
        proof = "/dev/vda" if piece % 2 else "/tmp/proof"
        console.run(f"dd if=/dev/urandom of={proof} bs=1M count=16; sync; sha256sum {proof} >/tmp/sum")
    for round_ in range(piece * ROUNDS, (piece + 1) * ROUNDS):
        said = disturbed(guest, lab, random.Random(round_), bool(piece % 2))
        sys.stdout.write(f"round {round_}: {said}\n")
        unharmed(guest)
    for host in lab.hosts:
        host.run(["rm", "-f", DISK])


def disturbed(guest: Moving, lab: Lab, chance: random.Random, with_disk: bool) -> str:
    """One round: the guest sets out from where it is, something happens; what that was and where it is now."""
    source = guest.host()
    there = next(host for host in lab.hosts if host is not source)
    what = chance.choice(DISTURBANCES)
    speed = chance.choice([(), SLOWLY, ("--bandwidth", "40M")])
    # A QEMU that has just taken over must not be killed: then there is nothing left to be saved.
    options = [*(SLOWLY if what == "qemu" else speed), *(["--copy-storage"] if with_disk else [])]
    running = Running(source, "migrate", guest.name, there.tcp_uri, *options, "--timeout", "40s", "-o", "json")
    if what != "switchover":
        time.sleep(chance.uniform(0.1, 4))
    try:
        disturb(what, guest, lab, source, there, running)
        result = running.end(timeout=240)
    finally:
        lab.wire.ip("link", "set", "lab-b", "up")
    # A migration that is refused is none that was disturbed.
    assert result.returncode != 7, (what, result.stderr)
    wait_until(lambda: idle(source, guest), f"the end of libvirt's job after {what}", 240)
    recovered = source.kvmctl("migrate", guest.name, there.tcp_uri, "--recover", "-o", "json", check=False, timeout=400)
    assert recovered.returncode == 0, (what, result.stderr, recovered.stderr)
    found = recovered.json()
    assert found["place"] in ("source", "destination"), (what, result.stderr, found)
    place = source if found["place"] == "source" else there
    guest.assert_one(place)
    if result.returncode == 0:
        assert place is there
    elif what != "SIGKILL" and "running on" in result.stderr:
        said = f"running on {source.uri if place is source else there.tcp_uri}"
        assert said in result.error()["message"], (what, result.stderr)
    assert "urn:kvmctl:migration" not in place.virsh("dumpxml", guest.name).stdout, what
    if with_disk:
        left = place is not there and (images(there) / DISK.rpartition("/")[2]).exists()
        assert not left, (what, result.stderr, "the half copy was left")
        # A copy that succeeded leaves the old one, for its owner to delete.
        (source if place is there else there).run(["rm", "-f", DISK])
        for host in lab.hosts:
            host.virsh("pool-refresh", "default")
    return f"{what} {' '.join(options)}: exit {result.returncode}, now on {place.name}"


def disturb(what: str, guest: Moving, lab: Lab, source: Host, there: Host, running: Running) -> None:
    """Do ``what`` to the migration under way."""
    if what.startswith("SIG"):
        running.send(signal.Signals[what])
    elif what == "qemu":
        # While the guest runs at the source, the destination's is but a copy. Where it is not there yet, it will be.
        while running.process.poll() is None and guest.state(source) == "running":
            pids = qemu_pids(there, guest.name)
            for pid in pids:
                there.run(["kill", "-9", str(pid)], check=False)
            if pids:
                return
    elif what.startswith("libvirtd"):
        host = source if what.endswith("here") else there
        host.kill_libvirtd()
        host.start_libvirtd()
    elif what == "link" or (what == "switchover" and stopped_to_switch(source, guest, running)):
        lab.wire.ip("link", "set", "lab-b", "down")


def idle(host: Host, guest: Moving) -> bool:
    """Whether the host's libvirt works on no job of the guest's any more, or does not have it."""
    try:
        return bool(host.conn.lookupByUUIDString(guest.uuid).jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError:
        return True


def stopped_to_switch(source: Host, guest: Moving, running: Running) -> bool:
    """Wait until the source has stopped the guest, to hand it over; False where that moment was missed."""
    domain = source.conn.lookupByName(guest.name)
    while running.process.poll() is None:
        try:
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                return True
        except libvirt.libvirtError:
            return False
    return False
