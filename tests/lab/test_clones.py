"""Copies of real guests: linked, full, and forked with their memory."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.test_snapshots import BUMP, COUNTER, Open, create, read, write


def source(host: Host, tiny: images.Tiny, name: str, *more: str, net: str = "none") -> None:
    """A tiny guest with a seed, one disk, and the network ``net``."""
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    size = ["--memory", "160M", "--vcpus", "1", "--net", net, "--graphics", "none", "--disk", "64M"]
    host.kvmctl("create", name, *boot, *size, "--hostname", "origin", *more)


def ids(host: Host, *vms: str) -> list[tuple[str, str, str]]:
    """UUID, MAC and first disk of each."""
    found = []
    for vm in vms:
        info = host.kvmctl("info", vm, "-o", "json").json()
        found.append((info["uuid"], info["nics"][0]["mac"] if info["nics"] else "", info["disks"][0]["source"]))
    return found


# What comes in at the guests' ends of a host's bridges until its input ends: by sender, the devices it came from.
LISTEN = """
import json, select, socket, sys
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
print("listening", flush=True)
seen = {}
while not (ready := select.select([frames, sys.stdin], [], [])[0]) or sys.stdin not in ready:
    frame, (device, _, kind, *_) = frames.recvfrom(2048)
    if device.startswith("vnet") and kind != socket.PACKET_OUTGOING:
        seen.setdefault(frame[6:12].hex(":"), set()).add(device)
