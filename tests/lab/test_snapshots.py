"""Snapshots of real guests: kept, drawn, gone back to, deleted, and what is refused."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host

Open = Callable[[Host, str], Guest]

# A process that keeps its count in a variable of its own: only its memory knows it.
COUNTER = (
    "cat >/tmp/counter.sh <<'X'\n"
    "n=0\n"
    # Never half written: what is read of it is a number.
    "say() { echo $n >/tmp/count.new; mv /tmp/count.new /tmp/count; }\n"
    "trap 'n=$((n+1)); say' USR1\n"
    "say\n"
    "while :; do sleep 0.1; done\n"
    "X\n"
    "rm -f /tmp/count\n"
    "sh /tmp/counter.sh </dev/null >/dev/null 2>&1 &\n"
    "echo $! >/tmp/counter.pid\n"
    # A signal before there is a trap would end it.
    "until [ -e /tmp/count ]; do sleep 0.05; done"
)
BUMP = "c=$(cat /tmp/count); kill -USR1 $(cat /tmp/counter.pid); while [ $(cat /tmp/count) = $c ]; do sleep 0.05; done"


def create(host: Host, tiny: images.Tiny, name: str, *more: str, disk: str = "64M") -> None:
    """A running tiny guest with one disk of its own and no network."""
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", f"{tiny.cmdline} lab.noseed"]
    size = ["--memory", "160M", "--vcpus", "1", "--net", "none", "--graphics", "none"]
    host.kvmctl("create", name, *boot, *size, "--disk", disk, *more)


def write(guest: Guest, text: str) -> None:
    """Put ``text`` on the guest's disk, past every cache."""
    guest.run(f"printf '%-16s' '{text}' | dd of=/dev/vda bs=16 seek=4096 conv=notrunc,fsync 2>/dev/null")


def read(guest: Guest) -> str:
    """What write() put there, from the disk itself."""
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    return guest.run("dd if=/dev/vda bs=16 skip=4096 count=1 2>/dev/null").strip()


def names(host: Host, vm: str) -> dict[str, dict[str, Any]]:
    """The snapshots of ``vm`` by name."""
    return {row["name"]: row for row in host.kvmctl("snapshot", "list", vm, "-o", "json").json()}


