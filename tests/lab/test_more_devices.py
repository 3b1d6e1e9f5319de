"""Devices beside disks and cards, by flags of create, in a running guest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host


@pytest.mark.usefixtures("leaves_nothing")
def test_devices_by_flags(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest], tmp_path: Path
) -> None:
    create = [
        *("create", "many", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--net", "none", "-q", "--graphics", "vnc", "--sound"),
    ]
    devices = ("watchdog,action=pause", "panic", "parallel", "serial", f"share={host_a.shared}:data,readonly")
    (tmp_path / "secret").write_text("opensesa\nmore\n")
    flags = [part for device in devices for part in ("--device", device)]

    open_to_all = host_a.kvmctl(*create, "--graphics-listen", "0.0.0.0", "--dry-run", check=False)
    assert open_to_all.returncode == 2
    assert "could be used by anybody" in open_to_all.stderr
    guarded = ["--graphics-listen", "0.0.0.0", "--graphics-password-file", str(tmp_path / "secret")]
    planned = host_a.kvmctl(*create, *flags, *guarded, "--dry-run").stdout
    assert "opensesa" not in planned
    host_a.kvmctl(*create, *flags, *guarded)
    live = host_a.virsh("dumpxml", "many", "--security-info").stdout
    for wanted in ("<watchdog model='i6300esb' action='pause'", "<panic model='isa'", "<parallel type='pty'"):
        assert wanted in live
    for wanted in ("<filesystem type='mount'", "listen='0.0.0.0'", "passwd='opensesa'", "<sound model='ich9'"):
        assert wanted in live
    guest = console(host_a, "many").ready()
    # 9 is the 9P transport's id in the virtio specification; 25ab is the i6300ESB's PCI id.
    assert guest.run("cat /sys/bus/virtio/devices/*/device | grep -c 0x0009") == "1"
    assert guest.run("cat /sys/bus/pci/devices/*/device | grep -c 0x25ab") == "1"
    host_a.kvmctl("delete", "many", "-y")


def test_another_hosts_devices_are_listed_over_the_network(host_a: Host, host_b: Host) -> None:
    there = host_a.kvmctl("-c", host_b.tcp_uri, "pci", "list", "-o", "json").json()
    here = host_b.kvmctl("pci", "list", "-o", "json").json()
    keys = ("address", "class", "driver", "iommu_group", "group_members", "vendor_id", "product_id", "used_by")
    assert [[row[key] for key in keys] for row in there] == [[row[key] for key in keys] for row in here]
    assert there
    assert host_a.kvmctl("-c", host_b.tcp_uri, "usb", "list", "-o", "json").json() == []
