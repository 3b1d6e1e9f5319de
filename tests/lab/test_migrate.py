"""Moving guests between the lab's hosts."""

import json
from typing import Any

import libvirt
import pytest

from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.images import Tiny
from tests.lab.lab import Lab
from tests.lab.moving import BRIDGE, Define, Moving, Running, Witness, define, disk, images, until_sending


def check_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    found = [check for check in row["checks"] if check["name"] == name]
    assert found, f"no check {name} in {[c['name'] for c in row['checks']]}"
    return dict(found[0])


def test_moves_there_and_back(moving: Define, lab: Lab, host_a: Host, host_b: Host) -> None:
    guest = moving()
    host_a.conn.lookupByName(guest.name).setAutostart(1)
    host_a.kvmctl("protect", guest.name)
    host_a.virsh(
        "metadata",
        guest.name,
        "urn:example:mine",
        "--key",
        "mine",
        "--set",
        "<note>keep me</note>",
        "--live",
        "--config",
    )
    with Guest(host_a, guest.name) as console:
        console.run("echo kept >/tmp/proof")

    checked = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--check", "-o", "json").json()
    assert checked["verdict"] in ("ok", "warn")
    assert all(set(check) == {"name", "level", "detail", "hint"} for check in checked["checks"])
    guest.assert_one(host_a)

    for source, there in ((host_a, host_b), (host_b, host_a)):
        witness = Witness(lab, guest.address)
        row = source.kvmctl("migrate", guest.name, there.tcp_uri, "-o", "json").json()
        gap = witness.gaps()[0]
        guest.assert_one(there)
        assert row["name"] == guest.name and row["state"] == "running" and row["destination"] == there.tcp_uri
        assert row["max_downtime_ms"] == 30 and row["strategy"] in ("pre-copy", "auto-converge")
        assert row["transferred_bytes"] > 2**20 and row["iterations"] >= 1 and row["total_seconds"] > 0
        assert row["downtime_ms"] > 0 and gap > 0
        assert row["within_max_downtime"] is (row["downtime_ms"] <= 30)
        assert row["warnings"] == []
        assert there.conn.lookupByName(guest.name).autostart() == 1
        text = there.virsh("dumpxml", guest.name, "--inactive").stdout
        assert "keep me" in text and "urn:kvmctl:migration" not in text
        assert guest.name not in source.virsh("list", "--all", "--name").stdout
        assert there.kvmctl("delete", guest.name, "-y", check=False).returncode == 7
    assert guest.alive().run("cat /tmp/proof") == "kept"


def test_a_paused_guest_stays_paused(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    host_a.virsh("suspend", guest.name)
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "-o", "json").json()
    assert row["state"] == "paused" and row["downtime_ms"] is None
    guest.assert_one(host_b, "paused")
    host_b.virsh("resume", guest.name)
    guest.assert_one(host_b)


def test_through_ssh_kvmctl_stands_between(moving: Define, host_a: Host, host_b: Host) -> None:
    """The source's libvirtd has no key for the destination; the user has."""
    host_b.start_sshd()
    guest = moving()
    row = host_a.kvmctl("migrate", guest.name, host_b.ssh_uri, "-o", "json").json()
    assert row["destination"] == host_b.ssh_uri
    guest.assert_one(host_b)


@pytest.mark.usefixtures("leaves_nothing")
def test_offline_takes_the_disk_along(moving: Define, host_a: Host, host_b: Host) -> None:
    pool_a, pool_b = images(host_a), images(host_b)
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", "/var/lib/libvirt/images/off.qcow2", "16M"])
    host_a.run(["qemu-io", "-c", "write -P 7 1M 64k", "/var/lib/libvirt/images/off.qcow2"])
    guest = moving(devices=disk("/var/lib/libvirt/images/off.qcow2"), start=False)
    refused = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--check", "-o", "json", check=False)
    assert refused.returncode == 7 and "--offline" in check_of(refused.json(), "state")["hint"]
    refused = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--offline", check=False)
    assert refused.returncode == 7 and "--copy-storage" in refused.stderr
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--offline", "--copy-storage", "-o", "json").json()
    assert row["strategy"] == "offline" and row["state"] == "shutoff" and row["downtime_ms"] is None
    assert (guest.state(host_a), guest.state(host_b)) == ("absent", "shut off")
    assert (pool_b / "off.qcow2").read_bytes() == (pool_a / "off.qcow2").read_bytes()
    host_b.virsh("undefine", guest.name)
    host_a.run(["rm", "/var/lib/libvirt/images/off.qcow2"])
    host_b.run(["rm", "/var/lib/libvirt/images/off.qcow2"])