@pytest.mark.usefixtures("leaves_nothing")
def test_twenty_jumps_in_random_order(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("jump")
    create(host_a, tiny, vm)
    guest = console(host_a, vm).ready()
    guest.run(COUNTER)
    counted: dict[str, int] = {}
    for count, moment in enumerate(("one", "two", "three", "four"), start=1):
        guest.run(BUMP)
        write(guest, moment)
        host_a.kvmctl("snapshot", "create", vm, moment)
        counted[moment] = count
    chance = random.Random(4)
    slot: tuple[str, int] | None = None
    here = ("four", 4)
    for jump in range(20):
        target = chance.choice([*counted, *(["before-revert"] if slot else [])])
        discard = chance.random() < 0.4
        answer = host_a.kvmctl("snapshot", "revert", vm, target, *(["--discard"] if discard else []), "-o", "json")
        assert answer.json()["state"] == "running"
        expected = slot if target == "before-revert" else (target, counted[target])
        assert expected is not None
        if not discard:
            slot = here
        here = expected
        guest = console(host_a, vm).ready()
        assert (read(guest), guest.run("cat /tmp/count")) == (here[0], str(here[1])), f"jump {jump} to {target}"
        # The same process goes on counting from the number in its own memory.
        guest.run(BUMP)
        assert guest.run("cat /tmp/count") == str(here[1] + 1)
        write(guest, f"{here[0]}+")
        here = (f"{here[0]}+", here[1] + 1)
        guest.close()
    assert set(names(host_a, vm)) == {*counted, "before-revert"}
    host_a.kvmctl("delete", vm, "--yes")


@pytest.mark.usefixtures("leaves_nothing")
def test_branches_states_and_deletion(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("tree")
    create(host_a, tiny, vm)
    console(host_a, vm).ready().close()
    first = host_a.kvmctl("snapshot", "create", vm, "first", "--description", "as it began", "-o", "json").json()
    assert (first["state"], first["memory"], first["location"], first["current"]) == ("running", True, "internal", True)
    host_a.kvmctl("suspend", vm)
    assert host_a.kvmctl("snapshot", "create", vm, "held", "-o", "json").json()["state"] == "paused"
    host_a.kvmctl("destroy", vm)
    off = host_a.kvmctl("snapshot", "create", vm, "off", "-o", "json").json()
    assert (off["state"], off["memory"], off["parent"]) == ("shutoff", False, "held")

    back = host_a.kvmctl("snapshot", "revert", vm, "first", "--keep", "side", "-o", "json").json()
    assert (back["state"], back["kept_as"]) == ("running", "side")
    assert "before-revert" not in names(host_a, vm)
    assert host_a.kvmctl("snapshot", "revert", vm, "held", "-o", "json").json()["state"] == "paused"
    tree = host_a.kvmctl("snapshot", "tree", vm).stdout
    assert [line.strip("│├└─ ").split("  ")[0] for line in tree.splitlines()] == [
        vm,
        "first",
        "held",
        "off",
        "side",
        "● you are here (paused)",
        "before-revert",
    ]
    assert host_a.kvmctl("snapshot", "show", vm, "first", "-o", "json").json()["description"] == "as it began"
    shown = host_a.kvmctl("snapshot", "show", vm, "first").stdout
    assert re.search(r"^kind +internal memory$", shown, re.MULTILINE)
    assert re.search(rf"^disks +vda  /var/lib/libvirt/images/{vm}\.qcow2$", shown, re.MULTILINE)
    told = host_a.kvmctl("snapshot", "revert", vm, "first", "--dry-run").stdout
    assert told == f"{vm} would be at first (running); the present would be kept as before-revert, " + (
        "in the place of what is there now\n"
    )

    # A parent goes, its children move up; with --children they go with it.
    host_a.kvmctl("snapshot", "delete", vm, "held", "-y")
    assert names(host_a, vm)["off"]["parent"] == "first"
    assert names(host_a, vm)["off"]["children"] == ["side"]
    gone = host_a.kvmctl("snapshot", "delete", vm, "first", "--children", "-y", "-o", "json").json()
    assert gone[-1]["name"] == "first"
    assert names(host_a, vm) == {}
    inside = host_a.run(["qemu-img", "snapshot", "-U", "-l", f"/var/lib/libvirt/images/{vm}.qcow2"]).stdout
    assert inside.strip() == ""
    host_a.kvmctl("delete", vm, "--yes")


def test_what_cannot_be_is_refused_and_changes_nothing(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("no")
    create(host_a, tiny, vm, "--no-start")
    for name in ("a/b", "x\ny", "\x1b[31mred", "y" * 300, "123", "before-revert"):
        error = host_a.kvmctl("snapshot", "create", vm, name, "-o", "json", check=False)
        assert (error.returncode, error.error()["code"]) == (2, "usage")
    assert host_a.kvmctl("snapshot", "revert", vm, "never", check=False).returncode == 3
    assert host_a.kvmctl("snapshot", "delete", vm, "never", "-y", check=False).returncode == 3
    host_a.kvmctl("snapshot", "create", vm, "one")
    assert host_a.kvmctl("snapshot", "create", vm, "one", check=False).returncode == 4
    assert host_a.kvmctl("snapshot", "delete", vm, "one", check=False).returncode == 2
    assert host_a.kvmctl("snapshot", "revert", vm, "one", "--keep", "x", "--discard", check=False).returncode == 2

    # Behind kvmctl's back: one inside the image that libvirt does not know of, and one that is gone from it.
    disk = f"/var/lib/libvirt/images/{vm}.qcow2"
    host_a.run(["qemu-img", "snapshot", "-c", "byhand", disk])
    assert host_a.kvmctl("snapshot", "create", vm, "byhand", check=False).returncode == 4
    host_a.run(["qemu-img", "snapshot", "-d", "one", disk])
    gone = host_a.kvmctl("snapshot", "revert", vm, "one", "-o", "json", check=False)
    assert (gone.returncode, gone.error()["code"]) == (7, "refused")
    assert "no longer holds it" in gone.error()["message"]
    assert set(names(host_a, vm)) == {"one"}
    host_a.kvmctl("snapshot", "delete", vm, "one", "-y")
    assert names(host_a, vm) == {}


@pytest.mark.usefixtures("leaves_nothing")
def test_external_snapshots_go_back_and_forth_and_leave_no_file(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("ext")
    create(host_a, tiny, vm)
    guest = console(host_a, vm).ready()
    guest.run(COUNTER)
    write(guest, "one")
    one = host_a.kvmctl("snapshot", "create", vm, "one", "--external", "-o", "json").json()
    assert (one["location"], one["memory"], one["state"]) == ("external", True, "running")
    guest.run(BUMP)
    write(guest, "two")
    # All of one VM's snapshots are of one kind.
    assert host_a.kvmctl("snapshot", "create", vm, "two", "-o", "json").json()["location"] == "external"
    guest.run(BUMP)
    write(guest, "three")
    for target, expected in (("one", "one 0"), ("two", "two 1"), ("before-revert", "one 1"), ("two", "two 1")):
        host_a.kvmctl("snapshot", "revert", vm, target)
        guest = console(host_a, vm).ready()
        assert f"{read(guest)} {guest.run('cat /tmp/count')}" == expected
        guest.run(BUMP)
        assert guest.run("cat /tmp/count") == str(int(expected[-1]) + 1)
        guest.close()
    lines = host_a.kvmctl("snapshot", "tree", vm).stdout.splitlines()
    assert [line.strip("│├└─ ").split("  ")[0] for line in lines] == [
        vm,
        "one",
        "two",
        "● you are here (running)",
        "before-revert",
    ]
    host_a.kvmctl("snapshot", "delete", vm, "two", "one", "before-revert", "-y")
    kept = [path for path in host_a.files() if vm in path]
    assert not [path for path in kept if path.endswith(".memory")]
    guest = console(host_a, vm).ready()
    assert read(guest) == "two"
    guest.close()
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_deleting_an_external_snapshot_leaves_its_children_their_own_data(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("chain")
    create(host_a, tiny, vm, "--no-start")

    def disk(command: str) -> str:
        path = host_a.kvmctl("info", vm, "-o", "json").json()["disks"][0]["source"]
        return host_a.run(["qemu-io", "-c", command, path]).stdout

    for number, name in enumerate(("one", "two", "three", "four"), start=1):
        disk(f"write -P {number} 0 64k")
        host_a.kvmctl("snapshot", "create", vm, name, "--external")
    host_a.kvmctl("snapshot", "delete", vm, "two", "-y")
    tree = names(host_a, vm)
    assert {name: row["parent"] for name, row in tree.items()} == {"one": None, "three": "one", "four": "three"}
    assert tree["four"]["current"]
    for number, name in ((3, "three"), (4, "four"), (1, "one"), (3, "three")):
        host_a.kvmctl("snapshot", "revert", vm, name, "--discard")
        assert "verification failed" not in disk(f"read -P {number} 0 64k"), name
    # The root, and one with several children.
    host_a.kvmctl("snapshot", "revert", vm, "one", "--keep", "side")
    host_a.kvmctl("snapshot", "delete", vm, "one", "-y")
    assert {name: row["parent"] for name, row in names(host_a, vm).items()} == {
        "three": None,
        "four": "three",
        "side": "three",
    }
    for number, name in ((4, "four"), (3, "side"), (3, "three")):
        host_a.kvmctl("snapshot", "revert", vm, name, "--discard")
        assert "verification failed" not in disk(f"read -P {number} 0 64k"), name
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_what_is_in_an_overlay_above_a_users_own_disk_outlives_the_vm(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("own"), vm_name("copy")
    folder = "/var/lib/libvirt/images"
    disk = f"{folder}/{vm}-mine.qcow2"
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"])
    create(host_a, tiny, vm, "--no-start", disk=disk)
    host_a.kvmctl("snapshot", "create", vm, "inside")
    # Nothing is left inside of it for anybody to stumble over.
    assert host_a.kvmctl("delete", vm, "-y", "-o", "json").json()["kept"] == [disk]
    assert host_a.run(["qemu-img", "snapshot", "-l", disk]).stdout == ""

    create(host_a, tiny, vm, "--no-start", disk=disk)
    host_a.kvmctl("snapshot", "create", vm, "outside", "--external")
    host_a.kvmctl("clone", vm, copy)
    overlay = host_a.kvmctl("info", vm, "-o", "json").json()["disks"][0]["source"]
    host_a.run(["qemu-io", "-c", "write -P 7 0 64k", overlay])
    gone = host_a.kvmctl("delete", vm, copy, "-y", "-o", "json").json()
    kept = gone[0]["kept"]
    assert (kept[0], kept[-1]) == (overlay, disk)
    assert set(kept) == {path for path in host_a.files() if vm in path}
    assert gone[1]["kept"] == []
    assert "verification failed" not in host_a.run(["qemu-io", "-c", "read -P 7 0 64k", overlay]).stdout

    # Unless all is to go.
    host_a.run(["rm", *kept[:-1]])
    create(host_a, tiny, vm, "--no-start", disk=disk)
    host_a.kvmctl("snapshot", "create", vm, "outside", "--external")
    host_a.kvmctl("delete", vm, "-y", "--storage", "all")
    assert not [path for path in host_a.files() if vm in path]


@pytest.mark.usefixtures("leaves_nothing")
def test_a_chain_edited_by_hand_is_seen_before_anything_is_touched(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("hand"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start")
    for name in ("one", "two", "three"):
        host_a.kvmctl("snapshot", "create", vm, name, "--external")
    folder = "/var/lib/libvirt/images"
    domain = host_a.conn.lookupByName(vm)

    def seen() -> tuple[set[str], str, list[str]]:
        return host_a.files(), domain.XMLDesc(0), domain.snapshotListNames(0)

    def refused(code: int, word: str, *args: str) -> None:
        before = seen()
        told = host_a.kvmctl(*args, "-o", "json", check=False)
        assert (told.returncode, word in told.error()["message"]) == (code, True), told.stderr
        assert seen() == before

    # A file that is away: what it stands on must not be taken for something that nothing needs.
    for number in (3, 1):
        file = f"{vm}-vda-{number}.qcow2"
        host_a.run(["mv", f"{folder}/{file}", "/var/lib/libvirt/away"])
        refused(3, file, "snapshot", "create", vm, "more")
        refused(3, file, "clone", vm, copy)
        refused(7, file, "snapshot", "revert", vm, "one")
        refused(7, file, "snapshot", "delete", vm, "two", "-y")
        if number == 1:
            refused(7, file, "snapshot", "revert", vm, "two", "--discard")
        host_a.run(["mv", "/var/lib/libvirt/away", f"{folder}/{file}"])

    # Two files made to stand on each other: QEMU would go round in that without an end.
    top, below = (f"{folder}/{vm}-vda-{number}.qcow2" for number in (3, 2))
    host_a.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", top, below])
    circle = f"{top} stands on {below} stands on {top}"
    refused(7, circle, "start", vm)
    refused(7, circle, "snapshot", "create", vm, "more")
    refused(7, circle, "clone", vm, copy)
    refused(7, circle, "clone", vm, copy, "--full")
    refused(7, circle, "snapshot", "revert", vm, "one")
    refused(7, circle, "snapshot", "delete", vm, "two", "-y")
    refused(7, circle, "disk", "resize", vm, "vda", "1G")
    assert f"on {top}, in a circle" in host_a.kvmctl("info", vm).stdout
    host_a.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", f"{folder}/{vm}-vda-1.qcow2", below])

    # All overlays merged into the first file: what the later moments stand on is no longer what it was.
    host_a.kvmctl("start", vm)
    host_a.virsh("blockcommit", vm, "vda", "--active", "--pivot", "--wait")
    for name in ("one", "two", "three"):
        refused(7, "is what", "snapshot", "revert", vm, name)
    # They can be forgotten, and then all is as usual.
    host_a.kvmctl("snapshot", "delete", vm, "one", "two", "three", "-y")
    host_a.kvmctl("snapshot", "create", vm, "new", "--external")
    host_a.kvmctl("snapshot", "revert", vm, "new", "--discard")
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_disks_alone_and_raw_disks_of_a_stopped_guest(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("raw")
    create(host_a, tiny, vm, disk="64M,format=raw")
    guest = console(host_a, vm).ready()
    host_a.kvmctl("wait", vm, "--for", "agent", "--timeout", "2m", timeout=150)
    write(guest, "first")
    refused = host_a.kvmctl("snapshot", "create", vm, "x", "--quiesce", "-o", "json", check=False)
    assert refused.returncode == 7
    disks = host_a.kvmctl("snapshot", "create", vm, "disks", "--disk-only", "--quiesce", "-o", "json").json()
    assert (disks["location"], disks["memory"]) == ("external", False)
    write(guest, "second")
    guest.close()
    host_a.kvmctl("destroy", vm)
    assert host_a.kvmctl("snapshot", "create", vm, "off", "-o", "json").json()["location"] == "external"
    back = host_a.kvmctl("snapshot", "revert", vm, "disks", "--running", "-o", "json").json()
    assert back["state"] == "running"
    guest = console(host_a, vm).ready()
    assert read(guest) == "first"
    guest.close()
    host_a.kvmctl("snapshot", "revert", vm, "off")
    host_a.kvmctl("start", vm)
    guest = console(host_a, vm).ready()
    assert read(guest) == "second"
    guest.close()
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.parametrize("how", [(), ("--external",)], ids=["internal", "external"])
def test_several_disks_go_back_together_and_shared_ones_are_named(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str], how: tuple[str, ...]
) -> None:
    vm, copy = vm_name("disks"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start", "--disk", "16M")
    folder = "/var/lib/libvirt/images"
    for name in ("readonly", "shared"):
        host_a.run(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/{vm}-{name}.img", "1M"])
    host_a.kvmctl("disk", "attach", vm, f"{folder}/{vm}-readonly.img,readonly")

    def disks(command: str) -> str:
        info = host_a.kvmctl("info", vm, "-o", "json").json()
        paths = [disk["source"] for disk in info["disks"] if disk["target"] in ("vda", "vdb")]
        assert len(paths) == 2
        return "".join(host_a.run(["qemu-io", "-c", command, path]).stdout for path in paths)

    disks("write -P 1 0 64k")
    made = host_a.kvmctl("snapshot", "create", vm, "one", *how, "-o", "json").json()
    assert made["location"] == ("external" if how else "internal")
    disks("write -P 2 0 64k")
    host_a.kvmctl("snapshot", "revert", vm, "one")
    assert "verification failed" not in disks("read -P 1 0 64k")
    host_a.kvmctl("undo", vm)
    assert "verification failed" not in disks("read -P 2 0 64k")

    host_a.kvmctl("disk", "attach", vm, f"{folder}/{vm}-shared.img,shareable")
    before = host_a.files()
    for args in (("snapshot", "create", vm, "two"), ("snapshot", "create", vm, "two", *how), ("clone", vm, copy)):
        refused = host_a.kvmctl(*args, "-o", "json", check=False)
        assert refused.returncode == 7, args
        assert host_a.files() == before
        # A clone is refused for the snapshots inside first.
        assert "the disk vdd" in refused.error()["message"] or (args[0] == "clone" and not how)
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_a_saved_guest_is_neither_kept_nor_left_by_half(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("saved"), vm_name("copy")
    create(host_a, tiny, vm)
    guest = console(host_a, vm).ready()
    guest.run(COUNTER)
    write(guest, "then")
    host_a.kvmctl("snapshot", "create", vm, "then")
    guest.run(BUMP)
    write(guest, "saved")
    guest.close()
    host_a.kvmctl("save", vm)
    before = host_a.files()
    for args in (("snapshot", "create", vm, "x"), ("snapshot", "revert", vm, "then"), ("clone", vm, copy, "--full")):
        refused = host_a.kvmctl(*args, "-o", "json", check=False)
        assert refused.returncode in (4, 7), args
        assert "is saved" in refused.error()["message"]
        assert (host_a.files(), set(names(host_a, vm))) == (before, {"then"})
    # It goes on from where it was saved, and from there back and forth again.
    host_a.kvmctl("start", vm)
    for target, expected in ((None, ("saved", "1")), ("then", ("then", "0")), ("before-revert", ("saved", "1"))):
        if target is not None:
            host_a.kvmctl("snapshot", "revert", vm, target)
        guest = console(host_a, vm).ready()
        assert (read(guest), guest.run("cat /tmp/count")) == expected
        guest.close()
    host_a.kvmctl("save", vm)
    # What was saved goes with the rest of the present, where that is what is asked for.
    host_a.kvmctl("snapshot", "revert", vm, "then", "--discard")
    guest = console(host_a, vm).ready()
    assert (read(guest), guest.run("cat /tmp/count")) == ("then", "0")
    guest.close()
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_undo_takes_back_the_last_change_and_does_it_again(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("undo")
    create(host_a, tiny, vm, "--no-start")

    def memory() -> int:
        return int(host_a.kvmctl("info", vm, "-o", "json").json()["memory_bytes"])

    assert host_a.kvmctl("undo", vm, check=False).returncode == 4
    before = memory()
    host_a.kvmctl("set", vm, "--memory", "192M")
    told = host_a.kvmctl("undo", vm)
    assert f"set {vm}" in told.stderr
    assert memory() == before
    host_a.kvmctl("undo", vm)
    assert memory() == 192 * 1024 * 1024
    host_a.kvmctl("snapshot", "create", vm, "small")
    host_a.kvmctl("set", vm, "--memory", "256M")
    host_a.kvmctl("snapshot", "revert", vm, "small")
    assert memory() == 192 * 1024 * 1024
    assert host_a.kvmctl("undo", vm, "--dry-run", "-o", "json").json()["kind"] == "snapshot"
    assert host_a.kvmctl("undo", vm, "-o", "json").json()["command"] == f"snapshot revert {vm} small"
    assert memory() == 256 * 1024 * 1024
    # Kept by a name of the user's, it leads back as well; what was not kept does not, and undo says so.
    host_a.kvmctl("snapshot", "revert", vm, "small", "--keep", "large")
    assert "kept as large" in host_a.kvmctl("undo", vm).stderr
    assert memory() == 256 * 1024 * 1024
    host_a.kvmctl("snapshot", "revert", vm, "small", "--discard")
    never = host_a.kvmctl("undo", vm, "-o", "json", check=False)
    assert (never.returncode, "was not kept" in never.error()["message"]) == (7, True), never.stderr
    host_a.kvmctl("delete", vm, "-y")
