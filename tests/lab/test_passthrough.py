"""PCI devices passed on for real: an emulated host with an IOMMU, libvirt inside, and a guest of its own."""

import sys
from collections.abc import Iterator

import pytest

from tests.lab.passthrough_host import PassthroughHost

# A guest emulated within an emulated host takes its time to let go of a device.
PATIENT = ("--timeout", "4m")
# Asks the agent in a guest something, through the vsock of that guest, as soon as it listens there.
_OVER_VSOCK = """
import json, socket, sys, time
end = time.monotonic() + 120
while True:
    with socket.socket(socket.AF_VSOCK) as s:
        s.settimeout(60)
        try:
            s.connect((int(sys.argv[1]), 1024))
        except ConnectionResetError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
            continue
        s.sendall(b'{"execute": "guest-sync", "arguments": {"id": 4242}}\\n')
        print(json.loads(s.makefile().readline())["return"])
        break
"""
PAIR = {"0000:01:01.0": "52:54:00:aa:01:01", "0000:01:02.0": "52:54:00:aa:01:02"}


@pytest.fixture(scope="module")
def outer() -> Iterator[PassthroughHost]:
    with PassthroughHost() as up:
        yield up


@pytest.fixture(scope="module")
def everything() -> Iterator[PassthroughHost]:
    """One with a mediated device, too."""
    with PassthroughHost(everything=True) as up:
        yield up


@pytest.fixture(scope="module")
def inner(outer: PassthroughHost) -> str:
    """A stopped guest that has one NIC of the host from the start."""
    outer.kvmctl(
        *("create", "inner", "--kernel", str(outer.images.kernel), "--initrd", str(outer.images.guest)),
        *("--cmdline", "console=ttyS0 quiet no_timer_check", "--memory", "256M", "--vcpus", "1", "--graphics", "none"),
        *("--net", "none", "--pci", outer.nics[0], "--no-start", "-q"),
        timeout=300,
    )
    return "inner"


def the_list_says_what_can_be_passed_and_why_the_rest_cannot(outer: PassthroughHost) -> None:
    found = outer.pci()
    for address in outer.nics:
        row = found[address]
        assert (row["assignable"], row["reason"], row["driver"]) == (True, None, "e1000e")
        assert row["group_members"] == [address]
        assert (row["vendor"], row["product"]) == ("Intel Corporation", "82574L Gigabit Network Connection")
        assert row["class"] == "Ethernet controller"
    groups = outer.shell("cd /sys/bus/pci/devices; for d in *; do echo $d $(basename $(readlink $d/iommu_group)); done")
    assert {address: str(row["iommu_group"]) for address, row in found.items()} == dict(
        line.split() for line in groups.splitlines()
    )
    (disk,) = [row for row in found.values() if "vda" in row["disks"]]
    assert disk["assignable"] is False
    assert "/var/lib/libvirt mounted from /dev/vda" in disk["reason"]
    assert "shares IOMMU group" in found["0000:00:1f.2"]["reason"]
    assert "0000:00:1f.0" in found["0000:00:1f.2"]["reason"]
    assert found["0000:01:01.0"]["with_group"] is True
    assert found["0000:01:01.0"]["group_members"] == ["0000:00:0e.0", "0000:01:01.0", "0000:01:02.0"]
    assert "bridge" in found["0000:00:10.0"]["reason"]


def what_cannot_go_is_refused_and_nothing_changes(outer: PassthroughHost, inner: str) -> None:
    for device, code, words in (
        ("0000:00:1f.2", 7, "shares IOMMU group"),
        ("01:01.0", 7, "--group passes all of them"),
        ("0000:7f:00.0", 3, "no PCI device 0000:7f:00.0"),
    ):
        before = outer.shell(f"virsh dumpxml {inner}")
        refused = outer.kvmctl("pci", "attach", inner, device, check=False)
        assert refused.returncode == code, refused.stderr
        assert words in refused.stderr
        assert outer.shell(f"virsh dumpxml {inner}") == before


