"""apply, diff and export on real guests: twice changes nothing, what differs is changed, what cannot be is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host

Named = Callable[[str], str]
EXAMPLES = Path(__file__).parents[2] / "examples"


def write(folder: Path, *documents: dict[str, Any]) -> str:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


@pytest.fixture
def small(tiny: images.Tiny, tmp_path: Path, vm_name: Named) -> dict[str, Any]:
    """The spec of a tiny guest, its kernel and initrd named relative to the spec file."""
    for file in (tiny.kernel, tiny.initrd):
        shutil.copy(file, tmp_path)
    return {
        "name": vm_name("spec"),
        "kernel": tiny.kernel.name,
        "initrd": f"./{tiny.initrd.name}",
        "cmdline": tiny.cmdline,
        "vcpus": {"count": 1, "max": 2},
        "memory": "256M,max=512M",
        "disks": ["1G", "64M,bus=scsi,serial=data"],
        "networks": "user",
        "publish": ["2222:22"],
        "graphics": "none",
    }


@pytest.mark.usefixtures("leaves_nothing")
def test_a_guest_is_made_changed_and_made_again_from_its_spec(
    host_a: Host, small: dict[str, Any], tmp_path: Path, console: Callable[[Host, str], Guest]
) -> None:
    name, path = small["name"], write(tmp_path, small)
    absent = host_a.kvmctl("diff", "-f", path, "-o", "json", check=False)
    assert absent.returncode == 1
    assert absent.json() == {"name": name, "exists": False, "same": False, "differences": []}
    dry = host_a.kvmctl("apply", "-f", path, "--dry-run", "-o", "json").json()
    assert dry["would"] == "create"
    assert f"<name>{name}</name>" in dry["xml"]
    assert host_a.kvmctl("info", name, check=False).returncode == 3

    made = host_a.kvmctl("apply", "-f", path, "-o", "json").json()
    assert (made["created"], made["changed"], made["state"]) == (True, True, "running")
    guest = console(host_a, name).ready()
    assert guest.run("nproc").strip() == "1"
    before = host_a.conn.lookupByName(name).XMLDesc(2)
    again = host_a.kvmctl("apply", "-f", path, "-o", "json").json()
    assert (again["created"], again["changed"], again["changes"]) == (False, False, [])
    assert host_a.conn.lookupByName(name).XMLDesc(2) == before
    assert host_a.kvmctl("diff", "-f", path).returncode == 0

    wanted = {
        **small,
        "title": "Changed",
        "description": "by a spec",
        "vcpus": "2,max=2",
        "publish": ["2222:80", "127.0.0.1:2223:22"],
        "autostart": True,
    }
    path = write(tmp_path, wanted)
    told = host_a.kvmctl("diff", "-f", path, "-o", "json", check=False)
    assert told.returncode == 1
    assert [(d["key"], d["action"]) for d in told.json()["differences"]] == [
        (key, "change") for key in ("title", "description", "vcpus", "publish", "autostart")
    ]
    assert host_a.kvmctl("apply", "-f", path, "-o", "json").json()["changed"] is True
    # The guest takes the CPU in on its own time. Debian 13's kernel sees it come, and cannot use it when emulated.
    refused = "dmesg | grep -q 'Unable to map lapic to logical cpu number'"
    guest.run(f"until [ $(nproc) = 2 ] || {refused}; do sleep 0.2; done", timeout=60)
    banner = host_a.client(["socat", "-t", "5", "TCP:127.0.0.1:2223", "STDIO"], input="")
    assert banner.stdout.startswith("SSH-2.0-")
    page = host_a.client(["curl", "-s", "http://127.0.0.1:2222/hostname"])
    assert page.stdout.strip() == guest.run("hostname").strip()
    seen = host_a.kvmctl("info", name, "-o", "json").json()
    assert (seen["title"], seen["description"], seen["autostart"]) == ("Changed", "by a spec", True)
    assert host_a.kvmctl("apply", "-f", path, "-o", "json").json()["changed"] is False
    assert host_a.kvmctl("diff", "-f", path).returncode == 0
    guest.close()

    exported = host_a.kvmctl("export", name).stdout
    (tmp_path / "exported.yaml").write_text(exported)
    assert host_a.kvmctl("diff", "-f", str(tmp_path / "exported.yaml")).returncode == 0
    old = host_a.kvmctl("dumpxml", name, "--inactive").stdout
    host_a.kvmctl("delete", name, "--yes")
    assert host_a.kvmctl("apply", "-f", "-", "-o", "json", input=exported).json()["created"] is True
    assert host_a.kvmctl("diff", "-f", "-", input=exported).returncode == 0
    assert unnumbered(host_a.kvmctl("dumpxml", name, "--inactive").stdout) == unnumbered(old)
    host_a.kvmctl("delete", name, "--yes")


def unnumbered(text: str) -> str:
    """A domain's XML without what is new in every VM."""
    return "\n".join(
        line for line in text.splitlines() if not any(t in line for t in ("<uuid", "<mac ", ":created", " owner="))
    )


