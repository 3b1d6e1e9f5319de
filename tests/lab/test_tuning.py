"""set: pinning, limits, CPU and boot order, seen in libvirt's live and saved definitions."""

from collections.abc import Callable

import pytest
from lxml import etree

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until


def _tree(host: Host, name: str, *more: str) -> etree._Element:
    return etree.fromstring(host.virsh("dumpxml", name, *more).stdout.encode())


def _most_vcpus(host: Host) -> int:
    """What the usual machine type takes: 288 with QEMU 7.2, 4096 with QEMU 10."""
    text = host.conn.getDomainCapabilities(None, "x86_64", "q35", "qemu", 0)
    return int(etree.fromstring(text).xpath("number(vcpu/@max)"))


@pytest.mark.usefixtures("leaves_nothing")
def test_what_is_tuned_takes_at_once_and_for_the_next_start(host_a: Host, tiny: images.Tiny) -> None:
    host_a.kvmctl(
        *("create", "tuned", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "2", "--graphics", "none", "--net", "nat,mac=52:54:00:00:77:01"),
        *("--disk", "16M", "-q"),
    )
    changed = host_a.kvmctl(
        *("set", "tuned", "--pin", "0:0", "--pin", "1:1", "--disk-limit", "vda,iops=300,bps=8M", "-o", "json")
    ).json()
    assert changed["changed"] is True
    for more in ((), ("--inactive",)):
        tree = _tree(host_a, "tuned", *more)
        pins = {e.get("vcpu"): e.get("cpuset") for e in tree.iterfind("cputune/vcpupin")}
        assert pins == {"0": "0", "1": "1"}
        assert tree.findtext("devices/disk/iotune/total_iops_sec") == "300"
        assert tree.findtext("devices/disk/iotune/total_bytes_sec") == str(8 << 20)
    again = host_a.kvmctl("set", "tuned", "--pin", "0:0", "--disk-limit", "vda,iops=300", "-o", "json").json()
    assert again["changed"] is False
    host_a.kvmctl("set", "tuned", "--disk-limit", "vda,iops=0,bps=0", "--pin", "0:all")
    assert _tree(host_a, "tuned").find("devices/disk/iotune/total_iops_sec") is None

    # For the next start alone.
    host_a.kvmctl(
        *("set", "tuned", "--config", "--cpu", "qemu64", "--boot", "network,disk", "--cpu-shares", "512"),
        *("--cpu-limit", "50", "--net-limit", "52:54:00:00:77:01,in=2M", "--hugepages"),
        *("--memory-limit", "soft=200M,hard=1G", "--numa", "2,host=0"),
    )
    saved = _tree(host_a, "tuned", "--inactive")
    assert saved.findtext("cpu/model") == "qemu64"
    assert saved.find("devices/interface/boot[@order='1']") is not None
    assert saved.find("devices/disk/boot[@order='2']") is not None
    assert (saved.findtext("cputune/shares"), saved.findtext("cputune/quota")) == ("512", "50000")
    assert saved.find("devices/interface/bandwidth/inbound[@average='2048']") is not None
    assert saved.find("memoryBacking/hugepages") is not None
    assert (saved.findtext("memtune/hard_limit"), saved.findtext("memtune/soft_limit")) == ("1048576", "204800")
    cells = [(cell.get("cpus"), cell.get("memory")) for cell in saved.iterfind("cpu/numa/cell")]
    assert cells == [("0", "131072"), ("1", "131072")]
    assert saved.find("numatune/memory[@nodeset='0']") is not None
    assert _tree(host_a, "tuned").findtext("cpu/model") != "qemu64"

    before = host_a.definitions("tuned")
    too_many = str(1 + _most_vcpus(host_a))
    for options, code, words in (
        (("--pin", "2:0"), 2, "has no vCPU 2"),
        (("--pin", "0:4000"), 2, "no CPU 4000"),
        (("--disk-limit", "vdz,iops=1"), 3, "no disk"),
        (("--net-limit", "52:54:00:00:00:00,in=1M", "--config"), 3, "no card"),
        (("--boot", "floppy", "--config"), 3, "to boot from"),
        (("--cpu", "no-such-cpu", "--config"), 2, "no-such-cpu"),
        (("--live", "--cpu", "qemu64"), 4, "takes effect when"),
        (("--memory-limit", "hard=200M"), 2, "would kill the guest"),
        (("--memory-limit", "all"), 2, "is no limit"),
        (("--numa", "3", "--config"), 2, "more than its 2 vCPUs"),
        (("--numa", "2,host=77", "--config"), 2, "no NUMA node 77"),
        (("--vcpus", too_many, "--config"), 2, "more than the machine type"),
        (("--memory", "512M", "--config"), 4, "divided among NUMA nodes"),
        # The first of these works and is taken back when the second fails.
        (("--title", "half", "--cpu", "no-such-cpu", "--config"), 2, "no-such-cpu"),
    ):
        refused = host_a.kvmctl("set", "tuned", *options, check=False)
        assert (refused.returncode, words in refused.stderr) == (code, True), (options, refused.stderr)
        assert host_a.definitions("tuned") == before, options
    host_a.kvmctl("set", "tuned", "--config", "--memory-limit", "hard=0,soft=0", "--numa", "0")
    saved = _tree(host_a, "tuned", "--inactive")
    assert [saved.find(path) for path in ("memtune", "cpu/numa", "numatune")] == [None, None, None]
    host_a.kvmctl("delete", "tuned", "-y")


