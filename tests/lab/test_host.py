"""host check, info, setup and overcommit on real hosts."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab
from tests.lab.test_hooks import on_host

# What --json of host check has in any case, whichever host it judges.
ALWAYS = {"cpu-flag", "kvm-device", "iommu", "ksm", "libvirt", "libvirt-version", "emulators", "uefi", "tpm", "accel"}


def checks(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in found["checks"]}


def machines_flag() -> str | None:
    """vmx or svm, found by grep: not the way that kvmctl reads it."""
    for flag in ("vmx", "svm"):
        done = subprocess.run(["grep", "-qE", f"^flags[[:space:]]*:.* {flag}( |$)", "/proc/cpuinfo"], check=False)
        if done.returncode == 0:
            return flag
    return None


def test_check_of_the_machine_itself(host_a: Host) -> None:
    found = host_a.kvmctl("host", "check", "-o", "json").json()
    by_name = checks(found)
    flag = machines_flag()
    assert by_name.keys() >= ALWAYS
    assert found["cpu"]["flag"] == flag
    assert found["cpu"]["model"] in Path("/proc/cpuinfo").read_text()
    assert (by_name["cpu-flag"]["level"] == "ok") == (flag is not None)
    assert (by_name["kvm-device"]["level"] == "ok") == Path("/dev/kvm").exists()
    if flag is None:
        assert found["accel"] == "tcg"
        assert ("kvm-evidence" in by_name) == Path("/dev/kvm").exists()
    assert found["verdict"] in ("ok", "warn")
    assert by_name["libvirt"]["level"] == "ok"
    assert host_a.uri in by_name["libvirt"]["detail"]
    version = re.search(r"Using library: libvirt (\S+)", host_a.run(["virsh", "version"]).stdout)
    assert version is not None
    assert f"libvirt {version[1]}" in by_name["libvirt-version"]["detail"]
    assert "x86_64" in by_name["emulators"]["detail"]
    assert "secure boot" in by_name["uefi"]["detail"]
    assert "TPM 1.2 and 2.0" in by_name["tpm"]["detail"]
    assert by_name["forwarding"]["level"] == "ok"


def test_check_sees_a_policy_that_drops_what_is_forwarded(host_a: Host) -> None:
    filtered = host_a.run(["sysctl", "-n", "net.bridge.bridge-nf-call-iptables"], check=False).stdout.strip()
    if filtered:
        host_a.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"])
    host_a.run(["iptables", "-P", "FORWARD", "DROP"])
    host_a.run(["iptables", "-N", "DOCKER-USER"])
    try:
        chains = host_a.run(["iptables", "-S"]).stdout
        found = checks(host_a.kvmctl("host", "check", "-o", "json").json())["forwarding"]
        assert (found["level"] == "warn") == ("LIBVIRT_FW" not in chains)
        host_a.start_default_network()
        if host_a.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], check=False).returncode == 0:
            found = checks(host_a.kvmctl("host", "check", "-o", "json").json())["forwarding"]
            assert found["level"] == "warn"
            assert "guests on a bridge do not get out" in found["detail"]
            host_a.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"])
        found = checks(host_a.kvmctl("host", "check", "-o", "json").json())["forwarding"]
        assert found["level"] == "ok"
        assert "libvirt's own exceptions" in found["detail"]
        host_a.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        found = checks(host_a.kvmctl("host", "check", "-o", "json").json())["forwarding"]
        assert found["level"] == "warn"
        assert "ip_forward=1" in found["hint"]
    finally:
        host_a.run(["iptables", "-P", "FORWARD", "ACCEPT"])
        host_a.run(["iptables", "-X", "DOCKER-USER"])
        host_a.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        if filtered:
            host_a.run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={filtered}"])


def test_check_of_a_remote_host(host_a: Host, host_b: Host) -> None:
    found = host_a.kvmctl("-c", host_b.tcp_uri, "host", "check", "-o", "json").json()
    by_name = checks(found)
    assert by_name.keys() >= ALWAYS
    assert by_name["vhost-net"]["level"] == by_name["forwarding"]["level"] == "unknown"
    assert host_b.tcp_uri in by_name["libvirt"]["detail"]
    assert found["accel"] == ("tcg" if machines_flag() is None else "kvm")
    model = re.search(r"<model>(.*)</model>", host_b.virsh("capabilities").stdout)
    assert model is not None
    assert found["cpu"]["model"] == model[1]


def test_check_without_libvirtd(host_a: Host) -> None:
    host_a.kill_libvirtd()
    gone = host_a.kvmctl("host", "check", "-o", "json", check=False)
    assert gone.returncode == 7
    assert gone.json()["verdict"] == "fail"
    assert checks(gone.json())["libvirt"]["level"] == "fail"
    elsewhere = host_a.kvmctl("-c", host_a.tcp_uri, "host", "check", "-o", "json", check=False)
    assert (elsewhere.returncode, elsewhere.error()["code"]) == (5, "connection")


def test_info(host_a: Host, host_b: Host) -> None:
    for uri in (host_a.uri, host_b.tcp_uri):
        host = host_a if uri == host_a.uri else host_b
        found = host_a.kvmctl("-c", uri, "host", "info", "-o", "json").json()
        told = dict(re.findall(r"^(.*?):\s+(\S+)", host.virsh("nodeinfo").stdout, re.MULTILINE))
        assert found["cpus"] == int(told["CPU(s)"])
        assert found["hostname"] == host.name
        total = int(dict(re.findall(r"^(\w+)\s*:\s+(\d+)", host.virsh("nodememstats").stdout, re.MULTILINE))["total"])
        assert found["memory_bytes"] == total * 1024
        assert "x86_64" in found["architectures"]
        assert [network["name"] for network in found["networks"]] == ["default"]
        assert found["guests"] == found["guests_running"] == 0


@pytest.fixture(scope="module", autouse=True)
def no_hooks_stay(lab: Lab) -> Iterator[None]:
    """``host setup`` installs them, and they would act on what the tests of other modules do by hand."""
    yield
    on_host(lab.a, "from kvmctl.operations import hooks; hooks.remove()")
    lab.a.restart_libvirtd()


@pytest.fixture
def bare(host_a: Host) -> Iterator[Host]:
    """Host a without network and pool; afterwards it has the lab's network again, not started."""
    network = host_a.conn.networkLookupByName("default")
    definition = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
    _drop(network)
    for pool in host_a.conn.listAllStoragePools(0):
        _drop(pool)
    yield host_a
    _drop(host_a.conn.networkLookupByName("default"))
    host_a.conn.networkDefineXML(definition)