@pytest.mark.usefixtures("leaves_nothing")
def test_what_is_tuned_is_in_the_spec(host_a: Host, tmp_path: Path, vm_name: Named) -> None:
    tuned = {
        "pins": ["0:0", "1:1"],
        "cpu_shares": 512,
        "cpu_limit": 50,
        "memory_limit": "soft=128M,hard=1G",
        "hugepages": True,
        "numa": "2,host=0",
        "boot": ["network", "disk"],
        "autostart_order": 3,
        "autostart_delay": 20,
        "disks": ["8M,iops=300,bps=4M"],
        "networks": ["nat,in=10M,out=1M"],
    }
    name = vm_name("tuned")
    spec = {"name": name, "pxe": True, "memory": "64M", "vcpus": 2, "start": False, **tuned}
    assert host_a.kvmctl("apply", "-f", write(tmp_path, spec), "-o", "json").json()["created"] is True
    assert host_a.kvmctl("diff", "-f", write(tmp_path, spec)).returncode == 0
    old = host_a.virsh("dumpxml", name).stdout
    for wanted in ("vcpupin vcpu='1' cpuset='1'", "<hugepages/>", "<shares>512<", "nodeset='0'", "average='10240'"):
        assert wanted in old
    exported = host_a.kvmctl("export", name)
    assert "cannot say" not in exported.stderr
    host_a.kvmctl("delete", name, "--yes")
    host_a.kvmctl("apply", "-f", "-", input=exported.stdout)
    assert unnumbered(host_a.virsh("dumpxml", name).stdout) == unnumbered(old)
    assert host_a.kvmctl("diff", "-f", "-", input=exported.stdout).returncode == 0

    # All of these can be changed in place, and taken away.
    changes: dict[str, Any] = {
        "pins": ["1:0"],
        "cpu_shares": 300,
        "cpu_limit": 0,
        "memory_limit": "soft=0,hard=0",
        "hugepages": False,
        "numa": 0,
        "boot": ["disk"],
        "autostart_order": 4,
        "autostart_delay": 0,
    }
    path = write(tmp_path, {"name": name, **changes})
    told = host_a.kvmctl("diff", "-f", path, "-o", "json", check=False).json()
    assert {row["key"]: row["action"] for row in told["differences"]} == dict.fromkeys(changes, "change")
    assert host_a.kvmctl("apply", "-f", path, "-o", "json").json()["changed"] is True
    assert host_a.kvmctl("diff", "-f", path).returncode == 0
    assert host_a.kvmctl("apply", "-f", path, "-o", "json").json()["changed"] is False
    now = host_a.kvmctl("export", name, "-o", "json").json()
    assert {key for key in changes if key in now} == {"pins", "cpu_shares", "boot", "autostart_order"}
    off = write(tmp_path, {"name": name, "autostart": False})
    assert host_a.kvmctl("apply", "-f", off, "-o", "json").json()["changed"] is True
    assert host_a.kvmctl("info", name, "-o", "json").json()["autostart_order"] is None
    host_a.kvmctl("delete", name, "--yes")


