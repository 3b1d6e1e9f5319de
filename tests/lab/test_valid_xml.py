"""Every XML that kvmctl hands to libvirt is valid for libvirt's own schemas: caught on its way there."""

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree

from kvmctl.cli.root import run
from tests.lab import images
from tests.lab.hosts import Host

Named = Callable[[str], str]
SCHEMAS = Path("/usr/share/libvirt/schemas")
# Which schema the first argument of each call is meant for; "device" is a part of a domain.
CALLS: tuple[tuple[Any, str, str], ...] = (
    (libvirt.virConnect, "defineXML", "domain"),
    (libvirt.virConnect, "defineXMLFlags", "domain"),
    (libvirt.virConnect, "createXML", "domain"),
    (libvirt.virConnect, "networkDefineXML", "network"),
    (libvirt.virConnect, "storagePoolDefineXML", "storagepool"),
    (libvirt.virStoragePool, "createXML", "storagevol"),
    (libvirt.virStoragePool, "createXMLFrom", "storagevol"),
    (libvirt.virDomain, "snapshotCreateXML", "domainsnapshot"),
    (libvirt.virDomain, "attachDeviceFlags", "device"),
    (libvirt.virDomain, "detachDeviceFlags", "device"),
    (libvirt.virDomain, "updateDeviceFlags", "device"),
)


@cache
def schema(name: str) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMAS / f"{name}.rng"))


def complaint(kind: str, text: str) -> str | None:
    """What the schema says against ``text``, or None."""
    tree = etree.fromstring(text)
    if kind == "device":
        domain = etree.fromstring(
            "<domain type='qemu'><name>x</name><memory>1</memory><os><type>hvm</type></os><devices/></domain>"
        )
        domain[-1].append(tree)
        kind, tree = "domain", domain
    rules = schema(kind)
    # Read anew: lxml does not see every error in a tree that was put together.
    return None if rules.validate(etree.fromstring(etree.tostring(tree))) else f"{kind}: {rules.error_log}\n{text}"


class Caught:
    """What went to libvirt: how often each call, and what was wrong with it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.wrong: list[str] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, name, kind in CALLS:
            monkeypatch.setattr(owner, name, self._through(getattr(owner, name), name, kind))

    def _through(self, real: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
        def call(this: Any, text: str, *rest: Any, **named: Any) -> Any:
            self.calls[name] += 1
            found = complaint(kind, text)
            if found is not None:
                self.wrong.append(f"{name}: {found}")
            return real(this, text, *rest, **named)

        return call


@pytest.fixture
def caught(host_a: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caught]:
    """kvmctl in this process, on host a; its SIGTERM handler is put back after."""
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", host_a.uri)
    before = signal.getsignal(signal.SIGTERM)
    found = Caught()
    found.watch(monkeypatch)
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def kvmctl(caught: Caught, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run kvmctl here; it must work, and what it gave to libvirt must have been valid."""

    def call(*words: str) -> str:
        code = run(list(words))
        told = capsys.readouterr()
        assert code == 0, (words, told.err)
        assert caught.wrong == [], words
        return told.out.strip()

    return call


def test_the_check_would_notice() -> None:
    assert complaint("network", "<network><name>a</name><nonsense/></network>") is not None
    assert complaint("device", "<disk type='file'><target bus='virtio'/></disk>") is not None


@pytest.mark.parametrize("profile", ["linux", "windows", "generic"])
@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-secure"])
def test_guests(
    kvmctl: Callable[..., str], caught: Caught, tiny: images.Tiny, vm_name: Named, profile: str, firmware: str
) -> None:
    name = vm_name("valid")
    boot = ("--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", "a='1' b=<2>&")
    kvmctl(
        *("create", name, *boot, "--profile", profile, "--firmware", firmware, "--no-start"),
        *(
            "--disk",
            "64M",
            "--disk",
            "64M,bus=scsi,cache=none,discard=unmap,serial=a",
            "--disk",
            "64M,bus=sata,format=raw",
        ),
        *("--vcpus", "1,max=3", "--memory", "256M,max=512M", "--cpu", "qemu64", "--sound", "--graphics", "spice"),
        *("--net", "user,model=e1000", "--net", "nat", "-p", "8080:80", "--user", "me", "--hostname", "h"),
        *("--title", "a <b> & 'c'", "--description", "two\nlines\u00e9"),
    )
    kvmctl("delete", name, "--yes")
    assert caught.calls["defineXML"] >= 2
    assert caught.calls["createXML"] >= 3