def test_numa_nodes_are_seen_in_the_guest(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    host_a.kvmctl(
        *("create", "nodes", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "2", "--graphics", "none", "--net", "none", "--no-start", "-q"),
        *("--numa", "2", "--pin", "1:0", "--memory-limit", "soft=128M"),
    )
    assert host_a.kvmctl("set", "nodes", "--numa", "2", "-o", "json").json()["changed"] is False
    # The lab's hosts have no control groups, and libvirt starts the guest without a word.
    assert "its memory limits are not in force" in host_a.kvmctl("start", "nodes").stderr
    assert host_a.conn.lookupByName("nodes").vcpuPinInfo(1)[1][:2] == (True, False)
    guest = console(host_a, "nodes").ready()
    assert guest.run("cat /sys/devices/system/node/node[0-9]*/cpulist").split() == ["0", "1"]
    host_a.kvmctl("delete", "nodes", "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_what_a_new_guest_cannot_be_tuned_to_is_refused(host_a: Host) -> None:
    create = ("create", "never", "--pxe", "--net", "user", "--memory", "64M", "--vcpus", "2", "--no-start")
    for options, code, words in (
        (("--pin", "2:0"), 2, "has no vCPU 2"),
        (("--pin", "0:4000"), 2, "no CPU 4000"),
        (("--memory-limit", "hard=32M"), 2, "would kill the guest"),
        (("--numa", "3"), 2, "more than its 2 vCPUs"),
        (("--numa", "1,host=77"), 2, "no NUMA node 77"),
        (("--boot", "floppy"), 3, "to boot from"),
        (("--disk", "1M,iops=many"), 2, "no number of operations"),
        (("--net", "user,in=1M"), 2, "has no rate limits"),
        (("--autostart", "--autostart-order", "1"), 2, "exclude each other"),
        (("--autostart-delay", "1s"), 2, "give --autostart-order"),
    ):
        refused = host_a.kvmctl(*create, *options, check=False)
        assert (refused.returncode, words in refused.stderr) == (code, True), (options, refused.stderr)
        assert host_a.kvmctl("list", "-o", "json").json() == []


def test_what_a_running_guest_cannot_do_without_is_refused(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    host_a.kvmctl(
        *("create", "tight", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1,max=2", "--graphics", "none", "--net", "none", "-q"),
    )
    console(host_a, "tight").ready()
    # The balloon's driver tells every ten seconds what the guest uses.
    wait_until(lambda: "usable" in host_a.virsh("dommemstat", "tight").stdout, "what the guest says of its memory")
    before = host_a.definitions("tight")
    for options, code, words in (
        (("--memory", "16M"), 7, "more than the 16 MiB it would keep"),
        (("--memory", "1M"), 2, "less than any guest can use"),
        (("--memory", "512M"), 4, "room for at most 256 MiB"),
        (("--vcpus", "3"), 4, "room for at most 2 vCPUs"),
        (("--vcpus", "3", "--live"), 4, "room for at most 2 vCPUs"),
    ):
        refused = host_a.kvmctl("set", "tight", *options, check=False)
        assert (refused.returncode, words in refused.stderr) == (code, True), (options, refused.stderr)
        assert host_a.definitions("tight") == before, options
    host_a.kvmctl("delete", "tight", "-y")