def devices_go_into_a_guest(outer: PassthroughHost, inner: str) -> None:
    # It has one from create; a group of two, and a free one of a kind, each come from one command.
    outer.kvmctl("pci", "attach", inner, "01:01.0", "--group")
    taken = outer.kvmctl("pci", "attach", inner, "1b36:0010", "-o", "json").json()["devices"]
    assert taken == [outer.nvmes[0]]
    outer.kvmctl("start", inner, timeout=600)
    # A card is on the bus before its driver has made it an interface.
    seen = outer.wait_inside(inner, r"pci=4 nvme=1 .* nics=((?: \S+){3}) END")
    assert sorted(seen[1].split()) == sorted([outer.macs[outer.nics[0]], *PAIR.values()])
    all_of_them = {outer.nics[0], *PAIR, *taken}
    assert outer.drivers(all_of_them) == {"vfio-pci"}
    assert {address for address, row in outer.pci().items() if row["used_by"] == [inner]} == all_of_them


def a_vsock_leads_into_the_guest(outer: PassthroughHost, inner: str) -> None:
    rows = {row["name"]: row for row in outer.kvmctl("device", "list", inner, "-o", "json").json()}
    assert rows[f"mdev={outer.mdev}"]["live"] is True
    number = rows["vsock0"]["detail"].removeprefix("cid ")
    assert outer.run([sys.executable, "-c", _OVER_VSOCK, number]).stdout == "4242\n"


def limits_hold_in_the_hosts_control_groups(outer: PassthroughHost, inner: str) -> None:
    limits = ("--memory-limit", "soft=300M,hard=1G", "--cpu-shares", "512", "--cpu-limit", "50")
    assert outer.kvmctl("set", inner, *limits, "-o", "json").json()["changed"] is True
    files = ("memory.max", "memory.high", "cpu.weight", "vcpu0/cpu.max")
    group = f"/sys/fs/cgroup/machine/qemu-*-{inner}.libvirt-qemu"
    now = outer.shell(" && ".join(f"cat {group}/{file}" for file in files)).splitlines()
    assert now == [str(1 << 30), str(300 << 20), "512", "50000 100000"]
    for more in ("", " --inactive"):
        text = outer.shell(f"virsh dumpxml {inner}{more}")
        for wanted in (">1048576</hard_limit>", ">307200</soft_limit>", "<shares>512<", "<quota>50000<"):
            assert wanted in text


def a_mediated_device_is_listed_and_taken_out(outer: PassthroughHost, inner: str) -> None:
    rows = outer.kvmctl("pci", "list", "--mdev", "-o", "json").json()
    (made,) = [row for row in rows if row["uuid"] is not None]
    assert (made["uuid"], made["type"], made["parent"]) == (outer.mdev, "mtty-1", "mtty")
    assert (made["name"], made["device_api"], made["used_by"]) == ("Single port serial", "vfio-pci", [inner])
    assert {row["type"]: row["available"] for row in rows if row["uuid"] is None} == {"mtty-1": 23, "mtty-2": 11}
    outer.kvmctl("device", "detach", inner, f"mdev={outer.mdev}", *PATIENT)
    outer.wait_inside(inner, r" mdev=0 ")


def devices_are_given_back_and_others_plugged_in(outer: PassthroughHost, inner: str) -> None:
    first, _, third, fourth = outer.nics
    given = outer.kvmctl("pci", "detach", inner, first, outer.nvmes[0], *PATIENT, "-o", "json").json()
    assert given["drivers"] == {first: "e1000e", outer.nvmes[0]: "nvme"}
    outer.wait_inside(inner, r"pci=2 nvme=0 ")
    assert outer.macs[first] in outer.shell("cat /sys/class/net/*/address").split()
    assert outer.kvmctl("pci", "detach", inner, first, check=False).returncode == 3

    outer.kvmctl("pci", "attach", inner, third)
    outer.wait_inside(inner, rf"pci=3 .* nics=.* {outer.macs[third]} ")
    assert outer.drivers([third]) == {"vfio-pci"}

    # Another guest cannot have what this one has, running or saved.
    outer.kvmctl("pci", "attach", inner, fourth, "--config")
    outer.shell(
        "virsh dumpxml inner --inactive | sed '/<uuid>/d; s/<name>inner/<name>other/; /<hostdev/,/<.hostdev>/d' >/tmp/o"
        " && virsh define /tmp/o"
    )
    both = "virsh dumpxml inner; virsh dumpxml inner --inactive; virsh dumpxml other"
    before = outer.shell(both)
    for device, words in ((third, "in use by the running VM inner"), (fourth, "in the definition of VM inner")):
        held = outer.kvmctl("pci", "attach", "other", device, check=False)
        assert held.returncode == 4
        assert words in held.stderr
    assert outer.shell(both) == before

    # A USB stick, plugged in and out.
    (stick,) = [row for row in outer.kvmctl("usb", "list", "-o", "json").json() if row["assignable"]]
    ids = f"{stick['vendor_id']}:{stick['product_id']}"
    outer.kvmctl("usb", "attach", inner, ids)
    outer.wait_inside(inner, r" usb=1 ")
    assert [r["used_by"] for r in outer.kvmctl("usb", "list", "-o", "json").json() if r["address"] == stick["address"]]
    assert outer.kvmctl("usb", "attach", inner, ids, "-o", "json").json()["changed"] is False
    assert outer.kvmctl("usb", "attach", "other", ids, check=False).returncode == 4
    outer.kvmctl("usb", "detach", inner, ids, *PATIENT)
    outer.wait_inside(inner, r" usb=0 ")
    assert outer.kvmctl("usb", "detach", inner, ids, check=False).returncode == 3

    # And all the others are given back when the guest is off.
    outer.kvmctl("destroy", inner)
    assert outer.drivers([first, third]) == {"e1000e"}
    assert outer.drivers(PAIR) == {"e1000"}