def test_copies_a_disk_in_use(moving: Define, host_a: Host, host_b: Host) -> None:
    images(host_a), images(host_b)
    path = "/var/lib/libvirt/images/live.qcow2"
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "32M"])
    guest = moving(devices=disk(path))
    with Guest(host_a, guest.name) as console:
        console.run("dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync")
        before = console.run("sha256sum /dev/vda")
    refused = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, check=False)
    assert refused.returncode == 7 and "--copy-storage" in refused.stderr
    guest.assert_one(host_a)
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--copy-storage", "-o", "json").json()
    guest.assert_one(host_b)
    assert row["transferred_bytes"] > 8 * 2**20
    console = guest.alive()
    assert console.run("sha256sum /dev/vda") == before
    console.run("dd if=/dev/urandom of=/dev/vda bs=1M count=1 conv=fsync")
    console.close()


def test_sees_that_storage_is_shared(moving: Define, lab: Lab, host_a: Host, host_b: Host) -> None:
    """libvirt takes a bind mount for local storage; that it is one file is seen by its change time."""
    for host in lab.hosts:
        host.virsh("pool-create-as", "shared", "dir", "--target", host.shared)
    path = f"{host_a.shared}/both.qcow2"
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "32M"])
    guest = moving(devices=disk(path))
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "-o", "json").json()
    assert "one file that both hosts see" in check_of(row, "disk vda")["detail"]
    guest.assert_one(host_b)


@pytest.mark.parametrize(
    ("destination", "code", "says"),
    [
        ("nonsense", 2, "not a libvirt URI"),
        ("", 2, "not a libvirt URI"),
        ("-oProxyCommand=touch /tmp/x", 2, ""),
        ("qemu+ssh://-oProxyCommand=x/system", 2, "begins with '-'"),
        ("qemu+ssh://10.77.0.2/system?command=/bin/true", 2, "command"),
        ("esx://10.77.0.2/", 2, "no QEMU"),
        ("qemu+pigeon://10.77.0.2/system", 2, "transport"),
        ("qemu+tcp://10.77.0.99/system", 5, "does not take connections"),
        ("qemu+tcp://10.77.0.2:1/system", 5, "does not take connections"),
        ("qemu+tcp://no-such-host.invalid/system", 5, "does not take connections"),
        ("qemu+ssh://nobody@10.77.0.2/system", 5, "Permission denied"),
        ("qemu:///system?socket=/nonexistent", 5, ""),
    ],
)
def test_bad_destinations(
    lab: Lab, host_a: Host, host_b: Host, off: Moving, destination: str, code: int, says: str
) -> None:
    host_b.start_sshd()
    result = host_a.kvmctl("migrate", off.name, destination, "-o", "json", check=False, timeout=20)
    assert result.returncode == code, result.stderr
    assert says in result.error()["message"] and result.stdout == ""


@pytest.fixture(scope="module")
def off_name() -> str:
    return "never-moves"


@pytest.fixture
def off(lab: Lab, host_a: Host, tiny: Tiny, off_name: str, lans_given_back: None) -> Moving:
    return define(lab, host_a, tiny, off_name, start=False)


def test_a_host_that_never_answers(lab: Lab, host_a: Host, off: Moving) -> None:
    lab.wire.run(["nft", "add", "table", "inet", "hole"], check=False)
    host_a.net.ip("neighbour", "replace", "10.77.0.66", "lladdr", "02:00:00:00:00:66", "dev", "lab0")
    result = host_a.kvmctl("migrate", off.name, "qemu+tcp://10.77.0.66/system", check=False, timeout=20)
    assert result.returncode == 5 and "no answer within 5 s" in result.stderr


@pytest.mark.parametrize("uri", ["tcp_uri", "socket"])
def test_the_same_host_by_another_name(host_a: Host, off: Moving, uri: str) -> None:
    there = host_a.tcp_uri if uri == "tcp_uri" else host_a.uri
    result = host_a.kvmctl("migrate", off.name, there, "--offline", "--check", "-o", "json", check=False)
    assert result.returncode == 7
    assert "the same host" in check_of(result.json(), "host")["detail"]


