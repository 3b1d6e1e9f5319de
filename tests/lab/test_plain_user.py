"""Moments and copies of a user who is not root, in qemu:///session."""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab import images
from tests.lab.hosts import Host
from tests.lab.plain_user import PlainUser
from tests.lab.test_snapshots import BUMP, COUNTER


@pytest.fixture
def user(host_a: Host) -> Iterator[PlainUser]:
    """Somebody with a libvirtd of their own."""
    with PlainUser(host_a) as there:
        yield there


def test_without_root_a_running_guest_goes_back_and_is_forked(
    user: PlainUser, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    vm, fork, linked = vm_name("mine"), vm_name("fork"), vm_name("linked")
    size = ["--memory", "160M", "--vcpus", "1", "--net", "user", "--graphics", "none", "--disk", "64M"]
    user.kvmctl("create", vm, *user.boot(tiny), *size, "--wait", "agent", "--timeout", "2m")

    def inside(name: str, script: str) -> str:
        return user.kvmctl("exec", name, "--", "sh", "-c", script).stdout.strip()

    inside(vm, COUNTER)
    inside(vm, BUMP)
    forked = user.kvmctl("clone", vm, fork, "--live", "-o", "json").json()
    assert (forked["mode"], forked["warnings"], forked["pause_ms"] >= 0) == ("live", [], True)
    # The same process goes on in both, each for itself; name and card are the copy's own.
    inside(fork, BUMP)
    assert (inside(vm, "cat /tmp/count"), inside(fork, "cat /tmp/count")) == ("1", "2")
    assert inside(fork, "hostname") == re.sub(r"[^A-Za-z0-9-]+", "-", fork)
    (card,) = user.kvmctl("nic", "list", fork, "-o", "json").json()
    assert inside(fork, "cat /sys/class/net/eth0/address") == card["mac"]
    assert card["link_up"]
    assert card["mac"] != user.kvmctl("nic", "list", vm, "-o", "json").json()[0]["mac"]

    user.kvmctl("snapshot", "create", vm, "one", "--external")
    inside(vm, BUMP)
    user.kvmctl("snapshot", "revert", vm, "one", "--discard")
    assert inside(vm, "cat /tmp/count") == "1"
    user.kvmctl("clone", vm, linked)
    user.kvmctl("delete", vm, fork, linked, "-y")
    assert user.files() == set()
