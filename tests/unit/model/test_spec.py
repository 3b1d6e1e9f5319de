"""A spec as a mapping: every key, and what it refuses."""

from typing import Any

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model.spec import KEYS, Spec, beside, from_mapping, size_text, to_mapping
from kvmctl.model.units import parse_size

FULL: dict[str, Any] = {
    "name": "web",
    "title": "Web",
    "description": "two\nlines",
    "image": "debian-12",
    "cdrom": "/a.iso",
    "kernel": "/k",
    "initrd": "/i",
    "cmdline": "a=b",
    "import": "/d.qcow2",
    "pxe": True,
    "vcpus": {"count": 2, "max": 4},
    "memory": {"size": "2G", "max": "4G"},
    "cpu": "maximum",
    "accel": "tcg",
    "machine": "q35",
    "arch": "x86_64",
    "disks": ["10G", "/d,bus=scsi"],
    "networks": ["nat", "user,model=e1000"],
    "nic_model": "e1000",
    "publish": ["8080:80"],
    "pci": ["0000:01:00.0"],
    "firmware": "uefi",
    "tpm": True,
    "profile": "windows",
    "os": "win11",
    "graphics": "spice",
    "graphics_listen": "0.0.0.0",
    "graphics_tls": True,
    "graphics_password_file": "/g",
    "video": "qxl",
    "sound": False,
    "devices": ["watchdog", "share=/srv:data"],
    "user": "admin",
    "ssh_keys": ["ssh-ed25519 AAAA me"],
    "password_file": "/p",
    "user_data": "/u",
    "hostname": "web",
    "seed": True,
    "autostart": True,
    "autostart_order": 2,
    "autostart_delay": 30,
    "pins": ["0:0-1", "1:3"],
    "cpu_shares": 512,
    "cpu_limit": 50,
    "memory_limit": "soft=2G,hard=6G",
    "hugepages": True,
    "numa": "2,host=0",
    "boot": ["network", "disk"],
    "start": False,
}


def test_every_key_goes_there_and_back() -> None:
    assert set(FULL) == set(KEYS)
    assert to_mapping(from_mapping(FULL, "x")) == FULL


@pytest.mark.parametrize(
    ("mapping", "spec"),
    [
        ({"vcpus": 2}, Spec(vcpus=(2, None))),
        ({"vcpus": "2"}, Spec(vcpus=(2, None))),
        ({"vcpus": "2,max=4"}, Spec(vcpus=(2, 4))),
        ({"memory": 512}, Spec(memory=(512 * 2**20, None))),
        ({"memory": "1G,max=2G"}, Spec(memory=(2**30, 2**31))),
        ({"disks": 10}, Spec(disks=("10",))),
        ({"disks": "10G"}, Spec(disks=("10G",))),
        ({"networks": []}, Spec(networks=())),
        ({"boot": "cdrom,disk"}, Spec(boot=("cdrom", "disk"))),
        ({"numa": 2}, Spec(numa="2")),
        ({"autostart_delay": "2m"}, Spec(autostart_delay=120)),
        ({"memory_limit": {"soft": "2G", "hard": "6G"}}, Spec(memory_limit="soft=2G,hard=6G")),
        ({"pins": []}, Spec(pins=())),
        ({"title": None}, Spec()),
        ({"title": ""}, Spec(title="")),
        ({"description": "text\n"}, Spec(description="text")),
    ],
)
def test_shapes(mapping: dict[str, Any], spec: Spec) -> None:
    assert from_mapping(mapping, "x") == spec


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"nmae": "a"}, "no key 'nmae'"),
        ({1: "a"}, "no key '1'"),
        ({"name": "../x"}, "name: '../x' cannot be"),
        ({"name": 12}, "name: the number 12 is not text"),
        ({"name": "12"}, "all digits"),
        ({"title": "a\x1bb"}, "title: "),
        ({"title": "a\nb"}, "title: "),
        ({"title": ["a"]}, "title: "),
        ({"description": "a\u009bb"}, "control characters"),
        ({"image": "a\x1b"}, "image: "),
        ({"image": ""}, "image: "),
        ({"image": True}, "yes or no is not text"),
        ({"pxe": "yes"}, "neither true nor false"),
        ({"start": 1}, "neither true nor false"),
        ({"vcpus": 0}, "vcpus: "),
        ({"vcpus": True}, "vcpus: "),
        ({"vcpus": 1.5}, "vcpus: "),
        ({"vcpus": "4,max=2"}, "more than its own maximum"),
        ({"vcpus": "4,most=5"}, "neither N nor N,max=M"),
        ({"vcpus": {"max": 4}}, "vcpus: write"),
        ({"vcpus": [1]}, "vcpus: "),
        ({"memory": "much"}, "is not a size"),
        ({"memory": -1}, "is not a size"),
        ({"memory": 1.5}, "is not a size"),
        ({"memory": {"size": "1G", "most": 2}}, "memory: write"),
        ({"disks": ["10G,bus=nonsense"]}, "bus="),
        ({"disks": [True]}, "disks: "),
        ({"disks": {"size": "1G"}}, "disks: "),
        ({"networks": ["none", "nat"]}, "none"),
        ({"networks": ["wifi"]}, "networks: "),
        ({"publish": [1342]}, "put it in quotes"),
        ({"publish": ["8080:80", "8080:81"]}, "same port"),
        ({"publish": ["99999:1"]}, "port"),
        ({"pci": ["nonsense"]}, "PCI address"),
        ({"firmware": "coreboot"}, "none of bios"),
        ({"graphics": []}, "none of none, vnc"),
        ({"devices": ["toaster"]}, "no device 'toaster'"),
        ({"accel": {}}, "none of auto"),
    ],
)
def test_what_is_refused(mapping: dict[Any, Any], said: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        from_mapping(mapping, "f.yaml")
    problem = caught.value
    assert said in problem.message + (problem.hint or "")
    assert problem.message.startswith("f.yaml: ")
    assert problem.message.isprintable()


def test_an_unknown_key_is_told_the_nearest() -> None:
    with pytest.raises(UsageProblem) as caught:
        from_mapping({"ssh-key": "x"}, "f")
    assert "ssh_keys" in (caught.value.hint or "")


def test_relative_paths_begin_beside_the_file() -> None:
    spec = from_mapping(
        {
            "image": "./a.qcow2",
            "kernel": "vmlinuz",
            "initrd": "../initrd",
            "cdrom": "~/a.iso",
            "import": "/abs",
            "disks": ["10G", "data.img,bus=scsi", "./b.img"],
            "ssh_keys": ["ssh-ed25519 AAAA", "id.pub"],
            "password_file": "-",
        },
        "f",
    )
    seen = beside(spec, "/specs", "/home/me")
    assert seen.image == "/specs/a.qcow2"
    assert (seen.kernel, seen.initrd, seen.cdrom, seen.import_) == (
        "/specs/vmlinuz",
        "/initrd",
        "/home/me/a.iso",
        "/abs",
    )
    assert seen.disks == ("10G", "/specs/data.img,bus=scsi", "/specs/b.img")
    assert seen.ssh_keys == ("ssh-ed25519 AAAA", "/specs/id.pub")
    assert seen.password_file == "-"
    assert beside(Spec(image="debian-12"), "/specs", "/").image == "debian-12"
    assert beside(Spec(image="https://x/y"), "/specs", "/").image == "https://x/y"


@pytest.mark.parametrize("size", [1, 1023, 1024, 2**20, 3 * 2**20, 2**30, 5 * 2**30, 2**30 + 512])
def test_a_size_reads_back_exactly(size: int) -> None:
    assert parse_size(size_text(size)) == size