def _drop(thing: libvirt.virNetwork | libvirt.virStoragePool) -> None:
    if thing.isActive():
        thing.destroy()
    thing.undefine()


def test_setup_makes_network_and_pool_and_then_nothing(bare: Host) -> None:
    planned = bare.kvmctl("host", "setup", "--dry-run", "-o", "json", local=True).json()
    # The hooks may be there already from another test on this host.
    assert [s["name"] for s in planned["steps"] if s["name"] != "hooks"] == ["network-default", "pool-default"]
    assert not any(step["done"] for step in planned["steps"])
    assert bare.conn.listAllNetworks(0) == []
    found = bare.kvmctl("host", "setup", "-o", "json", local=True).json()
    assert found["changed"] is True
    assert all(set(step) == {"name", "command", "done", "changed", "detail"} for step in found["steps"])
    assert all(step["done"] for step in found["steps"])
    for thing in (bare.conn.networkLookupByName("default"), bare.conn.storagePoolLookupByName("default")):
        assert thing.isActive()
        assert thing.autostart()
        assert thing.isPersistent()
    assert bare.kvmctl("host", "setup", "-o", "json", local=True).json() == {"changed": False, "steps": []}
    by_name = checks(bare.kvmctl("host", "check", "-o", "json").json())
    assert by_name["network-default"]["level"] == by_name["pool-default"]["level"] == "ok"


def test_setup_is_for_the_machine_it_runs_on(host_a: Host, host_b: Host) -> None:
    refused = host_a.kvmctl("-c", host_b.tcp_uri, "host", "setup", "-o", "json", check=False)
    assert (refused.returncode, refused.error()["code"]) == (2, "usage")


# /run of its own, because libvirtd and virtlogd lock their pid files there, which this machine's own may hold.
PRIVATE_RUN = """\
set -e
mount --make-rprivate /
mount --bind /run/libvirt /mnt
mount -t tmpfs tmpfs /run
mkdir /run/libvirt
mount --bind /mnt /run/libvirt
"$@"
echo "$(cat /run/libvirtd.pid) $(cat /run/virtlogd.pid)" >&2
"""


# /etc of its own, so that the machine's users and groups stay as they are.
PRIVATE_ETC = """\
set -e
mount --make-rprivate /
cp -a /etc/. "$FOLDER"
mount --bind "$FOLDER" /etc
groupadd -f libvirt
groupadd -f kvm
useradd kvmctl-ann
"$@"
id -nG kvmctl-ann >&2
"""


def test_setup_puts_the_user_of_sudo_into_the_groups(host_a: Host, tmp_path: Path) -> None:
    command = ["unshare", "-m", "sh", "-c", PRIVATE_ETC, "sh", sys.executable, "-m", "kvmctl", "-q", "host", "setup"]
    environment = host_a.environment(LIBVIRT_DEFAULT_URI="qemu:///system", FOLDER=str(tmp_path), SUDO_USER="kvmctl-ann")
    done = host_a.run([*command, "-o", "json"], env=environment)
    steps = {step["name"]: step for step in done.json()["steps"]}
    assert steps["user-groups"]["command"] == "usermod -aG libvirt,kvm kvmctl-ann"
    assert steps["user-groups"]["done"] is True
    assert {"libvirt", "kvm"} <= set(done.stderr.split())