@pytest.mark.usefixtures("leaves_nothing")
def test_what_would_need_a_new_vm_is_refused_and_nothing_is_touched(
    host_a: Host, small: dict[str, Any], tmp_path: Path
) -> None:
    name = small["name"]
    host_a.kvmctl("apply", "-f", write(tmp_path, {**small, "start": False}))
    assert host_a.kvmctl("info", name, "-o", "json").json()["state"] == "shutoff"
    before = host_a.conn.lookupByName(name).XMLDesc(0)
    path = write(tmp_path, {**small, "title": "new", "firmware": "uefi", "disks": ["2G"], "networks": []})
    refused = host_a.kvmctl("apply", "-f", path, "-o", "json", check=False)
    assert refused.returncode == 7
    message = refused.error()["message"]
    assert all(f"{key} is " in message for key in ("firmware", "disks", "networks"))
    assert host_a.conn.lookupByName(name).XMLDesc(0) == before
    told = host_a.kvmctl("diff", "-f", path, "-o", "json", check=False).json()["differences"]
    assert {d["key"]: d["action"] for d in told} == {
        "title": "change",
        "firmware": "recreate",
        "disks": "recreate",
        "networks": "recreate",
    }
    host_a.kvmctl("delete", name, "--yes")


@pytest.mark.usefixtures("leaves_nothing")
def test_start_says_whether_it_runs_and_options_win_over_the_spec(
    host_a: Host, small: dict[str, Any], tmp_path: Path, console: Callable[[Host, str], Guest]
) -> None:
    name = small["name"]
    path = write(tmp_path, {**small, "start": False})
    row = host_a.kvmctl("create", "-f", path, "--memory", "300M", "--title", "mine", "-o", "json").json()
    assert (row["name"], row["state"], row["memory_bytes"], row["title"]) == (name, "shutoff", 300 * 2**20, "mine")
    on = write(tmp_path, {"name": name, "start": True})
    assert host_a.kvmctl("apply", "-f", on, "-o", "json").json()["state"] == "running"
    assert host_a.kvmctl("apply", "-f", on, "-o", "json").json()["changed"] is False
    console(host_a, name).ready()
    off = write(tmp_path, {"name": name, "start": False})
    assert host_a.kvmctl("apply", "-f", off, "-o", "json").json()["state"] == "shutoff"
    assert host_a.kvmctl("apply", "-f", off, "-o", "json").json()["changed"] is False
    host_a.kvmctl("delete", name, "--yes")


