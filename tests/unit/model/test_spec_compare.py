"""What of a VM is not as its spec says: each key by itself, on a domain that create would make."""

from dataclasses import replace
from typing import Any

import pytest

from kvmctl.model import spec_seen, xml
from kvmctl.model.domain import build
from kvmctl.model.extras import parse_device
from kvmctl.model.spec import from_mapping
from kvmctl.model.spec_compare import Difference, compare, disk_text, nic_text
from kvmctl.model.spec_seen import Seen
from tests.unit.model.test_domain import spec as domain_spec


def seen(profile: Any = "linux") -> Seen:
    found = spec_seen.read(xml.parse(xml.text(build(domain_spec(profile)))))
    disks = tuple(replace(disk, capacity_bytes=10 * 2**30) for disk in found.disks)
    return replace(found, disks=disks)


def found(mapping: dict[str, Any], now: Seen | None = None) -> tuple[Difference, ...]:
    return compare(from_mapping(mapping, "x"), now or seen())


SAME: list[dict[str, Any]] = [
    {},
    {"name": "web", "title": "a <title> & more", "description": "two\nlines\n"},
    {"vcpus": 2},
    {"vcpus": "2,max=4"},
    {"memory": "2G"},
    {"memory": "2G,max=4G"},
    {"image": "debian-12"},
    {"image": "/some/path.qcow2"},
    {"kernel": "/boot/vmlinuz", "initrd": "/boot/initrd", "cmdline": "a=1 b='2'"},
    {"cpu": "maximum", "accel": "tcg", "machine": "q35", "arch": "x86_64"},
    {"accel": "auto", "profile": "generic"},
    {"firmware": "bios", "tpm": True, "graphics": "spice", "sound": True},
    {"graphics_listen": "127.0.0.1", "graphics_tls": False, "graphics_password_file": "/not/read"},
    {"publish": ["127.0.0.1:53:53/udp", "8080:80"]},
    {"networks": ["user", "nat", "network:lan", "bridge:br0", "macvtap:eth0:private"]},
    {
        "networks": [
            "user",
            "nat,model=e1000",
            "network:lan,mac=52:54:00:12:34:56",
            "bridge:br0",
            "macvtap:eth0:private",
        ]
    },
    # libvirt sorts disks by bus: their order says nothing.
    {"image": "debian-12", "disks": ["10G", "/dev/vg/a,bus=scsi,cache=none", "10G,bus=sata,readonly"]},
    {"image": "debian-12", "disks": ["10G,bus=sata,readonly", "/dev/vg/a", "10G"]},
    {"image": "debian-12", "disks": ["/dev/vg/a", "10G,readonly"]},
    {"pci": ["01:00.0"]},
    {"devices": []},
    {"pci": ["8086:10d3"]},
    {"pins": [], "cpu_limit": 0, "hugepages": False, "numa": 0, "memory_limit": "hard=0", "autostart_order": 0},
    {"autostart": False, "start": False, "pxe": False},
    {"ssh_keys": ["ssh-ed25519 AAAA"], "hostname": "other", "user_data": "/x"},
]


@pytest.mark.parametrize("mapping", SAME)
def test_what_is_the_same(mapping: dict[str, Any]) -> None:
    assert found(mapping) == ()