def thirty_two_devices_are_taken_and_the_next_is_refused(outer: PassthroughHost, inner: str) -> None:
    have = [address for address, row in outer.pci().items() if row["used_by"] == [inner]]
    rest = [address for address in [*outer.nics[:2], *outer.nvmes] if address not in have][: 32 - len(have)]
    outer.kvmctl("pci", "attach", inner, *rest)
    assert len([address for address, row in outer.pci().items() if row["used_by"] == [inner]]) == 32
    before = outer.shell(f"virsh dumpxml {inner}")
    more = outer.kvmctl("pci", "attach", inner, outer.nvmes[-1], check=False)
    assert more.returncode == 2
    assert "at most 32 PCI devices" in more.stderr
    assert outer.shell(f"virsh dumpxml {inner}") == before


def test_devices_are_passed_on_for_real(outer: PassthroughHost, inner: str) -> None:
    """One boot of the host serves all of it, so it is one test: pytest-xdist spreads tests over its workers."""
    the_list_says_what_can_be_passed_and_why_the_rest_cannot(outer)
    what_cannot_go_is_refused_and_nothing_changes(outer, inner)
    devices_go_into_a_guest(outer, inner)
    devices_are_given_back_and_others_plugged_in(outer, inner)
    thirty_two_devices_are_taken_and_the_next_is_refused(outer, inner)


@pytest.mark.full
def test_thirty_two_devices_are_seen_in_the_guest(outer: PassthroughHost, inner: str) -> None:
    if len([row for row in outer.pci().values() if row["used_by"] == [inner]]) < 32:
        # With pytest-xdist this may be a host of its own.
        thirty_two_devices_are_taken_and_the_next_is_refused(outer, inner)
    have = [address for address, row in outer.pci().items() if row["used_by"] == [inner]]
    assert len(have) == 32
    outer.kvmctl("start", inner, timeout=600)
    outer.wait_inside(inner, r"pci=32 ", patience=1200)
    assert outer.drivers(have) == {"vfio-pci"}
    outer.kvmctl("destroy", inner)
    assert outer.drivers(have) == {"e1000", "e1000e", "nvme"}


@pytest.mark.full
def test_a_mediated_device_a_vsock_and_limits(everything: PassthroughHost) -> None:
    """Real, too, but each start of a guest takes this emulated host minutes."""
    everything.kvmctl(
        *("create", "extra", "--kernel", str(everything.images.kernel), "--initrd", str(everything.images.guest)),
        *("--cmdline", "console=ttyS0 quiet no_timer_check", "--memory", "256M", "--vcpus", "1", "--graphics", "none"),
        *("--net", "none", "--device", f"mdev={everything.mdev}", "--device", "vsock", "-q"),
        timeout=600,
    )
    everything.wait_inside("extra", r" mdev=1 vsock=1 ")
    a_vsock_leads_into_the_guest(everything, "extra")
    a_mediated_device_is_listed_and_taken_out(everything, "extra")
    limits_hold_in_the_hosts_control_groups(everything, "extra")
    everything.kvmctl("delete", "extra", "-y")