@pytest.mark.parametrize(
    "options",
    [
        ["--max-downtime", "0"],
        ["--max-downtime", "soon"],
        ["--max-downtime", "1d"],
        ["--timeout", "0"],
        ["--timeout", "-3s"],
        ["--bandwidth", "0"],
        ["--bandwidth", "1K"],
        ["--bandwidth", "lots"],
        ["--bandwidth", "9E"],
        ["--connections", "1"],
        ["--postcopy", "perhaps"],
        ["--postcopy", "now", "--connections", "4"],
        ["--copy-storage", "--copy-storage-inc"],
        ["--abort", "--recover"],
    ],
)
def test_nonsense_options(host_a: Host, host_b: Host, off: Moving, options: list[str]) -> None:
    assert host_a.kvmctl("migrate", off.name, host_b.tcp_uri, *options, check=False).returncode == 2


def test_what_stands_in_the_way_is_named(lab: Lab, moving: Define, host_a: Host, host_b: Host) -> None:
    """Each of these libvirt refuses, some only after a while; the check names all of them at once."""
    guest = moving(
        devices="<interface type='network'><source network='only-here'/></interface>"
        "<interface type='bridge'><source bridge='lab0br'/></interface>",
        start=False,
    )
    host_a.net.bridge("lab0br")
    host_a.virsh("net-define", "/dev/stdin", input="<network><name>only-here</name><bridge name='oh0'/></network>")
    host_b.conn.defineXML(
        f"<domain type='qemu'><name>{guest.name}</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    try:
        result = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--check", "-o", "json", check=False)
    finally:
        host_a.net.ip("link", "delete", "lab0br")
    row = result.json()
    assert result.returncode == 7 and row["verdict"] == "refused"
    refused = {check["name"]: check for check in row["checks"] if check["level"] == "refused"}
    assert set(refused) == {"state", "name", "network only-here", "bridge lab0br"}
    assert all(check["hint"] for check in refused.values())
    assert check_of(row, f"bridge {BRIDGE}")["level"] == "ok"


# What libvirt refuses to move, or the other host does not have, and what is said of it: the check's name, and words.
TIED = {
    "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='9' slot='2' function='0'/>"
    "</source></hostdev>": ("passthrough", "a pci device of this host"),
    "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>": (
        "passthrough",
        "a usb device of this host",
    ),
    "<interface type='direct'><source dev='nowhere1' mode='bridge'/></interface>": ("macvtap nowhere1", "no device"),
    "<interface type='vdpa'><source dev='/dev/vhost-vdpa-7'/></interface>": ("network", "vDPA"),
    "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>": ("shared folder", "9p"),
    "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='srv2'/></filesystem>": (
        "shared folder",
        "virtiofs",
    ),
    "<shmem name='common' role='peer'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>": (
        "shared memory",
        "shmem common",
    ),
    "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>": (
        "TPM",
        "this host's own TPM",
    ),
    "<smartcard mode='host'/>": ("smart card", "of this host"),
    "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/srv/shared/t.qcow2'/><target dev='vdx'/>"
    "<transient/></disk>": ("disk vdx", "transient"),
    "<disk type='network'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'>"
    "<host name='10.77.0.1'/><auth username='me'><secret type='ceph' uuid='11111111-2222-3333-4444-555555555555'/>"
    "</auth></source><target dev='vdy' bus='virtio'/></disk>": ("disk vdy", "11111111-2222-3333-4444-555555555555"),
    "<disk type='file' device='cdrom'><source file='/var/lib/libvirt/images/only-here.iso'/>"
    "<target dev='sdc' bus='sata'/><readonly/></disk>": ("disk sdc", "is not on the destination"),
}


def test_what_is_tied_to_a_host_is_named_with_the_remedy(moving: Define, host_a: Host, host_b: Host) -> None:
    """All at once, before anything is begun; some of it libvirt itself would only refuse half-way."""
    images(host_a), images(host_b)
    host_a.run(["sh", "-c", "echo x >/var/lib/libvirt/images/only-here.iso"])
    backing = "<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>"
    guest = moving(devices="".join(TIED), elements=backing, memory=2**22, start=False)
    result = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--offline", "--check", "-o", "json", check=False)
    row = result.json()
    assert result.returncode == 7 and row["verdict"] == "refused"
    refused = [check for check in row["checks"] if check["level"] == "refused"]
    for name, words in [*TIED.values(), ("memory", "the guest has"), ("huge pages", "in pages of 2048 KiB")]:
        found = [check for check in refused if check["name"] == name and words in check["detail"]]
        assert len(found) == 1 and found[0]["hint"], (name, words, refused)
    assert {check["name"] for check in refused} == {name for name, _ in TIED.values()} | {"memory", "huge pages"}
    # Each with its remedy below it, for people.
    said = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--offline", "--check", check=False)
    assert said.stdout.count("refused  ") == len(refused) and all(check["hint"] in said.stdout for check in refused)
    assert (guest.state(host_a), guest.state(host_b)) == ("shut off", "absent")


def test_snapshots_and_saved_state_refuse(moving: Define, host_a: Host, host_b: Host) -> None:
    images(host_a)
    path = "/var/lib/libvirt/images/snap.qcow2"
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"])
    guest = moving(devices=disk(path))
    host_a.virsh("snapshot-create-as", guest.name, "one", "--disk-only", "--no-metadata", "--print-xml")
    host_a.virsh("managedsave", guest.name)
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--check", "-o", "json", check=False).json()
    assert check_of(row, "saved state")["level"] == "refused"
    host_a.virsh("start", guest.name)
    host_a.virsh("snapshot-create-as", guest.name, "one")
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--check", "-o", "json", check=False).json()
    assert check_of(row, "saved state")["level"] == "ok"
    assert check_of(row, "snapshots")["level"] == "refused"
    said = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--copy-storage", check=False)
    assert said.returncode == 7 and "snapshots" in said.stderr
    guest.assert_one(host_a)


def test_progress_is_a_line_a_second(moving: Define, host_a: Host, host_b: Host) -> None:
    guest = moving()
    result = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--bandwidth", "40M", "--progress", "-o", "json")
    lines = [json.loads(line)["progress"] for line in result.stderr.splitlines()]
    assert len(lines) >= 2 and lines[-1]["phase"] == "memory"
    assert lines[-1]["transferred_bytes"] > lines[0]["transferred_bytes"]
    assert result.json()["state"] == "running"


def test_unknown_vm(host_a: Host, host_b: Host) -> None:
    assert host_a.kvmctl("migrate", "nobody", host_b.tcp_uri, check=False).returncode == 3
    assert host_a.kvmctl("migrate", "nobody", "--abort", check=False).returncode == 3
    assert host_a.kvmctl("migrate", "nobody", host_b.tcp_uri, "--recover", check=False).returncode == 3
    assert host_a.kvmctl("migrate", "nobody", check=False).returncode == 2


def test_cpu_check_against_what_libvirt_does(moving: Define, host_a: Host, host_b: Host) -> None:
    """A model that the destination's hypervisor cannot give is refused with what is missing, before it starts."""
    guest = moving(start=False)
    domain = host_a.conn.lookupByName(guest.name)
    text = domain.XMLDesc(0).replace("<model fallback='allow'>qemu64</model>", "<model fallback='forbid'>EPYC</model>")
    assert "EPYC" in text
    host_a.conn.defineXML(text)
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--offline", "--check", "-o", "json", check=False).json()
    verdict = check_of(row, "cpu")
    compared = host_b.conn.compareHypervisorCPU(
        None, "x86_64", "q35", "qemu", "<cpu mode='custom' match='exact'><model>EPYC</model></cpu>"
    )
    assert (verdict["level"] == "refused") == (compared == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE)
    assert verdict["level"] in ("ok", "refused")


def test_evacuate_moves_all_that_can_go(moving: Define, host_a: Host, host_b: Host) -> None:
    """A running guest and one that is off go; one whose network is missing there stays, with the reason."""
    runs, off = moving(), moving(start=False)
    pattern = host_a.kvmctl("migrate", "moving-*", host_b.tcp_uri, "--check", "-o", "json", check=False).json()
    # QEMU before 9.0 is warned of, see preflight.emulation; a later one is not.
    goes = {row["name"]: row.get("verdict") in ("ok", "warn") for row in pattern}
    assert goes == {runs.name: True, off.name: False}
    stays = moving(start=False, devices="<interface type='bridge'><source bridge='nowhere0'/></interface>")
    running = Running(host_a, "host", "evacuate", host_b.tcp_uri, "--bandwidth", "40M", "--progress", "-o", "json")
    until_sending(host_a, runs.name)
    told = host_a.virsh("qemu-monitor-command", runs.name, "--hmp", "info migrate_parameters").stdout
    result = running.end()
    assert f"max-bandwidth: {40 * 2**20} " in told, told
    assert result.returncode == 8, result.stderr
    lines = [json.loads(line)["progress"] for line in result.stderr.splitlines() if line.startswith('{"progress"')]
    assert len(lines) >= 2 and {line["name"] for line in lines} == {runs.name}
    rows = {row["name"]: row for row in result.json()}
    assert rows[runs.name]["state"] == "running" and rows[off.name]["state"] == "shutoff"
    assert "nowhere0" in rows[stays.name]["error"]["message"]
    runs.assert_one(host_b)
    assert (off.state(host_a), off.state(host_b)) == ("absent", "shut off")
    assert (stays.state(host_a), stays.state(host_b)) == ("shut off", "absent")
