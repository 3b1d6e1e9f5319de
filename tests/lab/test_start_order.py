"""VMs that start with their host one after the other: libvirt itself starts all it starts at once."""

import re

import pytest

from tests.lab import images
from tests.lab.hosts import Host


@pytest.mark.usefixtures("leaves_nothing")
def test_vms_start_in_their_order_once_a_boot(host_a: Host, tiny: images.Tiny) -> None:
    for name in ("first", "second", "never"):
        host_a.kvmctl(
            *("create", name, "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
            *("--memory", "256M", "--vcpus", "1", "--graphics", "none", "--net", "none", "--no-start", "-q"),
        )
    none = host_a.kvmctl("set", "first", "--autostart-delay", "1s", check=False)
    assert (none.returncode, "no start order" in none.stderr) == (2, True)
    host_a.kvmctl("autostart", "first")
    changed = host_a.kvmctl("set", "first", "--autostart-order", "1", "--autostart-delay", "1s", "-o", "json").json()
    # libvirt would start it at once, with all of its own; and this host has no hook that starts it.
    assert (changed["changed"], changed["autostart"]) == (True, False)
    assert "kvmctl host setup" in changed["warnings"][0]
    told = host_a.kvmctl("info", "first", "-o", "json").json()
    assert (told["autostart"], told["autostart_order"], told["autostart_delay_seconds"]) == (False, 1, 1)
    # Of another machine nobody can see that from here.
    over_tcp = host_a.kvmctl("-c", host_a.tcp_uri, "list", "first", "never", "-o", "json").json()
    assert [row["autostart"] for row in over_tcp] == [True, False]
    host_a.kvmctl("set", "second", "--autostart-order", "2")
    assert host_a.kvmctl("set", "second", "--autostart-order", "2", "-o", "json").json()["changed"] is False
    planned = host_a.kvmctl("host", "autostart", "--dry-run", "-o", "json").json()
    assert [(row["name"], row["order"], row["delay_seconds"]) for row in planned] == [("first", 1, 1), ("second", 2, 0)]

    # The host has not booted since.
    assert host_a.kvmctl("host", "autostart", "--boot", "-o", "json").json() == []
    for name in ("first", "second"):
        older, changes = re.subn(
            r' boot="[^"]+"', ' boot="before"', host_a.kvmctl("dumpxml", name).stdout.replace("'", '"')
        )
        assert changes == 1
        host_a.kvmctl("define", "-", input=older)
    started = host_a.kvmctl("host", "autostart", "--boot", "-o", "json").json()
    assert [(row["name"], row["changed"]) for row in started] == [("first", True), ("second", True)]
    # libvirt numbers VMs as they start.
    numbers = {row["name"]: row["id"] for row in host_a.kvmctl("list", "-o", "json").json()}
    assert numbers["never"] is None
    assert numbers["first"] < numbers["second"]

    # What was switched off since stays off, and nothing is left to do.
    host_a.kvmctl("destroy", "first")
    assert host_a.kvmctl("host", "autostart", "--boot", "-o", "json").json() == []
    assert [r["changed"] for r in host_a.kvmctl("host", "autostart", "-o", "json").json()] == [True, False]
    host_a.kvmctl("autostart", "--off", "first")
    host_a.kvmctl("set", "second", "--autostart-order", "0")
    assert host_a.kvmctl("host", "autostart", "-o", "json").json() == []
    host_a.kvmctl("delete", "first", "second", "never", "-y")