def test_what_is_done_to_a_guest(
    kvmctl: Callable[..., str], caught: Caught, tiny: images.Tiny, vm_name: Named, host_a: Host, tmp_path: Path
) -> None:
    name = vm_name("valid")
    iso = host_a.folder / "lib" / "images" / f"{name}.iso"
    iso.parent.mkdir(parents=True, exist_ok=True)
    iso.write_bytes(bytes(16 * 2048) + b"\x01CD001\x01" + bytes(2041))
    inside = f"/var/lib/libvirt/images/{iso.name}"
    boot = ("--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline)
    kvmctl("create", name, *boot, "--memory", "256M", "--vcpus", "1", "--net", "user", "--disk", "64M", "--no-start")
    for command in (
        ("nic", "attach", name, "user,mac=52:54:00:fa:ce:02"),
        ("nic", "link", name, "52:54:00:fa:ce:02", "down"),
        ("nic", "detach", name, "52:54:00:fa:ce:02"),
        ("disk", "attach", name, "64M,bus=scsi"),
        ("disk", "resize", name, "sda", "80M"),
        ("disk", "detach", name, "sda"),
        ("disk", "attach", name, f"{inside},device=cdrom"),
        ("disk", "eject", name),
        ("disk", "insert", name, inside),
        ("disk", "eject", name),
        ("snapshot", "create", name, "inside", "--description", "a <b> & c"),
        ("snapshot", "revert", name, "inside"),
        ("snapshot", "delete", name, "inside", "before-revert", "--yes"),
        ("clone", name, f"{name}-linked"),
        ("clone", name, f"{name}-full", "--full"),
        ("rename", f"{name}-full", f"{name}-other"),
        ("delete", f"{name}-linked", f"{name}-other", "--yes"),
        ("snapshot", "create", name, "outside", "--external"),
        ("snapshot", "delete", name, "outside", "--yes"),
        ("protect", name),
        ("unprotect", name),
        ("delete", name, "--yes"),
    ):
        kvmctl(*command)
    for call in ("attachDeviceFlags", "detachDeviceFlags", "updateDeviceFlags", "snapshotCreateXML"):
        assert caught.calls[call] > 0, f"nothing called {call}"


def test_networks_pools_and_images(
    kvmctl: Callable[..., str], caught: Caught, host_a: Host, tmp_path: Path, vm_name: Named
) -> None:
    host_a.net.ip("link", "add", "valid0", "type", "veth", "peer", "name", "valid1")
    for number, more in enumerate(
        (
            ("--subnet", "10.91.0.0/24", "--reserve", "52:54:00:00:00:09=10.91.0.9,nine", "--domain", "lab.example"),
            ("--subnet", "10.92.0.0/24", "--subnet", "fd00:92::/64"),
            ("--mode", "isolated", "--subnet", "10.93.0.0/24", "--dhcp", "none"),
            ("--mode", "open", "--subnet", "10.94.0.0/24", "--dhcp", "10.94.0.10-10.94.0.20"),
            ("--mode", "route", "--subnet", "10.95.0.0/24"),
            *(
                ("--mode", "macvtap", "--dev", "valid0", "--macvtap-mode", mode)
                for mode in ("bridge", "vepa", "private")
            ),
        )
    ):
        name = f"{vm_name('net')}-{number}"
        kvmctl("net", "create", name, *more, "--no-start", "--no-autostart")
        kvmctl("net", "delete", name)
    disk = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
    kvmctl("image", "import", str(disk), "--name", "valid-image")
    kvmctl("image", "delete", "valid-image", "--yes")
    host_a.net.ip("link", "del", "valid0")
    assert caught.calls["networkDefineXML"] >= 8
    assert caught.calls["createXML"] >= 1