@pytest.mark.usefixtures("leaves_nothing")
def test_one_that_fails_leaves_the_others_and_itself_as_they_were(
    host_a: Host, small: dict[str, Any], tmp_path: Path, vm_name: Named
) -> None:
    names = [vm_name("one"), vm_name("two")]
    both = [{**small, "name": name, "start": False, "publish": []} for name in names]
    rows = host_a.kvmctl("apply", "-f", write(tmp_path, *both), "-o", "json").json()
    assert [(row["name"], row["created"]) for row in rows] == [(name, True) for name in names]
    assert host_a.kvmctl("diff", "-f", write(tmp_path, *both)).returncode == 0
    # Both want one port: the second's conflict takes its title back, the first's stays.
    wanted = [{**one, "title": "new", "publish": ["127.0.0.1:2299:22"]} for one in both]
    failed = host_a.kvmctl("apply", "-f", write(tmp_path, *wanted), "-o", "json", check=False)
    assert failed.returncode == 8
    rows = failed.json()
    assert rows[0]["changed"] is True
    assert rows[1]["error"]["code"] == "conflict"
    titles = [host_a.kvmctl("info", name, "-o", "json").json()["title"] for name in names]
    assert titles == ["new", None]
    host_a.kvmctl("delete", *names, "--yes")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("name: [", 2, "line 1"),
        ("name: web\nnam: x", 2, "no key 'nam'"),
        ("memory: 1G", 2, "no name"),
        ("name: a\n---\nname: a", 2, "two VMs"),
        ("name: a", 2, "nothing was given to boot from"),
        ("name: a\nimage: no-such-image", 3, "no image named"),
        ("name: \u202eabc", 2, "cannot be the name"),
    ],
)
def test_bad_specs_are_one_line(host_a: Host, tmp_path: Path, text: str, code: int, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = host_a.kvmctl("apply", "-f", str(path), "-o", "json", check=False)
    assert (done.returncode, said in done.error()["message"]) == (code, True), done.stderr
    # For diff a VM that is not there is a difference; what is wrong with the spec itself is an error.
    alone = "nothing was given" in said or code == 3
    assert host_a.kvmctl("diff", "-f", str(path), check=False).returncode == (1 if alone else code)


def test_a_missing_spec_and_a_missing_hypervisor_are_errors_not_differences(host_a: Host, tmp_path: Path) -> None:
    assert host_a.kvmctl("diff", "-f", str(tmp_path / "none.yaml"), check=False).returncode == 3
    path = write(tmp_path, {"name": "x"})
    assert host_a.kvmctl("-c", "qemu+unix:///system?socket=/nowhere", "diff", "-f", path, check=False).returncode == 5


def test_the_examples(host_a: Host, debian: Path) -> None:
    host_a.kvmctl("image", "import", str(debian), "--name", "debian-12", timeout=300)
    for file, names in (("web.yaml", ["web"]), ("two.toml", ["app", "db"])):
        path = str(EXAMPLES / file)
        assert host_a.kvmctl("diff", "-f", path, check=False).returncode == 1
        host_a.kvmctl("apply", "-f", path)
        rows = json.loads(host_a.kvmctl("apply", "-f", path, "-o", "json").stdout)
        for row in rows if isinstance(rows, list) else [rows]:
            assert row["changed"] is False, row
        assert host_a.kvmctl("diff", "-f", path).returncode == 0
        exported = host_a.kvmctl("export", *names).stdout
        assert host_a.kvmctl("diff", "-f", "-", input=exported).returncode == 0
        host_a.kvmctl("delete", *names, "--yes")
    host_a.kvmctl("image", "delete", "debian-12", "--yes")


@pytest.mark.usefixtures("leaves_nothing")
def test_a_dry_run_makes_no_pool_and_brings_no_image(
    host_b: Host, small: dict[str, Any], tmp_path: Path, debian: Path
) -> None:
    pools = [pool.name() for pool in host_b.conn.listAllStoragePools(0)]
    row = host_b.kvmctl("apply", "-f", write(tmp_path, small), "--dry-run", "-o", "json").json()
    assert any("storage pool default" in step for step in row["changes"])
    for image in (str(debian), "http://127.0.0.1:9/x.qcow2"):
        done = host_b.kvmctl("create", small["name"], "--image", image, "--dry-run", "-o", "json", check=False)
        assert done.returncode == 3
        assert "a dry run brings nothing" in done.error()["message"]
    assert [pool.name() for pool in host_b.conn.listAllStoragePools(0)] == pools


@pytest.mark.usefixtures("leaves_nothing")
def test_a_remote_host_gets_the_files_and_is_the_same_after(
    host_a: Host, host_b: Host, small: dict[str, Any], tmp_path: Path
) -> None:
    host_b.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
    try:
        path = write(tmp_path, {**small, "start": False, "user": "me", "ssh_keys": ["ssh-ed25519 AAAAC3Nza me"]})
        there = ("-c", host_b.tcp_uri)
        assert host_a.kvmctl(*there, "apply", "-f", path, "-o", "json").json()["created"] is True
        assert host_a.kvmctl(*there, "apply", "-f", path, "-o", "json").json()["changed"] is False
        assert host_a.kvmctl(*there, "diff", "-f", path).returncode == 0
        exported = host_a.kvmctl(*there, "export", small["name"])
        assert "own copy" in exported.stderr
        assert "SSH keys" in exported.stderr
        assert host_a.kvmctl(*there, "diff", "-f", "-", input=exported.stdout).returncode == 0
        assert host_a.kvmctl("diff", "-f", path, check=False).returncode == 1
        host_a.kvmctl(*there, "delete", small["name"], "--yes")
    finally:
        host_b.run(["umount", str(tmp_path)])
