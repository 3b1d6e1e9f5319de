"""Through which of its cards a guest's ports are published: user networking, the first of several, none."""

import sys
from collections.abc import Callable
from pathlib import Path

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.published import fetch, kernel, rules


def test_user_networking_publishes_through_qemu(
    host_a: Host,
    tiny: images.Tiny,
    vm_name: Callable[[str], str],
    console: Callable[[Host, str], Guest],
    tmp_path: Path,
) -> None:
    name = vm_name("user")
    host_a.kvmctl("create", name, *kernel(tiny, "lab.hostname=inner"), "--net", "user", "-p", "9080:80")
    console(host_a, name).address()
    assert fetch(host_a, "127.0.0.1", 9080).stdout.strip() == "inner"
    added = host_a.kvmctl("port", "add", name, "9081:80", "-o", "json").json()
    assert [(row["vm"], row["address"], row["active"], row["via"]) for row in added] == [
        (name, "127.0.0.1", True, "user")
    ]
    assert fetch(host_a, "127.0.0.1", 9081).stdout.strip() == "inner"
    clash = host_a.kvmctl("port", "add", name, "9081:81", "-o", "json", check=False)
    assert clash.returncode == 4
    # What fails on the way takes back what QEMU has been told.
    before = host_a.virsh("dumpxml", name).stdout
    script = tmp_path / "broken.py"
    script.write_text(
        "import runpy, sys\n"
        "from kvmctl.operations import metadata\n"
        "def fail(*args):\n"
        "    raise OSError(28, 'injected failure')\n"
        "metadata.write = fail\n"
        f"sys.argv = ['kvmctl', 'port', 'add', {name!r}, '9082-9083:80-81']\n"
        "runpy.run_module('kvmctl', run_name='__main__')\n"
    )
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr, done.stderr
    assert host_a.virsh("dumpxml", name).stdout == before
    listening = host_a.client(["ss", "-tln"]).stdout
    assert ":9081 " in listening and ":9082 " not in listening and ":9083 " not in listening
    host_a.kvmctl("port", "remove", name, "9080")
    assert fetch(host_a, "127.0.0.1", 9080).returncode == 7
    host_a.kvmctl("destroy", name)
    host_a.kvmctl("start", name)
    console(host_a, name).address()
    assert fetch(host_a, "127.0.0.1", 9081).stdout.strip() == "inner"
    host_a.kvmctl("delete", "--yes", name)
    assert fetch(host_a, "127.0.0.1", 9081).returncode == 7


def test_they_go_through_the_first_card_that_can_have_them(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    host_a.start_default_network()
    name = vm_name("mixed")
    cards = ["--net", "macvtap:lan0", "--net", "nat", "--net", "user"]
    host_a.kvmctl("create", name, *kernel(tiny), *cards, "-p", "9070:80")

    def told() -> list[tuple[str, bool]]:
        return [(row["via"], row["active"]) for row in host_a.kvmctl("port", "list", name, "-o", "json").json()]

    assert told() == [("nat", True)]
    host_a.kvmctl("destroy", name)
    assert told() == [("nat", False)] and "9070" not in rules(host_a)
    host_a.kvmctl("start", name)
    assert told() == [("nat", True)] and "9070" in rules(host_a)
    host_a.kvmctl("delete", "--yes", name)
    assert "9070" not in rules(host_a)


def test_a_guest_that_is_reached_directly_has_no_use_for_it(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]
) -> None:
    name = vm_name("direct")
    host_a.kvmctl("create", name, *kernel(tiny), "--net", "macvtap:lan0", "--no-start")
    told = host_a.kvmctl("port", "add", name, "9080:80", "-o", "json", check=False)
    assert told.returncode == 7 and "neither behind NAT" in told.error()["message"]
    refused = host_a.kvmctl("create", vm_name("x"), *kernel(tiny), "--net", "macvtap:lan0", "-p", "1:2", check=False)
    assert refused.returncode == 2
