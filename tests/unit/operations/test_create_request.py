from pathlib import Path
from typing import Any

import pytest

from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.model.nic import UserNic
from kvmctl.operations import create_request
from kvmctl.operations.create_options import from_options


def checked(name: str = "web", **given: Any) -> create_request.Request:
    request = from_options(name, given)
    create_request.check(request)
    return request


def test_says_nothing_that_was_not_said() -> None:
    request = checked(kernel="/boot/vmlinuz")
    assert request.nics is None
    assert request.accel == "auto"
    assert request.firmware is None
    assert request.start


def test_no_network_is_an_answer() -> None:
    assert checked(kernel="k", nets=("none",)).nics == ()
    assert checked(kernel="k", nets=("user",)).nics == (UserNic(),)


def test_the_users_own_key_goes_into_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA me\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked(image="debian-12").ssh_keys == ("ssh-ed25519 AAAA me",)
    assert checked(kernel="k").ssh_keys == ()
    assert checked(image="debian-12", seed=False).ssh_keys == ()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"image": "a", "cdrom": "b"},
        {"image": "a", "import_": "b"},
        {"cdrom": "a", "initrd": "b"},
        {"cdrom": "a", "cmdline": "b"},
        {"kernel": "k", "cmdline": "a\nb"},
        {"kernel": "k", "vcpus": (4, 2)},
        {"kernel": "k", "memory": (2**30, 2**29)},
        {"kernel": "k", "memory": (1024, None)},
        {"kernel": "k", "nets": ("none", "user")},
        {"kernel": "k", "nets": ("none",), "ports": ("80:80",)},
        {"pxe": True, "nets": ("none",)},
        {"kernel": "k", "nets": ("carrier-pigeon",)},
        {"kernel": "k", "nets": ("user,mac=52:54:00:00:00:01", "nat,mac=52:54:00:00:00:01")},
        {"kernel": "k", "nic_model": "carrier"},
        {"kernel": "k", "ports": ("80",)},
        {"kernel": "k", "disks": ("lots",), "pci": ("nowhere",)},
        {"kernel": "k", "pci": tuple(f"{n:02x}:00.0" for n in range(33))},
        {"kernel": "k", "title": "\x1b[2J"},
        {"kernel": "k", "title": "x" * 257},
        {"kernel": "k", "description": "\u202e"},
        {"kernel": "k", "user": "A B"},
        {"kernel": "k", "hostname": "_"},
    ],
)
def test_refuses(given: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        checked(**given)


@pytest.mark.parametrize(
    "name",
    ["../x", "-rf", "a b", "x" * 300, "a\u202eb", "a\u009bb", "123", "7a1a2c0e-7f0e-4c39-9f5c-2c8a8f4f0a11", "", "a/b"],
)
def test_refuses_names(name: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        checked(name, kernel="k")
    assert caught.value.message.isascii()


def test_user_data_excludes_what_it_would_override(tmp_path: Path) -> None:
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\n")
    with pytest.raises(KvmctlError, match="whole user-data"):
        checked(image="a", user_data=str(data), user="demo")