def test_setup_says_so_where_a_step_did_not_help(host_a: Host, tmp_path: Path) -> None:
    # A usermod that ends well and does nothing.
    script = PRIVATE_ETC.replace('"$@"', 'mount --bind /bin/true /usr/sbin/usermod\n"$@" || echo "exit $?" >&2')
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "kvmctl", "-q", "host", "setup"]
    environment = host_a.environment(LIBVIRT_DEFAULT_URI="qemu:///system", FOLDER=str(tmp_path), SUDO_USER="kvmctl-ann")
    done = host_a.run([*command, "-o", "json"], env=environment)
    steps = {step["name"]: step for step in done.json()["steps"]}
    assert steps["user-groups"]["done"] is False
    assert "still so" in steps["user-groups"]["detail"]
    assert "exit 8" in done.stderr


def _ended(host: Host, pid: int) -> bool:
    return host.run(["kill", "-0", str(pid)], check=False).returncode != 0


def test_setup_starts_libvirtd_without_systemd(host_a: Host) -> None:
    host_a.kill_libvirtd()
    (host_a.folder / "run" / "libvirtd.pid").unlink()
    command = ["unshare", "-m", "sh", "-c", PRIVATE_RUN, "sh", sys.executable, "-m", "kvmctl", "-q", "host", "setup"]
    environment = host_a.environment(LIBVIRT_DEFAULT_URI="qemu:///system")
    done = host_a.run([*command, "-o", "json"], env=environment, check=False)
    pids = [int(word) for word in done.stderr.split() if word.isdigit()]
    try:
        assert done.returncode == 0, done.stderr
        steps = [step["name"] for step in done.json()["steps"]]
        assert steps[:2] == ["virtlogd", "libvirtd"]
        assert host_a.conn.getLibVersion() > 0
        assert len(pids) == 2
    finally:
        host_a.disconnect()
        for pid in pids:
            host_a.run(["kill", f"-{int(signal.SIGTERM)}", str(pid)], check=False)
        for pid in pids:
            wait_until(partial(_ended, host_a, pid), f"the end of {pid}")
        for name in ("libvirt-sock", "virtlogd-sock"):
            with contextlib.suppress(FileNotFoundError):
                (host_a.folder / "run" / name).unlink()


def test_overcommit_and_reclaim_on_a_real_guest(
    host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str], console: Callable[[Host, str], Guest], lab: Lab
) -> None:
    del lab
    name, off = vm_name("fat"), vm_name("off")
    boot = ("--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline, "--graphics", "none")
    host_a.kvmctl("create", name, *boot, "--memory", "768M", "--vcpus", "2")
    host_a.kvmctl("create", off, *boot, "--memory", "1G", "--vcpus", "4", "--no-start")
    guest = console(host_a, name).ready()

    def row() -> dict[str, Any]:
        found = host_a.kvmctl("host", "overcommit", "-o", "json").json()
        assert (found["vcpus_allocated"], found["vcpus_defined"]) == (2, 6)
        mine: dict[str, Any] = next(item for item in found["guests"] if item["name"] == name)
        return {**mine, "all": found}

    # Memory that was used once and is free again: the host gave it, and only the balloon brings it back.
    guest.run("dd if=/dev/zero of=/filler bs=1M count=250 && rm /filler")
    # The guest's balloon driver reports every ten seconds.
    wait_until(lambda: (row()["spare_bytes"] or 0) > 400 * 2**20, "the guest's own figures")
    before = row()
    assert before["memory_bytes"] == 768 * 2**20
    assert before["all"]["memory_allocated_bytes"] == 768 * 2**20
    assert before["all"]["memory_defined_bytes"] == (768 + 1024) * 2**20
    assert 0 < before["resident_bytes"] < before["all"]["memory_bytes"]
    total = int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    planned = host_a.kvmctl("host", "overcommit", "--reclaim", "--dry-run", "-o", "json").json()
    assert [item["name"] for item in planned] == [name]
    assert row()["memory_bytes"] == 768 * 2**20

    done = host_a.kvmctl("host", "overcommit", "--reclaim", "-o", "json").json()
    taken = done["guests"][0]
    assert taken["reason"] is None
    assert taken["now_bytes"] <= taken["to_bytes"] < taken["from_bytes"] == 768 * 2**20
    assert taken["resident_before_bytes"] > 400 * 2**20
    assert taken["resident_after_bytes"] < taken["resident_before_bytes"] - 150 * 2**20
    assert int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) < total - 50 * 1024
    # libvirt's list knows of the balloon by QEMU's event, of which there is at most one a second.
    wait_until(lambda: row()["memory_bytes"] == taken["now_bytes"], "the balloon in libvirt's list")
    after = row()
    assert after["ballooned_bytes"] == after["memory_max_bytes"] - after["memory_bytes"] > 0
    saved = host_a.virsh("dumpxml", "--inactive", name).stdout
    assert re.findall(r"<currentMemory unit='KiB'>(\d+)<", saved) == [str(768 * 1024)]
