"""events, stats, top, list -o wide and completion, beside a guest that does something."""

import json
import subprocess
from collections.abc import Callable

from tests.lab import images
from tests.lab.guests import AGENT, NAT, booted, define
from tests.lab.hosts import Host

Named = Callable[[str], str]


def test_events_are_told_as_they_come(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name, other = define(host_a, tiny, vm_name("seen")), define(host_a, tiny, vm_name("unseen"))
    with subprocess.Popen(
        host_a.kvmctl_command("events", name, "--event", "lifecycle", "--count", "4", "--timeout", "60s", "-o", "json"),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline().startswith("waiting for events")
        host_a.conn.lookupByName(other).create()
        host_a.conn.lookupByName(name).create()
        first = json.loads(process.stdout.readline())
        assert (first["event"], first["name"], first["what"]) == ("lifecycle", name, "resumed")
        host_a.conn.lookupByName(name).destroy()
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 0
    assert {row["name"] for row in (first, *rest)} == {name}
    assert (rest[-1]["what"], rest[-1]["why"]) == ("stopped", "destroyed")
    assert host_a.kvmctl("events", "--event", "nonsense", check=False).returncode == 2
    assert host_a.kvmctl("events", "--timeout", "1s", "-o", "json").stdout == ""


def test_what_a_guest_uses_is_shown(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    host_a.start_default_network()
    name = booted(host_a, tiny, vm_name("busy"), AGENT + NAT)
    address = host_a.kvmctl("wait", name, "--for", "ip", "-o", "json").json()["found"]
    host_a.kvmctl("exec", name, "--", "sh", "-c", "while :; do :; done >/dev/null 2>&1 &")
    (row,) = host_a.kvmctl("stats", name, "-o", "json").json()
    assert row["name"] == name
    assert row["cpu_percent"] > 10
    assert 0 < row["memory_used_bytes"] < row["memory_bytes"] == 256 * 1024**2
    assert row["net_received_bytes"] > 0
    assert host_a.kvmctl("top").stdout.splitlines()[1].startswith(name)

    (wide,) = host_a.kvmctl("ps", "--wide", "-o", "json").json()
    assert (wide["ips"], wide["state"]) == ([address], "running")
    assert wide["cpu_percent"] > 10
    assert 0 < wide["uptime_seconds"] < 600
    lines = host_a.kvmctl("list", "-o", "wide").stdout.splitlines()
    assert "IPS" in lines[0] and address in lines[1]
    info = host_a.kvmctl("info", name, "-o", "json").json()
    assert [nic["ips"] for nic in info["nics"]] == [[address]]
    assert info["agent"] == "connected"


def test_names_are_completed_but_not_those_that_could_harm(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = define(host_a, tiny, vm_name("comp"))
    define(host_a, tiny, "comp\x9b31m")
    words = {"COMP_WORDS": "kvmctl start comp", "COMP_CWORD": "2", "_KVMCTL_COMPLETE": "bash_complete"}
    assert host_a.kvmctl(env=words).stdout == f"plain,{name}\n"
    nobody = host_a.kvmctl("-c", "qemu+unix:///system?socket=/not/there", env={**words, "LIBVIRT_DEFAULT_URI": None})
    assert (nobody.stdout.strip(), nobody.stderr) == ("", "")
    for shell in ("bash", "zsh", "fish"):
        assert "_KVMCTL_COMPLETE" in host_a.kvmctl("completion", shell).stdout
