"""list, info, define, edit, set, rename, protect: on definitions that other tools made."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guests import AGENT, NAT, booted, define, xml
from tests.lab.hosts import Host

Named = Callable[[str], str]
FOREIGN = "<metadata><a:mine xmlns:a='urn:other'><a:keep me='1'/></a:mine></metadata>"


def test_a_definition_of_another_tool_is_shown_and_keeps_what_it_has(
    host_a: Host, tiny: images.Tiny, vm_name: Named
) -> None:
    name = define(host_a, tiny, vm_name("other"), AGENT + NAT, head=f"<title>A&#x9b;31m title</title>{FOREIGN}")
    row = host_a.kvmctl("info", name, "-o", "json").json()
    assert row["title"] == "A\x9b31m title"
    assert (row["accel"], row["firmware"], row["arch"], row["protected"]) == ("tcg", "bios", "x86_64", False)
    assert [(n["mode"], n["source"], n["model"], n["link_up"]) for n in row["nics"]] == [
        ("nat", "default", "virtio", True)
    ]
    shown = host_a.kvmctl("info", name).stdout
    assert r"A\x9b31m title" in shown and "\x9b" not in shown
    listed = [r for r in host_a.kvmctl("list", "-o", "json").json() if r["name"] == name]
    assert listed == [
        {
            "name": name,
            "uuid": row["uuid"],
            "id": None,
            "state": "shutoff",
            "vcpus": 1,
            "memory_bytes": 256 * 1024**2,
            "autostart": False,
            "persistent": True,
        }
    ]
    assert host_a.kvmctl("ps", "-o", "json").json() == []

    host_a.kvmctl("protect", name)
    assert host_a.kvmctl("protect", name, "-o", "json").json()["changed"] is False
    host_a.kvmctl("set", name, "--title", "Clean", "--memory", "300M,max=512M", "--vcpus", "2,max=4", "--autostart")
    new = vm_name("renamed")
    assert host_a.kvmctl("rename", name, new, "-o", "json").json()["old_name"] == name
    row = host_a.kvmctl("info", new, "-o", "json").json()
    assert (row["title"], row["vcpus"], row["max_vcpus"], row["autostart"]) == ("Clean", 2, 4, True)
    assert (row["memory_bytes"], row["max_memory_bytes"], row["protected"]) == (300 * 1024**2, 512 * 1024**2, True)
    assert "<a:keep me='1'/>" in host_a.virsh("dumpxml", new).stdout.replace('"', "'")
    same = host_a.kvmctl(
        "set", new, "--title", "Clean", "--memory", "300M", "--vcpus", "2", "--autostart", "-o", "json"
    )
    assert same.json()["changed"] is False
    host_a.kvmctl("unprotect", new)
    host_a.kvmctl("autostart", "--off", new)
    row = host_a.kvmctl("info", new, "-o", "json").json()
    assert (row["protected"], row["autostart"]) == (False, False)


def test_names_that_cannot_be(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name, other = define(host_a, tiny, vm_name("a")), define(host_a, tiny, vm_name("b"))
    for wrong in ("../x", "a b", "x" * 300, "a\u202eb", "a\x9bb", "1234", "6a1d8d2e-6b0f-4a2c-9b8e-0123456789ab"):
        assert host_a.kvmctl("rename", name, wrong, check=False).returncode == 2, wrong
        assert host_a.kvmctl("info", wrong, check=False).returncode == 3, wrong
    assert host_a.kvmctl("rename", name, "--", "-rf", check=False).returncode == 2
    assert host_a.kvmctl("rename", name, other, check=False).returncode == 4
    assert host_a.kvmctl("rename", name, name, "-o", "json").json()["changed"] is False
    host_a.kvmctl("start", name)
    assert host_a.kvmctl("rename", name, vm_name("c"), check=False).returncode == 4
    number = host_a.kvmctl("ps", "-o", "json").json()[0]["id"]
    assert host_a.kvmctl("info", str(number), "-o", "json").json()["name"] == name


def test_define_takes_only_what_is_sound(host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path) -> None:
    name = vm_name("def")
    text = xml(tiny, name, AGENT, head=FOREIGN)
    path = tmp_path / "vm.xml"
    path.write_text(text)
    dry = host_a.kvmctl("define", str(path), "--dry-run")
    assert f"define {name}" in dry.stdout and host_a.kvmctl("list", name, check=False).returncode == 3
    made = host_a.kvmctl("define", str(path), "-o", "json").json()
    assert (made["created"], made["changed"]) == (True, True)
    again = host_a.kvmctl("define", "-", "-o", "json", input=host_a.kvmctl("dumpxml", name).stdout).json()
    assert (again["uuid"], again["created"], again["changed"]) == (made["uuid"], False, False)
    changed = host_a.kvmctl("define", "-", "-o", "json", input=text.replace("256", "257")).json()
    assert (changed["uuid"], changed["changed"]) == (made["uuid"], True)
    bomb = "<!DOCTYPE d [" + "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 9)) + "]>"
    outside = "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
    for wrong in (
        bomb + text,
        outside + text.replace(name, "&e;"),
        "",
        "not xml",
        "<network><name>x</name></network>",
        text.replace(name, "a/b"),
        text.replace(name, ""),
        text.replace("<features>", "<nonsense/><features>"),
        text.replace("hvm", "nosuch"),
    ):
        refused = host_a.kvmctl("define", "-", input=wrong, check=False)
        assert refused.returncode == 2, (wrong[:60], refused.stderr)
        assert refused.stderr.count("\n") <= 2
    assert host_a.kvmctl("define", str(tmp_path), check=False).returncode == 2
    assert host_a.kvmctl("list", "-o", "name").stdout.split() == [name]


def test_edit_changes_what_the_editor_changed(host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path) -> None:
    name = define(host_a, tiny, vm_name("edit"), head=f"<title>Old</title>{FOREIGN}")
    assert host_a.kvmctl("edit", name, check=False, env={"EDITOR": None, "VISUAL": None}).returncode == 2

    def edit(script: str) -> tuple[int, str]:
        done = host_a.kvmctl(
            "edit", name, "-o", "json", check=False, env={"EDITOR": f"sed -i '{script}'", "TMPDIR": str(tmp_path)}
        )
        return done.returncode, done.stdout

    assert '"changed": true' in edit("s/>Old</>New</")[1]
    assert '"changed": false' in edit("s/>Old</>New</")[1]
    assert "<title>New</title>" in host_a.virsh("dumpxml", name).stdout
    for wrong in (
        "s/<title>/<oops/",
        "s/<name>.*</<name>other</",
        "s/<uuid>./<uuid>x/",
        "s,<title>,<nonsense/><title>,",
    ):
        assert edit(wrong)[0] == 2, wrong
    assert "<title>New</title>" in host_a.virsh("dumpxml", name).stdout
    script = tmp_path / "race"
    script.write_text(
        f"#!/bin/sh\nsed -i s/New/Mine/ \"$1\"\nvirsh -c '{host_a.uri}' desc {name} --config --title theirs\n"
    )
    script.chmod(0o755)
    raced = host_a.kvmctl(
        "edit",
        name,
        check=False,
        env={"EDITOR": str(script), "TMPDIR": str(tmp_path)},
    )
    assert raced.returncode == 4
    assert "<title>theirs</title>" in host_a.virsh("dumpxml", name).stdout


def test_a_running_guest_is_set_live_and_for_the_next_start(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = booted(host_a, tiny, vm_name("set"))
    row = host_a.kvmctl("set", name, "--memory", "200M", "--title", "Live", "-o", "json").json()
    assert (row["memory_bytes"], row["title"], row["warnings"]) == (200 * 1024**2, "Live", [])
    stats = host_a.conn.lookupByName(name).memoryStats()
    assert stats["actual"] == 200 * 1024
    total = int(host_a.kvmctl("exec", name, "--", "sh", "-c", "grep MemTotal /proc/meminfo").stdout.split()[1])
    assert total < 200 * 1024
    for too_much in (("--memory", "1G"), ("--vcpus", "2")):
        refused = host_a.kvmctl("set", name, *too_much, "-o", "json", check=False)
        assert (refused.returncode, "--config" in refused.error()["hint"]) == (4, True)
    host_a.kvmctl("set", name, "--memory", "1G", "--vcpus", "2", "--config")
    assert host_a.kvmctl("info", name, "-o", "json").json()["memory_bytes"] == 200 * 1024**2
    config = host_a.virsh("dumpxml", name, "--inactive").stdout
    assert ">1048576</memory>" in config and ">2</vcpu>" in config
    refused = host_a.kvmctl("set", name, "--memory", "17M", check=False)
    assert refused.returncode == 7, refused.stderr


@pytest.mark.parametrize("wrong", [("--vcpus", "0"), ("--memory", "0"), ("--title", "a\x1bb"), ("--live", "--config")])
def test_set_refuses_nonsense(host_a: Host, tiny: images.Tiny, vm_name: Named, wrong: tuple[str, str]) -> None:
    name = define(host_a, tiny, vm_name("bad"))
    assert host_a.kvmctl("set", name, *wrong, check=False).returncode == 2
    assert host_a.kvmctl("set", name, check=False).returncode == 2
