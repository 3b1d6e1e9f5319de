"""UEFI variables travel with snapshots and copies; and all of it over a connection to another host."""

import re
from collections.abc import Callable

import pytest

from tests.lab import images
from tests.lab.hosts import Host
from tests.lab.test_clones import source
from tests.lab.test_snapshots import BUMP, COUNTER, Open, create, names, read, write


def _nvram(host: Host, vm: str) -> str:
    found = re.search(r"<nvram[^>]*>([^<]+)</nvram>", host.kvmctl("dumpxml", vm).stdout)
    assert found is not None
    return found[1]


def _sum(host: Host, path: str) -> str:
    return host.run(["sha256sum", path]).stdout.split()[0]


@pytest.mark.usefixtures("leaves_nothing")
def test_uefi_variables_go_back_with_their_snapshot(
    host_a: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, copy = vm_name("uefi"), vm_name("copy")
    # Debian 13's firmware leaves a smaller guest no room for its initramfs.
    create(host_a, tiny, vm, "--firmware", "uefi", "--memory", "256M")
    guest = console(host_a, vm).ready(120)
    guest.run(COUNTER)
    guest.run(BUMP)
    write(guest, "then")
    # libvirt itself refuses one of its own, and would take half of one while the guest is off.
    assert host_a.virsh("snapshot-create-as", vm, "half", check=False).returncode != 0
    made = host_a.kvmctl("snapshot", "create", vm, "live", "-o", "json").json()
    assert (made["location"], made["memory"]) == ("external", True)
    nvram = _nvram(host_a, vm)
    then = _sum(host_a, nvram)
    guest.run(BUMP)
    write(guest, "later")
    guest.close()
    host_a.kvmctl("destroy", vm)
    off = host_a.kvmctl("snapshot", "create", vm, "off", "-o", "json").json()
    assert (off["location"], off["memory"]) == ("external", False)
    # As the firmware would: another value in a variable.
    host_a.run(["sh", "-c", f"printf CHANGED | dd of={nvram} bs=1 seek=4096 conv=notrunc"])
    assert _sum(host_a, nvram) != then
    host_a.kvmctl("clone", vm, copy)
    # libvirt names the file of a guest that never ran nowhere; this is where it will look for it.
    assert _sum(host_a, nvram.replace(vm, copy)) == _sum(host_a, nvram)
    host_a.kvmctl("snapshot", "revert", vm, "off", "--discard")
    assert _sum(host_a, nvram) == then
    host_a.kvmctl("snapshot", "revert", vm, "live")
    guest = console(host_a, vm).ready()
    assert (read(guest), guest.run("cat /tmp/count")) == ("then", "1")
    guest.close()
    host_a.kvmctl("delete", copy, vm, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_a_uefi_guest_goes_back_to_before_its_first_start(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm = vm_name("new")
    create(host_a, tiny, vm, "--firmware", "uefi", "--no-start")
    host_a.kvmctl("snapshot", "create", vm, "new")
    host_a.kvmctl("snapshot", "revert", vm, "new")
    host_a.kvmctl("start", vm)
    variables = _nvram(host_a, vm)
    assert variables in host_a.files()
    host_a.kvmctl("destroy", vm)
    host_a.kvmctl("snapshot", "revert", vm, "new")
    assert variables not in host_a.files()
    host_a.kvmctl("undo", vm)
    assert variables in host_a.files()
    host_a.kvmctl("start", vm)
    host_a.kvmctl("delete", vm, "-y")


@pytest.mark.full
@pytest.mark.usefixtures("leaves_nothing")
def test_snapshots_and_copies_on_another_host(
    host_a: Host, host_b: Host, tiny: images.Tiny, console: Open, vm_name: Callable[[str], str]
) -> None:
    vm, fork, linked = vm_name("far"), vm_name("fork"), vm_name("linked")
    host_b.start_default_network()
    source(host_b, tiny, vm, net="nat")
    guest = console(host_b, vm).ready()
    host_b.kvmctl("wait", vm, "--for", "agent", "--timeout", "2m", timeout=150)
    guest.run(COUNTER)
    guest.run(BUMP)
    write(guest, "one")

    def remote(*args: str) -> str:
        return host_a.kvmctl("-c", host_b.tcp_uri, *args, timeout=240).stdout

    remote("snapshot", "create", vm, "one", "--external")
    guest.run(BUMP)
    write(guest, "two")
    remote("snapshot", "revert", vm, "one")
    guest = console(host_b, vm).ready()
    assert (read(guest), guest.run("cat /tmp/count")) == ("one", "1")
    # Over ssh as well: the memory's file is reached through the connection alone.
    host_b.start_sshd()
    host_a.kvmctl("-c", host_b.ssh_uri, "clone", vm, fork, "--live", timeout=240)
    other = console(host_b, fork).ready()
    assert (read(other), other.run("cat /tmp/count")) == ("one", "1")
    assert other.run("hostname") == re.sub(r"[^A-Za-z0-9-]+", "-", fork)
    remote("clone", vm, linked)
    remote("clone", vm, f"{linked}-full", "--full")
    assert set(names(host_b, vm)) == {"one", "before-revert"}
    remote("delete", vm, fork, linked, f"{linked}-full", "-y")
