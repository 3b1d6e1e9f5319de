"""undo on real guests: cards and disks that come and go, in the guest itself too."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.test_clones import source
from tests.lab.test_snapshots import Open, create


def _disks(host: Host, vm: str) -> dict[str, dict[str, Any]]:
    return {row["target"]: row for row in host.kvmctl("disk", "list", vm, "-o", "json").json()}


def _cards(host: Host, vm: str) -> dict[str, dict[str, Any]]:
    return {row["mac"]: row for row in host.kvmctl("nic", "list", vm, "-o", "json").json()}


def _reserved(host: Host, mac: str) -> bool:
    return mac in host.conn.networkLookupByName("default").XMLDesc(0)


@pytest.mark.usefixtures("leaves_nothing")
def test_cards_and_disks_of_a_running_guest_go_and_come_again(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("undo")
    host_a.start_default_network()
    create(host_a, tiny, vm)
    guest = console(host_a, vm).ready()

    def undo(command: str) -> None:
        told = host_a.kvmctl("undo", vm, "-o", "json")
        assert told.json()["command"] == f"{command}"
        assert f"undoing '{command}'" in told.stderr

    _what_was_for_this_run_alone(host_a, vm, guest, undo)
    new = host_a.kvmctl("disk", "attach", vm, "8M", "-o", "json").json()
    guest.run("until [ -e /sys/block/vdb ]; do sleep 0.1; done")
    guest.run("echo kept | dd of=/dev/vdb conv=fsync 2>/dev/null")
    undo(f"disk attach {vm} vdb")
    assert set(_disks(host_a, vm)) == {"vda"}
    guest.run("while [ -e /sys/block/vdb ]; do sleep 0.1; done")
    # Its data stays, and comes back with it.
    assert new["source"] in host_a.files()
    undo(f"undo {vm}")
    guest.run("until [ -e /sys/block/vdb ]; do sleep 0.1; done")
    assert guest.run("head -n 1 /dev/vdb") == "kept"
    host_a.kvmctl("disk", "detach", vm, "vdb")
    undo(f"disk detach {vm} vdb")
    row = _disks(host_a, vm)["vdb"]
    assert (row["source"], row["live"], row["saved"]) == (new["source"], True, True)

    address = f"{host_a.subnet}.202"
    mac = host_a.kvmctl("nic", "attach", vm, f"nat,ip={address}", "-o", "json").json()["mac"]
    guest.run(f"until grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    undo(f"nic attach {vm} {mac}")
    assert (_cards(host_a, vm), _reserved(host_a, mac)) == ({}, False)
    guest.run(f"while grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    undo(f"undo {vm}")
    row = _cards(host_a, vm)[mac]
    assert (row["reserved"], row["live"], row["saved"]) == (address, True, True)
    guest.run(f"until grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    host_a.kvmctl("nic", "detach", vm, mac)
    assert not _reserved(host_a, mac)
    undo(f"nic detach {vm} {mac}")
    assert _cards(host_a, vm)[mac]["reserved"] == address
    guest.run(f"until grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    guest.close()
    # The volume is the VM's own again, and goes with it; so does the address.
    assert new["source"] in host_a.kvmctl("delete", vm, "-y", "-o", "json").json()["deleted"]
    assert not _reserved(host_a, mac)


def _what_was_for_this_run_alone(host: Host, vm: str, guest: Guest, undo: Callable[[str], None]) -> None:
    """Cards and disks that are in no definition come and go as well, as long as that run lasts."""
    saved = host.virsh("dumpxml", "--inactive", vm).stdout
    address = f"{host.subnet}.203"
    mac = host.kvmctl("nic", "attach", vm, f"nat,ip={address}", "--live", "-o", "json").json()["mac"]
    guest.run(f"until grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    undo(f"nic attach {vm} {mac}")
    assert (_cards(host, vm), _reserved(host, mac)) == ({}, False)
    guest.run(f"while grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    undo(f"undo {vm}")
    assert (_cards(host, vm)[mac]["saved"], _reserved(host, mac)) == (False, True)
    guest.run(f"until grep -q {mac} /sys/class/net/*/address; do sleep 0.1; done")
    host.kvmctl("nic", "link", vm, mac, "down", "--live")
    undo(f"nic link {vm} {mac} down")
    assert _cards(host, vm)[mac]["link_up"]
    host.kvmctl("nic", "detach", vm, mac, "--live")
    assert not _reserved(host, mac)
    # What is no device is not passed over, nor what has gone with the run.
    host.kvmctl("set", vm, "--memory", "128M", "--live")
    never = host.kvmctl("undo", vm, "-o", "json", check=False)
    assert (never.returncode, "the running guest alone" in never.error()["message"]) == (7, True), never.stderr
    target = host.kvmctl("disk", "attach", vm, "8M", "--live", "-o", "json").json()["target"]
    undo(f"disk attach {vm} {target}")
    undo(f"undo {vm}")
    assert set(_disks(host, vm)) == {"vda", target}
    host.kvmctl("disk", "detach", vm, target, "--live", "--delete", "-y")

    def rest(text: str) -> str:
        return text.partition("</metadata>")[2]

    assert rest(host.virsh("dumpxml", "--inactive", vm).stdout) == rest(saved)
    host.kvmctl("nic", "attach", vm, "nat", "--live")
    host.kvmctl("destroy", vm)
    host.kvmctl("start", vm)
    ended = host.kvmctl("undo", vm, "-o", "json", check=False)
    assert (ended.returncode, "nothing is left of it" in ended.error()["message"]) == (4, True), ended.stderr
    guest.open()
    guest.ready()


def _disc(path: Path, content: bytes) -> str:
    image = pycdlib.PyCdlib()
    image.new()
    image.add_fp(io.BytesIO(content), len(content), "/FILE.;1")
    image.write(str(path))
    image.close()
    return str(path)


@pytest.mark.usefixtures("leaves_nothing")
def test_cables_and_discs_of_a_running_guest_go_back_at_once(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str], tmp_path: Path
) -> None:
    vm = vm_name("undo")
    discs = [_disc(tmp_path / f"{name}.iso", name.encode()) for name in ("one", "two")]
    host_a.start_default_network()
    source(host_a, tiny, vm, net="nat")
    guest = console(host_a, vm).ready()
    guest.run("mkdir -p /cd; until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up")

    def undo(command: str, what: str) -> None:
        assert what in host_a.kvmctl("undo", vm, "--dry-run").stdout
        told = host_a.kvmctl("undo", vm, "-o", "json")
        assert told.json()["command"] == command
        assert what in told.stderr

    def carrier(state: int) -> None:
        guest.run(f"until [ $(cat /sys/class/net/eth0/carrier) = {state} ]; do sleep 0.1; done")

    def reads(word: str) -> None:
        guest.run(f"until mount -t iso9660 -o ro /dev/sr0 /cd 2>/dev/null && grep -q {word} /cd/*; do sleep 0.1; done")
        guest.run("umount /cd")

    (mac,) = _cards(host_a, vm)
    carrier(1)
    host_a.kvmctl("nic", "link", vm, mac, "down")
    carrier(0)
    undo(f"nic link {vm} {mac} down", f"the cable of the card {mac} is plugged into the running guest")
    carrier(1)
    assert _cards(host_a, vm)[mac]["link_up"]
    undo(f"undo {vm}", f"the cable of the card {mac} is pulled out of the running guest")
    carrier(0)
    assert not _cards(host_a, vm)[mac]["link_up"]

    first = f"{host_a.shared}/{vm}.iso"
    host_a.run(["tee", first], input=Path(discs[0]).read_bytes())
    drive = host_a.kvmctl("disk", "attach", vm, f"{first},device=cdrom", "-o", "json").json()
    reads("one")
    host_a.kvmctl("disk", "insert", vm, discs[1])
    reads("two")
    undo(f"disk insert {vm}", f"the drive {drive['target']} of the running guest gets {drive['source']}")
    reads("one")
    host_a.kvmctl("disk", "eject", vm)
    # What the guest holds on to stays, and all the rest with it.
    host_a.kvmctl("undo", vm)
    guest.run("until mount -t iso9660 -o ro /dev/sr0 /cd 2>/dev/null; do sleep 0.1; done")
    before = host_a.definitions(vm)
    locked = host_a.kvmctl("undo", vm, "-o", "json", check=False)
    assert (locked.returncode, locked.error()["code"]) == (7, "refused"), locked.stderr
    assert "has locked the drive" in locked.error()["message"]
    assert host_a.definitions(vm) == before
    guest.run("umount /cd")
    undo(f"undo {vm}", f"the drive {drive['target']} of the running guest is emptied")
    assert _disks(host_a, vm)[drive["target"]]["source"] is None
    host_a.kvmctl("delete", vm, "-y")
    host_a.run(["rm", first])


@pytest.mark.usefixtures("leaves_nothing")
def test_undo_takes_nothing_back_that_it_did_not_name(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("undo"), vm_name("copy")
    create(host_a, tiny, vm, "--no-start")

    def info() -> dict[str, Any]:
        found = host_a.kvmctl("info", vm, "-o", "json").json()
        assert isinstance(found, dict)
        return found

    memory = info()["memory_bytes"]
    # A clone has frozen the disk since: going back must not let the source write under it.
    host_a.kvmctl("set", vm, "--memory", "192M")
    host_a.kvmctl("clone", vm, copy)
    overlay = info()["disks"][0]["source"]
    host_a.kvmctl("protect", vm)
    host_a.kvmctl("undo", vm)
    assert (info()["memory_bytes"], info()["disks"][0]["source"], info()["protected"]) == (memory, overlay, True)
    host_a.kvmctl("unprotect", vm)

    # Changed by virsh since: only with --yes, for that goes too.
    host_a.kvmctl("set", vm, "--title", "mine")
    host_a.virsh("setvcpus", vm, "1", "--config")
    host_a.virsh("desc", vm, "--config", "--title", "theirs")
    refused = host_a.kvmctl("undo", vm, check=False)
    assert (refused.returncode, info()["title"]) == (2, "theirs")
    assert "--yes" in refused.stderr
    host_a.kvmctl("undo", vm, "--yes")
    assert info()["title"] is None

    # What leads nowhere back is not passed over: the command before it is not the last one.
    host_a.kvmctl("set", vm, "--title", "mine")
    host_a.kvmctl("disk", "resize", vm, "vda", "+1M")
    before = host_a.kvmctl("dumpxml", vm).stdout
    never = host_a.kvmctl("undo", vm, "-o", "json", check=False)
    assert (never.returncode, never.error()["code"]) == (7, "refused")
    assert "cannot shrink" in never.error()["message"]
    assert host_a.kvmctl("dumpxml", vm).stdout == before

    # What is deleted cannot come back, and nothing else is touched for trying.
    host_a.kvmctl("disk", "attach", vm, "8M")
    host_a.kvmctl("disk", "detach", vm, "vdb", "--delete", "-y")
    before = host_a.kvmctl("dumpxml", vm).stdout
    gone = host_a.kvmctl("undo", vm, "-o", "json", check=False)
    assert (gone.returncode, gone.error()["code"]) == (7, "refused")
    assert "no longer there" in gone.error()["message"]
    assert host_a.kvmctl("dumpxml", vm).stdout == before
    host_a.kvmctl("delete", vm, copy, "-y")
