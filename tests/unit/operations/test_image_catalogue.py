"""The catalogue is complete, and names speak of the right operating system."""

import re
from urllib.parse import urlsplit

import pytest

from kvmctl.errors import NotFound
from kvmctl.model.names import check_new_name
from kvmctl.operations import image_catalogue, image_import
from kvmctl.operations.image_catalogue import os_of


@pytest.mark.parametrize("entry", image_catalogue.entries(), ids=lambda entry: str(entry.name))
def test_entries(entry: image_catalogue.Entry) -> None:
    check_new_name(entry.name, "image")
    assert urlsplit(entry.url).scheme == urlsplit(entry.checksums).scheme == "https"
    assert urlsplit(entry.url).netloc == urlsplit(entry.checksums).netloc
    assert re.search(r"\.(qcow2|img)(\.xz)?$", entry.url)
    assert entry.algorithm in ("sha256", "sha512")
    assert re.fullmatch(r"[a-z][a-z-]*", entry.user)
    assert os_of(entry.name) == entry.os
    for alias in (entry.name, *entry.aliases):
        assert image_catalogue.find(alias.upper()) is entry


def test_no_name_means_two_images() -> None:
    names = [name for entry in image_catalogue.entries() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(NotFound) as error:
        image_catalogue.find("windows-95\x9b")
    assert "debian-12" in (error.value.hint or "")
    assert "\x9b" not in error.value.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("debian-12", "debian12"),
        ("debian-12-genericcloud-amd64", "debian12"),
        ("trixie-dev", "debian13"),
        ("debian-sid", "debiantesting"),
        ("jammy-server-cloudimg-amd64", "ubuntu22.04"),
        ("ubuntu-24.04", "ubuntu24.04"),
        ("Fedora-Cloud-Base-Generic-43-1.6.x86_64", "fedora43"),
        ("AlmaLinux-9-GenericCloud-latest.x86_64", "almalinux9"),
        ("Rocky-9-GenericCloud-Base.latest.x86_64", "rocky9"),
        ("CentOS-Stream-GenericCloud-9-latest.x86_64", "centos-stream9"),
        ("openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud", "opensuse15.6"),
        ("Arch-Linux-x86_64-cloudimg", "archlinux"),
        ("nocloud_alpine-3.22.1-x86_64-bios-cloudinit-r0", "alpinelinux3.22"),
        ("FreeBSD-14.3-RELEASE-amd64-BASIC-CLOUDINIT-ufs", "freebsd14.3"),
        ("archive", None),
        ("debian", None),
        ("my-debian-12", None),
        ("appliance", None),
    ],
)
def test_the_system_a_name_speaks_of(name: str, expected: str | None) -> None:
    assert os_of(name) == expected


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("disk.qcow2", "disk"),
        ("debian-12.img.xz", "debian-12"),
        ("My Appliance (1).vmdk", "My-Appliance-1"),
        ("x" * 300 + ".raw", "x" * 63),
        ("installer.ISO", "installer"),
        ("a.b.c", "a.b.c"),
    ],
)
def test_names_made_of_file_names(file: str, name: str) -> None:
    assert image_import.name_from(file) == name
    check_new_name(name, "image")