@pytest.mark.full
def test_undo_takes_devices_out_of_a_running_guest_and_back(everything: PassthroughHost) -> None:
    everything.kvmctl(
        *("create", "turned", "--kernel", str(everything.images.kernel), "--initrd", str(everything.images.guest)),
        *("--cmdline", "console=ttyS0 quiet no_timer_check", "--memory", "256M", "--vcpus", "1", "--graphics", "none"),
        *("--net", "none", "-q"),
        timeout=600,
    )
    (stick,) = [row for row in everything.kvmctl("usb", "list", "-o", "json").json() if row["assignable"]]
    ids = f"{stick['vendor_id']}:{stick['product_id']}"
    card = everything.nics[0]
    for kind, device, line, name in (
        ("pci", card, r"pci={} ", f"the PCI device {card}"),
        ("usb", ids, r" usb={} ", f"the USB device {ids}"),
    ):
        everything.wait_inside("turned", line.format(0))
        # The second time in the running guest alone.
        for only in ((), ("--live",)):
            everything.kvmctl(kind, "attach", "turned", device, *only)
            everything.wait_inside("turned", line.format(1))
            told = everything.kvmctl("undo", "turned", *PATIENT)
            assert f"{name} is pulled out of the running guest" in told.stderr
            everything.wait_inside("turned", line.format(0))
            assert everything.drivers([card]) == {"e1000e"}
            assert "<hostdev" not in everything.shell("virsh dumpxml turned; virsh dumpxml turned --inactive")
        told = everything.kvmctl("undo", "turned", *PATIENT)
        assert f"{name} is plugged into the running guest" in told.stderr
        everything.wait_inside("turned", line.format(1))
        everything.kvmctl(kind, "detach", "turned", device, *PATIENT)
    everything.kvmctl("delete", "turned", "-y")


@pytest.mark.full
def test_huge_pages_a_host_node_pinning_and_rates_hold(everything: PassthroughHost) -> None:
    everything.shell("echo 80 >/proc/sys/vm/nr_hugepages; ip link add br9 type bridge && ip link set br9 up")
    everything.kvmctl(
        *("create", "huge", "--kernel", str(everything.images.kernel), "--initrd", str(everything.images.guest)),
        *("--cmdline", "console=ttyS0 quiet no_timer_check", "--memory", "128M", "--vcpus", "1", "--graphics", "none"),
        *(
            "--net",
            "bridge:br9,mac=52:54:00:00:99:01,in=1M,out=2M",
            "--hugepages",
            "--numa",
            "1,host=0",
            "--pin",
            "0:1",
            "--memory-limit",
            "hard=1G",
            "-q",
        ),
        timeout=600,
    )
    everything.wait_inside("huge", r"pci=1 .* vsock=0 ")
    free = everything.shell("grep HugePages_Free /proc/meminfo").split()
    assert free == ["HugePages_Free:", str(80 - 128 // 2)]
    group = "/sys/fs/cgroup/machine/qemu-*-huge.libvirt-qemu"
    assert everything.shell(f"cat {group}/memory.max {group}/vcpu0/cpuset.cpus").split() == [str(1 << 30), "1"]
    # QEMU's memory comes from the host's node alone.
    assert "bind:0" in everything.shell("grep -h hugepages /proc/$(cat /run/libvirt/qemu/huge.pid)/numa_maps")
    # The kernel's queue of what goes to the guest.
    queue = "tc class show dev $(ls /sys/class/net/br9/brif)"
    assert "rate 8192Kbit" in everything.shell(queue)
    everything.kvmctl("set", "huge", "--net-limit", "52:54:00:00:99:01,in=2M,out=0")
    assert "rate 16384Kbit" in everything.shell(queue)
    before = everything.shell("virsh dumpxml huge")
    refused = everything.kvmctl(
        "create", "more", "--pxe", "--net", "user", "--memory", "64M", "--hugepages", check=False
    )
    assert (refused.returncode, "HugePages_Free" in refused.stderr) == (7, True), refused.stderr
    assert everything.shell("virsh dumpxml huge") == before and "more" not in everything.shell("virsh list --all")
    everything.kvmctl("delete", "huge", "-y")
    everything.shell("echo 0 >/proc/sys/vm/nr_hugepages; ip link delete br9")