print(json.dumps({mac: sorted(devices) for mac, devices in seen.items()}))
"""


@contextlib.contextmanager
def senders(host: Host) -> Iterator[dict[str, list[str]]]:
    """By MAC: the guests' ends of ``host``'s wires that a frame came from with it; filled when the ``with`` is over."""
    found: dict[str, list[str]] = {}
    command = host.outside([sys.executable, "-c", LISTEN])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        try:
            yield found
        finally:
            told, _ = listener.communicate()
    found.update(json.loads(told))


def backing(host: Host, path: str) -> str | None:
    """What an image stands on, by qemu-img."""
    told = json.loads(host.run(["qemu-img", "info", "-U", "--output=json", path]).stdout)
    base = told.get("backing-filename")
    assert base is None or isinstance(base, str)
    return base


@pytest.mark.usefixtures("leaves_nothing")
def test_linked_clones_of_a_stopped_guest_go_their_own_ways(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, one = vm_name("src"), vm_name("one")
    host_a.start_default_network()
    source(host_a, tiny, vm, net="nat")
    guest = console(host_a, vm).ready()
    assert guest.run("hostname") == "origin"
    write(guest, "shared")
    host_a.kvmctl("destroy", vm)
    dry = host_a.kvmctl("clone", vm, one, "--dry-run", "-o", "json").json()
    assert dry["mode"] == "linked"
    assert host_a.kvmctl("info", one, check=False).returncode == 3
    made = host_a.kvmctl("clone", vm, one, "-o", "json").json()
    assert set(made) == {"name", "uuid", "source", "mode", "disks", "seconds"}
    assert made["disks"][0]["backing"] == f"/var/lib/libvirt/images/{vm}.qcow2"
    many = host_a.kvmctl("clone", vm, f"{one}-n", "--count", "2", "-o", "json").json()
    everyone = [vm, one, *(row["name"] for row in many)]
    for different in zip(*ids(host_a, *everyone), strict=True):
        assert len(set(different)) == 4
    # The source was not written since: the later copies need no other layer.
    assert {row["disks"][0]["backing"] for row in many} == {made["disks"][0]["backing"]}

    host_a.kvmctl("start", vm, one)
    first, second = console(host_a, vm).ready(), console(host_a, one).ready()
    assert second.run("hostname") == re.sub(r"[^A-Za-z0-9-]+", "-", one)
    assert first.run("hostname") == "origin"
    assert (read(first), read(second)) == ("shared", "shared")
    write(first, "mine")
    write(second, "yours")
    assert (read(first), read(second)) == ("mine", "yours")
    assert first.address() != second.address()

    # What others stand on goes last, whoever that is.
    base = made["disks"][0]["backing"]
    host_a.kvmctl("delete", vm, "-y")
    assert base in host_a.files()
    assert read(second) == "yours"
    gone = host_a.kvmctl("delete", one, *(row["name"] for row in many), "-y", "-o", "json").json()
    assert [base in row["deleted"] for row in gone] == [False, False, True]


@pytest.mark.usefixtures("leaves_nothing")
def test_clones_of_a_running_guest_hold_one_moment(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, linked, full = vm_name("run"), vm_name("linked"), vm_name("full")
    create(host_a, tiny, vm)
    guest = console(host_a, vm).ready()
    guest.run(COUNTER)
    write(guest, "then")
    host_a.kvmctl("clone", vm, full, "--full")
    assert backing(host_a, f"/var/lib/libvirt/images/{full}.qcow2") is None
    # A full copy leaves the source's disk as it was.
    assert ids(host_a, vm)[0][2] == f"/var/lib/libvirt/images/{vm}.qcow2"
    host_a.kvmctl("clone", vm, linked)
    write(guest, "later")
    guest.run(BUMP)
    assert guest.run("cat /tmp/count") == "1"
    for copy in (linked, full):
        host_a.kvmctl("start", copy)
        other = console(host_a, copy).ready()
        assert read(other) == "then"
        other.close()
        host_a.kvmctl("destroy", copy)
    assert read(guest) == "later"
    host_a.kvmctl("delete", linked, full, vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_live_clones_go_on_from_the_same_instant_with_their_own_address(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("live")
    host_a.start_default_network()
    with senders(host_a) as sent:
        copies = _live_clones(host_a, tiny, console, vm, vm_name("fork"))
    # What sent all the time in the source did so in the copies, too: not one frame of theirs had its MAC.
    (device,) = re.findall(r"vnet\d+", host_a.virsh("domiflist", vm).stdout)
    assert sent[ids(host_a, vm)[0][1]] == [device], sent
    for copy in copies:
        (own,) = re.findall(r"vnet\d+", host_a.virsh("domiflist", copy).stdout)
        assert own in sent[ids(host_a, copy)[0][1]], sent

    # In any order: first one copy, then the source, then the other, which runs on meanwhile.
    other = console(host_a, copies[1]).ready()
    host_a.kvmctl("delete", copies[0], "-y")
    host_a.kvmctl("delete", vm, "-y")
    assert read(other) == copies[1][:14]
    host_a.kvmctl("delete", copies[1], "-y")


def _live_clones(host_a: Host, tiny: images.Tiny, console: Open, vm: str, fork: str) -> list[str]:
    """Fork ``vm`` twice, look whether the copies are what they should be, and return their names."""
    source(host_a, tiny, vm, net="nat")
    guest = console(host_a, vm).ready()
    host_a.kvmctl("wait", vm, "--for", "agent", "--timeout", "2m", timeout=150)
    # With its lease it is known to ask for one.
    address = guest.address()
    ping = f"ping -c 1 -W 1 {host_a.subnet}.1"
    guest.run(f"(while :; do {ping}; sleep 0.2; done) </dev/null >/dev/null 2>&1 &")
    guest.run(COUNTER)
    for _ in range(3):
        guest.run(BUMP)
    write(guest, "before")
    answer = host_a.kvmctl("clone", vm, fork, "--live", "--count", "2", "-o", "json", timeout=240)
    made = answer.json()
    assert [(row["mode"], row["warnings"], row["pause_ms"] >= 0) for row in made] == [("live", [], True)] * 2
    assert "warning" not in answer.stderr
    copies = [row["name"] for row in made]
    for different in zip(*ids(host_a, vm, *copies), strict=True):
        assert len(set(different)) == 3
    guests = [console(host_a, copy).ready() for copy in copies]
    addresses = {address}
    for copy, other in zip(copies, guests, strict=True):
        # The same process, with the number in its memory; the same file; another name, card and address.
        assert other.run("cat /tmp/count") == "3"
        other.run(BUMP)
        assert other.run("cat /tmp/count") == "4"
        assert read(other) == "before"
        assert other.run("hostname") == re.sub(r"[^A-Za-z0-9-]+", "-", copy)
        mac = ids(host_a, copy)[0][1]
        assert other.run("cat /sys/class/net/eth0/address") == mac
        # It has its address by now, and nothing is left of what was kept for it until then.
        (own,) = [lease["ipaddr"] for lease in host_a.conn.networkLookupByName("default").DHCPLeases(mac)]
        assert mac not in host_a.conn.networkLookupByName("default").XMLDesc(0)
        assert "<kvmctl:reservation" not in host_a.kvmctl("dumpxml", copy).stdout
        other.wait_for(f"address eth0 {re.escape(own)}")
        assert host_a.client(["ping", "-c", "1", "-W", "5", own]).returncode == 0
        addresses.add(own)
        write(other, copy[:14])
    assert len(addresses) == 3
    guest.run(BUMP)
    assert (guest.run("cat /tmp/count"), read(guest)) == ("4", "before")
    assert not [path for path in host_a.files() if path.endswith(".memory")]

    for other in guests:
        other.close()
    guest.close()
    return copies


@pytest.mark.usefixtures("leaves_nothing")
def test_a_live_clone_takes_every_disk_and_the_uefi_variables_along(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, fork = vm_name("disks"), vm_name("fork")
    create(host_a, tiny, vm, "--firmware", "uefi", "--disk", "16M", "--disk", "16M,format=raw")
    guest = console(host_a, vm).ready(120)
    host_a.kvmctl("wait", vm, "--for", "agent", "--timeout", "2m", timeout=150)

    def mark(text: str) -> None:
        guest.run(f"for d in vda vdb vdc; do echo {text}-$d | dd of=/dev/$d conv=fsync 2>/dev/null; done")

    mark("then")
    made = host_a.kvmctl("clone", vm, fork, "--live", "-o", "json", timeout=240).json()
    assert ([disk["target"] for disk in made["disks"]], made["warnings"]) == (["vda", "vdb", "vdc"], [])
    mark("later")
    other = console(host_a, fork).ready(120)
    found = other.run("for d in vda vdb vdc; do head -n 1 /dev/$d; done").split()
    assert found == ["then-vda", "then-vdb", "then-vdc"]
    other.close()
    # And it can be started from nothing but its disks and its firmware.
    host_a.kvmctl("destroy", fork)
    host_a.kvmctl("start", fork)
    variables = [re.findall(r"<nvram[^>]*>([^<]+)<", host_a.kvmctl("dumpxml", name).stdout) for name in (vm, fork)]
    assert len(variables[0]) == len(variables[1]) == 1
    assert variables[0] != variables[1]
    assert set(variables[0] + variables[1]) <= set(host_a.files())
    host_a.kvmctl("delete", vm, "-y")
    host_a.kvmctl("delete", fork, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_copies_that_keep_their_identity(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, linked, fork = vm_name("keep"), vm_name("linked"), vm_name("fork")
    host_a.start_default_network()
    source(host_a, tiny, vm, net="nat")
    console(host_a, vm).ready()
    host_a.kvmctl("wait", vm, "--for", "agent", "--timeout", "2m", timeout=150)
    # A cable that is out in the source is out in the copy, too.
    loose = host_a.kvmctl("nic", "attach", vm, "nat", "-o", "json").json()["mac"]
    host_a.kvmctl("nic", "link", vm, loose, "down")
    made = host_a.kvmctl("clone", vm, fork, "--live", "--keep-identity", "-o", "json", timeout=240).json()
    assert made["warnings"] == []
    cables = [card["link_up"] for card in host_a.kvmctl("nic", "list", fork, "-o", "json").json()]
    assert cables == [True, False]
    other = console(host_a, fork).ready()
    # Nothing inside is changed; the card is the copy's own all the same.
    assert other.run("hostname") == "origin"
    assert other.run("cat /sys/class/net/eth0/address") == ids(host_a, fork)[0][1] != ids(host_a, vm)[0][1]
    other.close()
    host_a.kvmctl("destroy", vm, fork)
    told = host_a.kvmctl("clone", vm, linked, "--keep-identity", "--start")
    assert told.stderr == ""
    other = console(host_a, linked).ready()
    assert other.run("hostname") == "origin"
    host_a.kvmctl("delete", vm, linked, fork, "-y")


def test_copies_that_cannot_be_are_refused_and_leave_nothing(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str], console: Callable[[Host, str], Guest]
) -> None:
    vm, copy = vm_name("no"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start")
    before = host_a.files()

    def refused(code: int, *args: str) -> str:
        result = host_a.kvmctl("clone", *args, "-o", "json", check=False)
        assert result.returncode == code, result.stderr
        assert host_a.files() == before
        return str(result.error()["message"])

    refused(3, "nobody", copy)
    refused(2, vm, "../x")
    refused(4, vm, vm)
    refused(2, vm, copy, "--full", "--live")
    assert "runs" in refused(4, vm, copy, "--live")
    pool = host_a.conn.storagePoolLookupByName("default")
    pool.createXML(f"<volume><name>{copy}.qcow2</name><capacity>1048576</capacity></volume>", 0)
    before = host_a.files()
    assert "already has a volume" in refused(4, vm, copy)
    pool.storageVolLookupByName(f"{copy}.qcow2").delete(0)
    host_a.kvmctl("snapshot", "create", vm, "inside")
    before = host_a.files()
    assert "a snapshot inside" in refused(7, vm, copy)
    # A full copy of a stopped guest has its data, and none of its snapshots.
    host_a.kvmctl("clone", vm, copy, "--full")
    assert host_a.kvmctl("snapshot", "list", copy, "-o", "json").json() == []


def test_what_clones_stand_on_is_shown_and_written_by_nobody(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str], tmp_path: Path
) -> None:
    vm, copy, writer = vm_name("base"), vm_name("copy"), vm_name("writer")
    create(host_a, tiny, vm, "--no-start")
    host_a.kvmctl("clone", vm, copy)
    base = f"/var/lib/libvirt/images/{vm}.qcow2"
    for name in (vm, copy):
        disk = host_a.kvmctl("info", name, "-o", "json").json()["disks"][0]
        assert disk["backing_chain"] == [base]
        assert f"on {base}" in host_a.kvmctl("info", name).stdout

    # Another VM over the base itself, as another tool would define it.
    text = host_a.kvmctl("dumpxml", copy).stdout
    for old, new in ((f">{copy}<", f">{writer}<"), (f"{copy}.qcow2", f"{vm}.qcow2")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "writer.xml").write_text(re.sub(r"<uuid>.*</uuid>|<metadata>(?s:.*)</metadata>", "", text))
    host_a.client(["virsh", "-c", host_a.uri, "define", str(tmp_path / "writer.xml")])
    for args in (("start", writer), ("disk", "resize", writer, "vda", "1G"), ("snapshot", "create", writer, "x")):
        refused = host_a.kvmctl(*args, "-o", "json", check=False)
        assert (refused.returncode, refused.error()["code"]) == (7, "refused"), args
        assert base in refused.error()["message"]
    host_a.kvmctl("delete", writer, "-y")
    assert base in host_a.files()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_tpm_is_named_and_never_copied(host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]) -> None:
    vm, copy = vm_name("tpm"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start", "--tpm")
    for args in (("snapshot", "create", vm, "x"), ("snapshot", "create", vm, "x", "--external")):
        refused = host_a.kvmctl(*args, "-o", "json", check=False)
        assert (refused.returncode, "TPM" in refused.error()["message"]) == (7, True)
    told = host_a.kvmctl("clone", vm, copy)
    assert "the TPM of the copy is new and empty" in told.stderr
    host_a.kvmctl("delete", vm, copy, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_what_has_state_outside_of_a_running_guest_is_named(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("outside"), vm_name("copy")
    folder = "/var/lib/libvirt/images"
    host_a.run(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/{vm}-shared.img", "1M"])
    create(host_a, tiny, vm, "--tpm", "--device", "share=/srv/shared:data,driver=9p")
    before = host_a.files()

    def refused(*args: str) -> str:
        told = host_a.kvmctl(*args, "-o", "json", check=False)
        assert (told.returncode, told.error()["code"], host_a.files()) == (7, "refused", before), told.stderr
        return str(told.error()["message"])

    for args in (("clone", vm, copy, "--live"), ("snapshot", "create", vm, "x")):
        told = refused(*args)
        assert "its TPM keeps its state outside" in told
        assert "the shared folder data (path) is changed from outside" in told
    host_a.kvmctl("delete", vm, "-y")
    create(host_a, tiny, vm, "--disk", f"{folder}/{vm}-shared.img,shareable")
    before = host_a.files()
    assert "the disk vdb" in refused("clone", vm, copy, "--live")
    assert "the disk vdb is shared with other guests" in refused("snapshot", "create", vm, "x")
    host_a.kvmctl("delete", vm, "-y")
    host_a.run(["rm", f"{folder}/{vm}-shared.img"])


def test_a_base_that_vanished_is_said_before_anything_is_made(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("base"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start")
    host_a.kvmctl("clone", vm, f"{copy}-first")
    host_a.run(["rm", f"/var/lib/libvirt/images/{vm}.qcow2"])
    before = host_a.files()
    for command in (
        ("clone", vm, copy),
        ("clone", f"{copy}-first", copy),
        ("snapshot", "create", f"{copy}-first", "s", "--external"),
    ):
        result = host_a.kvmctl(*command, "-o", "json", check=False)
        assert result.returncode == 3, result.stderr
        assert f"{vm}.qcow2, which " in result.error()["message"]
        assert "the disk vda" in result.error()["message"]
        assert host_a.files() == before


@pytest.fixture
def xfs_pool(host_a: Host) -> Iterator[str]:
    """A storage pool on XFS, which shares blocks between files."""
    if host_a.run(["losetup", "--find"], check=False).returncode != 0:
        pytest.skip("this machine has no loop device (a container?), and XFS needs one to be mounted from a file")
    place, disk = "/var/lib/libvirt/xfs", "/var/lib/libvirt/xfs.img"
    host_a.run(["truncate", "-s", "1G", disk])
    host_a.run(["mkfs.xfs", "-q", disk])
    host_a.run(["mkdir", "-p", place])
    host_a.run(["mount", "-o", "loop", disk, place])
    pool = host_a.conn.storagePoolCreateXML(
        f"<pool type='dir'><name>xfs</name><target><path>{place}</path></target></pool>", 0
    )
    yield "xfs"
    pool.destroy()
    host_a.run(["umount", "-l", place])
    host_a.run(["rm", "-f", disk])


def test_a_full_clone_on_xfs_shares_its_blocks(
    host_a: Host, tiny: images.Tiny, xfs_pool: str, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("xfs"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start", disk=f"512M,pool={xfs_pool}")
    disks = [f"/var/lib/libvirt/xfs/{name}.qcow2" for name in (vm, copy)]
    host_a.run(["qemu-io", "-c", "write -P 7 0 300M", disks[0]])
    host_a.run(["sync"])

    def used() -> int:
        return int(host_a.run(["df", "--output=used", "-B1M", "/var/lib/libvirt/xfs"]).stdout.split()[-1])

    before = used()
    host_a.kvmctl("clone", vm, copy, "--full", local=True)
    host_a.run(["sync"])
    assert used() - before < 20
    host_a.run(["qemu-img", "compare", *disks])
    host_a.run(["qemu-io", "-c", "write -P 9 0 1M", disks[1]])
    assert host_a.run(["qemu-img", "compare", *disks], check=False).returncode == 1
    host_a.kvmctl("delete", vm, copy, "-y")


def test_a_copy_that_virt_clone_made_does_not_own_the_sources_disks(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("ours"), vm_name("theirs")
    create(host_a, tiny, vm, "--no-start")
    host_a.run(["virt-clone", "--connect", "qemu:///system", "-o", vm, "-n", copy, "--auto-clone"])
    before = host_a.files()
    kept = host_a.kvmctl("delete", copy, "-y", "-o", "json").json()
    assert kept["deleted"] == []
    assert host_a.files() == before
    host_a.kvmctl("start", vm)
