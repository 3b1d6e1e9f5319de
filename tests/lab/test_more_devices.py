"""Devices beside disks and cards, by flags of create, in a running guest."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab
from tests.lab.process import run


@pytest.mark.usefixtures("leaves_nothing")
def test_devices_by_flags(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest], tmp_path: Path
) -> None:
    create = [
        *("create", "many", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--net", "none", "-q", "--graphics", "vnc", "--sound"),
        *("--video", "bochs"),
    ]
    devices = ("watchdog,action=pause", "panic", "parallel", "serial", f"share={host_a.shared}:data,readonly")
    (tmp_path / "secret").write_text("opensesa\nmore\n")
    flags = [part for device in devices for part in ("--device", device)]

    unknown = host_a.kvmctl(*create, "--video", "voodoo", "--dry-run", check=False)
    assert (unknown.returncode, "no video 'voodoo'" in unknown.stderr) == (2, True)
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
    assert "<model type='bochs'" in live
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


def test_devices_are_plugged_into_a_running_guest_and_pulled_out(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    host_a.kvmctl(
        *("create", "hot", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--net", "none", "-q", "--graphics", "none"),
    )
    guest = console(host_a, "hot").ready()
    # 4 is the entropy device's id in the virtio specification.
    sources = "cat /sys/bus/virtio/devices/*/device | grep -c 0x0004"
    assert guest.run(sources) == "1"
    for device, name in (("rng", "rng1"), ("serial", "serial1")):
        added = host_a.kvmctl("device", "attach", "hot", device, "-o", "json").json()
        assert added == {"vm": "hot", "kind": device, "device": name, "live": True, "config": True}
    assert guest.run(sources) == "2"
    rows = {row["name"]: row for row in host_a.kvmctl("device", "list", "hot", "-o", "json").json()}
    # A q35 of QEMU 8.1 and later has a watchdog of its own, which libvirt then lists.
    own = {name for name in rows if name.startswith("watchdog")}
    assert set(rows) - own == {"rng0", "rng1", "serial0", "serial1"}
    assert all(row["live"] and row["saved"] for row in rows.values())

    before = host_a.definitions("hot")
    for action, device, code, words in (
        # From libvirt itself: what this machine takes only from its start.
        ("attach", "watchdog", 7, "--config adds it for the next start"),
        ("attach", "parallel", 7, "--config adds it for the next start"),
        ("attach", "panic", 7, "--config adds it for the next start"),
        ("attach", "share=/srv/shared:data", 7, "--config adds it for the next start"),
        ("attach", "share=/srv/shared:data,driver=virtiofs", 7, "without shared memory"),
        ("attach", "mdev=4b20d080-1b54-4048-85b3-a6a62d165c01", 3, "no mediated device"),
        ("attach", "toaster", 2, "no device 'toaster'"),
        ("detach", "rng", 2, "there are several: rng0, rng1"),
        ("detach", "rng7", 3, "has no device 'rng7'"),
        ("detach", "a\x1b[2J", 2, "names no device"),
    ):
        refused = host_a.kvmctl("device", action, "hot", device, check=False)
        assert (refused.returncode, words in refused.stderr) == (code, True), (device, refused.stderr)
        assert host_a.definitions("hot") == before, device

    for name in ("rng1", "serial1"):
        host_a.kvmctl("device", "detach", "hot", name, "--timeout", "2m")
    assert guest.run(sources) == "1"
    if own:
        other = host_a.kvmctl("device", "attach", "hot", "watchdog,action=poweroff", "--config", check=False)
        assert (other.returncode, "a watchdog of its own" in other.stderr) == (2, True), other.stderr
    # All of a machine do the same; its own resets.
    action = "reset" if own else "poweroff"
    host_a.kvmctl("device", "attach", "hot", f"watchdog,action={action}", "--config")
    host_a.kvmctl("device", "attach", "hot", f"share={host_a.shared}:data,driver=virtiofs", "--config")
    shown = {
        row["name"]: (row["live"], row["saved"]) for row in host_a.kvmctl("device", "list", "hot", "-o", "json").json()
    }
    assert shown[f"watchdog{len(own)}"] == shown["share=data"] == (False, True)
    saved = host_a.virsh("dumpxml", "hot", "--inactive").stdout
    assert "<access mode='shared'/>" in saved
    host_a.kvmctl("delete", "hot", "-y")


def test_files_are_shared_with_a_guest(
    lab: Lab, host_a: Host, tiny_full: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    folder = lab.shared / "files"
    (folder / "fs").mkdir(parents=True)
    (folder / "nine").mkdir()
    try:
        (folder / "fs" / "hello").write_text("over virtiofs\n")
        (folder / "nine" / "hello").write_text("over 9p\n")
        host_a.kvmctl(
            *("create", "shares", "--kernel", str(tiny_full.kernel), "--initrd", str(tiny_full.initrd)),
            *("--cmdline", tiny_full.cmdline, "--memory", "256M", "--vcpus", "1", "--net", "none", "-q"),
            *("--graphics", "none", "--device", f"share={host_a.shared}/files/fs:fs,driver=virtiofs"),
            *("--device", f"share={host_a.shared}/files/nine:nine"),
        )
        guest = console(host_a, "shares").ready()
        guest.run("mkdir /fs /nine && mount -t virtiofs fs /fs && mount -t 9p -o trans=virtio nine /nine")
        assert guest.run("cat /fs/hello /nine/hello").split("\n") == ["over virtiofs", "over 9p"]
        guest.run("echo from the guest >/fs/back && umount /fs")
        assert (folder / "fs" / "back").read_text() == "from the guest\n"
        # virtiofs here again: libvirt's hot-plug of it needs a cgroup, which guests of the lab do not have.
        refused = host_a.kvmctl("device", "attach", "shares", "share=/srv:more,driver=virtiofs", check=False)
        assert (refused.returncode, "without a cgroup" in refused.stderr) == (7, True), refused.stderr
        host_a.kvmctl("delete", "shares", "-y")
    finally:
        shutil.rmtree(folder)


# Strictly verified, as by Python 3.13: a certificate authority says in its keyUsage that it signs certificates.
_CERTIFICATES = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca-key.pem -out ca-cert.pem \
    -addext keyUsage=critical,keyCertSign,cRLSign
openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server-key.pem -out request.pem
openssl x509 -req -in request.pem -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -out server-cert.pem
"""
# SPICE's own greeting follows the handshake; what matters is whose certificate it is.
_HANDSHAKE = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.check_hostname = False
context.verify_flags |= ssl.VERIFY_X509_STRICT
with context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[2])), 60)) as connection:
    print(connection.getpeercert()["subject"])
