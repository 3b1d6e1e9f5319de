"""Fixtures of the lab: see README.md beside this file."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images, published
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab
from tests.lab.leftovers import World
from tests.lab.moving import Define, Moving, define, leave_lans

_PROGRAMS = ("libvirtd", "qemu-system-x86_64", "dnsmasq", "ip", "nsenter", "unshare", "cpio", "sshd", "busybox")


def _missing() -> str | None:
    """Why the lab cannot run here, or None."""
    if os.geteuid() != 0:
        return "the lab makes network namespaces and mounts: run as root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(missing)} (tests/run.sh installs them)" if missing else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is marked ``lab``; without root or packages it is skipped, saying so.

    Where the lab is expected (CI, tests/run.sh) what is missing is an error instead.
    """
    here = Path(__file__).parent
    # The longest by far comes first: at the end one worker would wait for it, and others' tests behind it.
    items.sort(key=lambda item: item.path.name != "test_passthrough.py")
    mine = [item for item in items if here in item.path.parents]
    reason = _missing() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.lab)
        if reason is not None and not _expected():
            item.add_marker(pytest.mark.skip(reason=reason))


def _expected() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("KVMCTL_TEST_LAB") == "required"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Both hosts, up; one lab a pytest process."""
    reason = _missing()
    if reason is not None:
        pytest.fail(reason)
    with Lab(f"t{os.getpid()}") as up:
        yield up


@pytest.fixture
def host_a(lab: Lab, _tidy: None) -> Host:
    """The lab's first host."""
    return lab.a


@pytest.fixture
def host_b(lab: Lab, _tidy: None) -> Host:
    """The lab's second host."""
    return lab.b


@pytest.fixture
def _tidy(lab: Lab) -> Iterator[None]:
    """After the test whatever it left on the hosts is removed, and libvirtd runs again where it was killed."""
    for host in lab.hosts:
        if host.libvirtd_pid() is None:
            host.start_libvirtd()
    before = [World.of(host) for host in lab.hosts]
    yield
    for host, world in zip(lab.hosts, before, strict=True):
        if host.libvirtd_pid() is None:
            host.start_libvirtd()
        world.restore(host)


@pytest.fixture
def leaves_nothing(lab: Lab, _tidy: None) -> Iterator[None]:
    """Fails the test where it leaves a VM, network, pool, volume or file that was not there before."""
    before = [World.of(host) for host in lab.hosts]
    yield
    left = [
        f"{host.name}: {thing}"
        for host, world in zip(lab.hosts, before, strict=True)
        for thing in World.of(host).beyond(world)
    ]
    assert not left, f"the test left {left}"


@pytest.fixture
def vm_name(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes names for VMs that no other test has: ``vm_name("web")``."""
    count = iter(range(1000))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "m")

    def make(stem: str = "vm") -> str:
        return f"{stem}-{worker}-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10000}-{next(count)}"

    return make


@pytest.fixture(scope="session")
def tiny() -> images.Tiny:
    """The tiny guest's kernel and initramfs."""
    return images.tiny()


@pytest.fixture(scope="session")
def tiny_full() -> images.Tiny:
    """The same with the full kernel and every driver."""
    return images.tiny_full()


@pytest.fixture(scope="session")
def debian() -> Path:
    """A whole Debian 12 as a qcow2 (cloud-init, SSH server, guest agent), which nobody may write to."""
    return images.debian()


@pytest.fixture(scope="module")
def lans_given_back(lab: Lab) -> Iterator[None]:
    """After the module's last test the bridges that its guests moved over are taken away: others want the LAN."""
    yield
    leave_lans(lab)


@pytest.fixture
def moving(
    lab: Lab, host_a: Host, host_b: Host, tiny: images.Tiny, vm_name: Callable[[str], str], lans_given_back: None
) -> Define:
    """``moving(devices=…)`` makes a guest on host a that sends its heartbeat to the LAN, see moving.define()."""

    def make(**options: Any) -> Moving:
        return define(lab, host_a, tiny, vm_name("moving"), **options)

    return make


@pytest.fixture
def console() -> Iterator[Callable[[Host, str], Guest]]:
    """``console(host, name)`` opens the serial console of a running guest; it is closed after the test."""
    opened: list[Guest] = []

    def open_one(host: Host, name: str) -> Guest:
        guest = Guest(host, name).open()
        opened.append(guest)
        return guest

    yield open_one
    for guest in opened:
        guest.close()


@pytest.fixture(scope="module")
def web_and_sibling(lab: Lab, tiny: images.Tiny) -> Iterator[tuple[Guest, Guest]]:
    """``web`` with published ports, and a sibling in the same network, both up, on host a."""
    host = lab.a
    host.start_default_network()
    host.kvmctl(
        "create",
        "web",
        *published.kernel(tiny, "lab.hostname=web"),
        "--net",
        f"nat,mac={published.WEB}",
        "-p",
        "8080:80",
    )
    host.kvmctl(
        "create", "sibling", *published.kernel(tiny, "lab.hostname=sibling"), "--net", f"nat,mac={published.SIBLING}"
    )
    with Guest(host, "web").open() as web, Guest(host, "sibling").open() as sibling:
        web.address()
        sibling.address()
        yield web, sibling
    for name in ("web", "sibling"):
        host.kvmctl("delete", "--yes", name)
    assert published.rules(host) == ""
