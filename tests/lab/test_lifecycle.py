"""start, stop, reboot, reset, destroy, suspend, resume, save, restore and wait, on a guest that really runs."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.guests import AGENT, NAT, booted, define
from tests.lab.hosts import Host

Named = Callable[[str], str]


def test_a_guest_is_paused_reset_saved_and_stopped(
    host_a: Host, tiny: images.Tiny, vm_name: Named, console: Callable[[Host, str], Guest]
) -> None:
    name = booted(host_a, tiny, vm_name("life"))
    again = host_a.kvmctl("start", name, "-o", "json").json()
    assert (again["changed"], again["state"]) == (False, "running")

    console(host_a, name).ready().run("echo remembered > /tmp/here")
    assert host_a.kvmctl("suspend", name, "-o", "json").json()["state"] == "paused"
    assert host_a.kvmctl("pause", name, "-o", "json").json()["changed"] is False
    assert host_a.kvmctl("stop", name, "-o", "json", check=False).error()["code"] == "conflict"
    assert host_a.kvmctl("resume", name, "-o", "json").json()["state"] == "running"

    saved = host_a.kvmctl("save", name, "-o", "json").json()
    assert (saved["state"], saved["changed"]) == ("shutoff", True)
    assert host_a.kvmctl("save", name, "-o", "json").json()["changed"] is False
    assert host_a.kvmctl("info", name, "-o", "json").json()["managed_save"] is True
    assert host_a.kvmctl("restore", name, "-o", "json").json()["state"] == "running"
    assert host_a.kvmctl("exec", name, "--", "cat", "/tmp/here").stdout == "remembered\n"

    host_a.kvmctl("reboot", name, "--wait", "agent")
    assert host_a.kvmctl("exec", name, "--", "cat", "/tmp/here", check=False).returncode == 1
    host_a.kvmctl("exec", name, "--", "touch", "/tmp/again")
    host_a.kvmctl("reset", name)
    host_a.kvmctl("wait", name, "--for", "agent")
    assert host_a.kvmctl("exec", name, "--", "test", "-e", "/tmp/again", check=False).returncode == 1

    stopped = host_a.kvmctl("stop", name, "-o", "json").json()
    assert (stopped["state"], stopped["changed"], stopped["forced"]) == ("shutoff", True, False)
    assert host_a.kvmctl("shutdown", name, "-o", "json").json()["changed"] is False
    assert host_a.kvmctl("destroy", name, "-o", "json").json()["changed"] is False
    for verb in ("reboot", "reset", "suspend", "resume", "save", "restore"):
        refused = host_a.kvmctl(verb, name, "-o", "json", check=False)
        assert (refused.returncode, refused.error()["code"]) == (4, "conflict"), verb


def test_a_state_saved_to_a_file_runs_on_and_is_not_overwritten_unasked(
    host_a: Host, tiny: images.Tiny, vm_name: Named
) -> None:
    name = booted(host_a, tiny, vm_name("file"))
    host_a.kvmctl("exec", name, "--", "sh", "-c", "echo kept > /tmp/here")
    path = f"{host_a.shared}/{name}.sav"
    host_a.kvmctl("save", name, path)
    running = host_a.kvmctl("restore", path, "-o", "json").json()
    assert (running["name"], running["state"]) == (name, "running")
    assert host_a.kvmctl("exec", name, "--", "cat", "/tmp/here").stdout == "kept\n"
    assert host_a.kvmctl("restore", path, check=False).returncode == 4
    refused = host_a.kvmctl("save", name, path, check=False)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert host_a.kvmctl("save", name, path, "--yes", "-o", "json").json()["changed"] is True
    assert host_a.kvmctl("restore", f"{host_a.shared}/nothing.sav", check=False).returncode == 3
    host_a.run(["rm", path])


def test_a_guest_that_ignores_the_button_is_powered_off_only_with_force(
    host_a: Host, tiny: images.Tiny, vm_name: Named, console: Callable[[Host, str], Guest]
) -> None:
    name = define(host_a, tiny, vm_name("deaf"), "", "acpi=off")
    host_a.kvmctl("start", name)
    console(host_a, name).ready()
    refused = host_a.kvmctl("stop", name, "--timeout", "2s", check=False)
    assert (refused.returncode, "--force" in refused.stderr) == (6, True)
    assert host_a.conn.lookupByName(name).isActive()
    forced = host_a.kvmctl("stop", name, "--timeout", "1s", "--force", "-o", "json").json()
    assert (forced["state"], forced["forced"]) == ("shutoff", True)


def test_waiting_ends_with_the_event_it_waits_for(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    host_a.start_default_network()
    name = define(host_a, tiny, vm_name("wait"), AGENT + NAT)
    assert host_a.kvmctl("wait", name, "--for", "agent", check=False).returncode == 4
    waiting = subprocess.Popen(
        host_a.kvmctl_command("wait", name, "--for", "running", "-o", "json"),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
    )
    host_a.kvmctl("start", name)
    assert waiting.wait(60) == 0
    assert waiting.communicate()[0]

    address = host_a.kvmctl("wait", name, "--for", "ip", "-o", "json").json()["found"]
    assert address.startswith(f"{host_a.subnet}.")
    assert host_a.kvmctl("wait", name, "--for", "ssh", "-o", "json").json()["found"] == f"{address}:22"
    early = host_a.kvmctl("wait", name, "--for", "cloud-init", "--timeout", "1s", check=False)
    assert (early.returncode, "no sign of cloud-init" in early.stderr) == (6, True)

    ends = {}

    def wait(condition: str) -> None:
        ends[condition] = host_a.kvmctl("wait", name, "--for", condition, "--timeout", "60s", check=False).returncode

    threads = [threading.Thread(target=wait, args=(condition,)) for condition in ("cloud-init", "stopped", "deleted")]
    for thread in threads:
        thread.start()
    time.sleep(4)
    host_a.kvmctl("destroy", name)
    host_a.conn.lookupByName(name).undefine()
    for thread in threads:
        thread.join()
    assert ends == {"cloud-init": 4, "stopped": 0, "deleted": 0}


def test_cloud_init_is_waited_for_by_what_it_leaves_in_the_guest(
    host_a: Host, tiny: images.Tiny, vm_name: Named
) -> None:
    name = booted(host_a, tiny, vm_name("ci"))

    def write(text: str) -> None:
        script = "mkdir -p /run/cloud-init; cat > /run/cloud-init/result.json"
        host_a.kvmctl("exec", name, "--", "sh", "-c", script, input=text)

    write('{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}')
    assert host_a.kvmctl("wait", name, "--for", "cloud-init", "-o", "json").json()["found"] == "DataSourceNoCloud"
    write('{"v1": {"datasource": null, "errors": ["bad \\u001b[31m key"]}}')
    failed = host_a.kvmctl("wait", name, "--for", "cloud-init", check=False)
    assert (failed.returncode, r"bad \x1b[31m key" in failed.stderr) == (1, True)
    for nonsense in ("[]", '{"v1": 3}', "no json", "[" * 100_000):
        write(nonsense)
        assert host_a.kvmctl("wait", name, "--for", "cloud-init", "--timeout", "1s", check=False).returncode == 6


def test_one_of_several_that_fails_does_not_stop_the_others(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    names = [define(host_a, tiny, vm_name("many")) for _ in range(2)]
    result = host_a.kvmctl("start", names[0], "not-there", names[1], "-o", "json", check=False)
    assert result.returncode == 8
    assert [row.get("state") for row in result.json()] == ["running", None, "running"]
    assert result.json()[1]["error"]["code"] == "not-found"
    host_a.kvmctl("destroy", "many-*", "--parallel", "2")
    assert [host_a.conn.lookupByName(name).isActive() for name in names] == [0, 0]
    assert host_a.kvmctl("start", "many-none*", check=False).returncode == 3
    dry = host_a.kvmctl("start", *names, "--dry-run", "-o", "json").json()
    assert [row["would"] for row in dry] == ["start it", "start it"]
    assert [host_a.conn.lookupByName(name).isActive() for name in names] == [0, 0]


def test_a_libvirtd_that_dies_while_waited_for_ends_the_wait(
    host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path
) -> None:
    name = define(host_a, tiny, vm_name("dies"))
    with (tmp_path / "err").open("wb") as errors:
        waiting = subprocess.Popen(
            host_a.kvmctl_command("wait", name, "--for", "running"), env=host_a.environment(), stderr=errors
        )
        time.sleep(4)
        host_a.kill_libvirtd()
        assert waiting.wait(60) == 5
    assert "lost while waiting" in (tmp_path / "err").read_text()