"""


def test_spice_over_tls(host_a: Host, tiny: images.Tiny) -> None:
    create = [
        *("create", "secret", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--net", "none", "-q", "--graphics", "spice"),
        *("--graphics-tls", "--graphics-listen", "0.0.0.0"),
    ]
    refused = host_a.kvmctl(*create, check=False)
    assert (refused.returncode, "TLS is disabled in qemu.conf" in refused.stderr) == (2, True), refused.stderr
    assert host_a.kvmctl("list", "-o", "json").json() == []
    conf, folder = host_a.folder / "etc" / "qemu.conf", host_a.folder / "etc" / "spice"
    before = conf.read_text()
    folder.mkdir()
    try:
        run(["sh", "-ec", _CERTIFICATES], cwd=str(folder))
        conf.write_text(f'{before}spice_tls = 1\nspice_tls_x509_cert_dir = "/etc/libvirt/spice"\n')
        host_a.restart_libvirtd()
        host_a.kvmctl(*create)
        port = re.search(r"tlsPort='(\d+)'", host_a.virsh("dumpxml", "secret").stdout)
        assert port is not None
        seen = host_a.client([sys.executable, "-c", _HANDSHAKE, str(folder / "ca-cert.pem"), port[1]]).stdout
        assert "127.0.0.1" in seen
        host_a.kvmctl("delete", "secret", "-y")
    finally:
        conf.write_text(before)
        shutil.rmtree(folder)
        host_a.restart_libvirtd()


def test_devices_by_a_spec(host_a: Host, tmp_path: Path) -> None:
    spec = {"name": "said", "kernel": "kernel", "networks": "none", "graphics": "none", "start": False}
    devices = ["watchdog,action=pause", f"share={host_a.shared}:data,driver=virtiofs"]
    (tmp_path / "kernel").write_text("a kernel")
    file = tmp_path / "said.yaml"
    file.write_text(json.dumps({**spec, "devices": devices}))
    host_a.kvmctl("apply", "-f", str(file))
    assert sorted(host_a.kvmctl("export", "said", "-o", "json").json()["devices"]) == sorted(devices)
    assert host_a.kvmctl("diff", "-f", str(file)).returncode == 0
    file.write_text(json.dumps({**spec, "devices": devices[:1]}))
    assert host_a.kvmctl("diff", "-f", str(file), check=False).returncode == 1
    refused = host_a.kvmctl("apply", "-f", str(file), check=False)
    assert (refused.returncode, "devices" in refused.stderr) == (7, True), refused.stderr
    host_a.kvmctl("delete", "said", "-y")


def test_wrong_pci_devices_are_one_clear_line_and_the_vm_is_as_before(host_a: Host) -> None:
    host_a.kvmctl("create", "plain", "--pxe", "--net", "user", "--memory", "64M", "--no-start", "-q")
    before = host_a.virsh("dumpxml", "plain").stdout
    thirty_three = tuple(f"{bus:02x}:00.0" for bus in range(1, 34))
    wrong = ("", "x", "01:00", "1:2:3:4", "01:00.8", "01:20.0", "100:00.0", "01:00.0 ", "-1:00.0", "0x01:00.0", "../x")
    cases: list[tuple[tuple[str, ...], int, str]] = [((text,), 2, "is not a PCI address") for text in wrong]
    cases += [
        (("01:00.0,all",), 2, "no option 'all'"),
        (("ff:1f.7",), 3, "the host has no PCI device 0000:ff:1f.7"),
        (("beef:beef",), 3, "the host has no PCI device beef:beef"),
        (thirty_three, 2, "at most 32 PCI devices of the host: 33 were asked for"),
    ]
    for devices, code, words in cases:
        refused = host_a.kvmctl("pci", "attach", "plain", "--", *devices, check=False)
        assert (refused.returncode, words in refused.stderr) == (code, True), (devices, refused.stderr)
        assert refused.stderr.startswith("error: ") and len(refused.stderr.splitlines()) <= 2
        flags = [part for device in devices for part in ("--pci", device)]
        made = host_a.kvmctl("create", "none", "--pxe", "--net", "user", "--memory", "64M", *flags, check=False)
        assert (made.returncode, words in made.stderr) == (code, True), (devices, made.stderr)
    assert host_a.virsh("dumpxml", "plain").stdout == before
    assert [row["name"] for row in host_a.kvmctl("list", "-o", "json").json()] == ["plain"]
    host_a.kvmctl("delete", "plain", "-y")