CHANGED: list[tuple[dict[str, Any], str]] = [
    ({"title": "other"}, "title"),
    ({"title": ""}, "title"),
    ({"description": ""}, "description"),
    ({"vcpus": 3}, "vcpus"),
    ({"vcpus": "2,max=8"}, "vcpus"),
    ({"memory": "3G"}, "memory"),
    ({"memory": "2G,max=3G"}, "memory"),
    ({"publish": []}, "publish"),
    ({"publish": ["8080:80"]}, "publish"),
    ({"publish": ["127.0.0.1:8080:80", "127.0.0.1:53:53/udp"]}, "publish"),
    ({"autostart": True}, "autostart"),
    ({"autostart_order": 3}, "autostart_order"),
    ({"pins": ["0:1"]}, "pins"),
    ({"cpu_shares": 512}, "cpu_shares"),
    ({"cpu_limit": 50}, "cpu_limit"),
    ({"memory_limit": "soft=1G"}, "memory_limit"),
    ({"hugepages": True}, "hugepages"),
    ({"numa": 2}, "numa"),
    ({"boot": ["network"]}, "boot"),
    ({"start": True}, "start"),
]
ANEW: list[tuple[dict[str, Any], str]] = [
    ({"image": "debian-13"}, "image"),
    ({"kernel": "/boot/other"}, "kernel"),
    ({"cmdline": "c"}, "cmdline"),
    ({"cpu": "qemu64"}, "cpu"),
    ({"accel": "kvm"}, "accel"),
    ({"machine": "pc"}, "machine"),
    ({"arch": "aarch64"}, "arch"),
    ({"firmware": "uefi"}, "firmware"),
    ({"tpm": False}, "tpm"),
    ({"graphics": "none"}, "graphics"),
    ({"graphics_listen": "0.0.0.0"}, "graphics_listen"),
    ({"graphics_tls": True}, "graphics_tls"),
    ({"sound": False}, "sound"),
    ({"video": "cirrus"}, "video"),
    ({"devices": ["vsock"]}, "devices"),
    ({"profile": "windows"}, "profile"),
    ({"pxe": True}, "pxe"),
    ({"cdrom": "/a.iso"}, "cdrom"),
    ({"pci": []}, "pci"),
    ({"pci": ["02:00.0"]}, "pci"),
    ({"pci": ["01:00.0", "02:00.0"]}, "pci"),
    ({"networks": []}, "networks"),
    ({"networks": ["nat"]}, "networks"),
    ({"networks": ["user", "nat:other", "network:lan", "bridge:br0", "macvtap:eth0:private"]}, "networks"),
    ({"networks": ["user", "nat", "network:lan", "bridge:br0", "macvtap:eth0:vepa"]}, "networks"),
    ({"image": "debian-12", "disks": ["10G"]}, "disks"),
    ({"image": "debian-12", "disks": ["10G", "/dev/vg/a,iops=300", "10G,readonly"]}, "disks"),
    ({"networks": ["user", "nat,in=1M", "network:lan", "bridge:br0", "macvtap:eth0:private"]}, "networks"),
    ({"image": "debian-12", "disks": ["11G", "/dev/vg/a", "10G,readonly"]}, "disks"),
    ({"image": "debian-12", "disks": ["10G", "/dev/vg/b", "10G,readonly"]}, "disks"),
    ({"image": "debian-12", "disks": ["10G,bus=scsi", "/dev/vg/a", "10G,readonly"]}, "disks"),
]


@pytest.mark.parametrize(
    ("mapping", "key", "how"),
    [(m, key, "change") for m, key in CHANGED] + [(m, key, "recreate") for m, key in ANEW],
)
def test_what_is_not(mapping: dict[str, Any], key: str, how: str) -> None:
    differences = found(mapping)
    assert [(d.key, d.how) for d in differences] == [(key, how)]
    assert differences[0].now != differences[0].wanted


def test_a_newer_alias_of_the_machine_is_the_same() -> None:
    tree = build(domain_spec(machine="pc-q35-7.2"))
    now = spec_seen.read(xml.parse(xml.text(tree)))
    assert found({"machine": "q35"}, now) == ()
    assert found({"machine": "pc-q35-7.2"}, now) == ()
    assert [d.key for d in found({"machine": "pc-q35-7.1"}, now)] == ["machine"]


def test_windows_is_seen() -> None:
    assert found({"profile": "windows"}, seen("windows")) == ()
    assert [d.key for d in found({"profile": "linux"}, seen("windows"))] == ["profile"]


def test_what_export_writes_is_the_same() -> None:
    now = seen()
    texts = [disk_text(disk) for disk in now.disks]
    assert found({"disks": texts, "networks": [nic_text(nic) for nic in now.nics]}, now) == ()


def test_what_no_spec_can_say_is_named() -> None:
    tree = build(domain_spec())
    xml.add(tree, "iothreads", 2)
    xml.add(next(tree.iter("devices")), "shmem", name="x")
    beyond = spec_seen.read(xml.parse(xml.text(tree))).beyond
    assert beyond == ("<iothreads>", "the device <shmem>")
    assert seen().beyond == ()


DEVICES = ["watchdog,action=pause", "vsock", "serial", "share=/srv:data,driver=virtiofs", "share=/old:old,readonly"]


def test_devices_are_compared_and_told_again() -> None:
    extras_ = tuple(map(parse_device, DEVICES))
    now = spec_seen.read(xml.parse(xml.text(build(domain_spec("linux")._replace(extras=extras_)))))
    assert sorted(now.devices) == sorted(DEVICES)
    assert now.beyond == ()
    assert found({"devices": DEVICES[::-1]}, now) == ()
    assert [difference.key for difference in found({"devices": DEVICES[1:]}, now)] == ["devices"]


def test_a_device_that_no_spec_can_say_is_named() -> None:
    tree = build(domain_spec("linux"))
    next(tree.iter("devices")).append(xml.parse("<parallel type='null'/>"))
    now = spec_seen.read(xml.parse(xml.text(tree)))
    assert (now.devices, now.beyond) == ((), ("the device parallel0",))
