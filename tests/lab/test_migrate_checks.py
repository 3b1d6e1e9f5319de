"""What the check before a move sees of disks, jobs, ports and clocks; and moves that depend on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab
from tests.lab.moving import Define, Moving, disk, images
from tests.lab.test_migrate import check_of

POOL = "/var/lib/libvirt/images"


def checked(source: Host, guest: Moving, there: str, *options: str) -> dict[str, Any]:
    """What --check says; it changes nothing on either host."""
    said = source.kvmctl("migrate", guest.name, there, "--check", *options, "-o", "json", check=False)
    assert said.returncode in (0, 7), said.stderr
    return dict(said.json())


def level_of(row: dict[str, Any], name: str) -> str:
    return str(check_of(row, name)["level"])


@pytest.fixture
def shared_pools(lab: Lab) -> str:
    """The folder that both hosts share, a pool on both."""
    for host in lab.hosts:
        host.virsh("pool-create-as", "shared", "dir", "--target", host.shared)
    return str(lab.a.shared)


def paused(moving: Define, host: Host, **options: Any) -> Moving:
    """A guest that was started and never ran: there in a moment."""
    guest = moving(start=False, **options)
    host.virsh("start", "--paused", guest.name)
    return guest


def test_block_jobs_and_cache_modes_are_named(moving: Define, host_a: Host, host_b: Host, shared_pools: str) -> None:
    """A disk that is being copied waits for that; one that this host caches is warned of."""
    for name in ("job", "cached"):
        host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{shared_pools}/{name}.qcow2", "16M"])
    cached = disk(f"{shared_pools}/cached.qcow2", target="vdb").replace("cache='none'", "cache='writeback'")
    guest = paused(moving, host_a, devices=disk(f"{shared_pools}/job.qcow2") + cached)
    host_a.virsh("blockcopy", guest.name, "vda", "--dest", f"{shared_pools}/copy.qcow2", "--transient-job")
    row = checked(host_a, guest, host_b.tcp_uri)
    assert row["verdict"] == "refused"
    jobs = check_of(row, "jobs")
    assert jobs["level"] == "refused" and "works on vda" in jobs["detail"] and "blockjob" in jobs["hint"]
    assert level_of(row, "disk vda") == "ok"
    cache = check_of(row, "disk vdb")
    assert cache["level"] == "warn" and "writeback" in cache["detail"] and "cache='none'" in cache["hint"]
    host_a.virsh("blockjob", guest.name, "vda", "--abort")
    row = checked(host_a, guest, host_b.tcp_uri)
    assert level_of(row, "jobs") == "ok" and row["verdict"] == "warn"


def test_the_base_image_must_be_the_same_over_there(moving: Define, host_a: Host, host_b: Host) -> None:
    """Only the top overlay is copied, and what is read through it is what was read before."""
    here, there = images(host_a), images(host_b)
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{POOL}/base.qcow2", "16M"])
    host_a.run(["qemu-io", "-c", "write -P 7 0 8M", f"{POOL}/base.qcow2"])
    backing = ("-b", f"{POOL}/base.qcow2", "-F", "qcow2")
    host_a.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, f"{POOL}/top.qcow2"])
    host_a.run(["qemu-io", "-c", "write -P 9 4M 1M", f"{POOL}/top.qcow2"])
    for host in (host_a, host_b):
        host.virsh("pool-refresh", "default")
    guest = paused(moving, host_a, devices=disk(f"{POOL}/top.qcow2"))
    row = checked(host_a, guest, host_b.tcp_uri, "--copy-storage-inc")
    assert level_of(row, "disk vda") == "refused" and "base.qcow2, which the destination" in str(row)
    host_b.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{POOL}/base.qcow2", "8M"])
    row = checked(host_a, guest, host_b.tcp_uri, "--copy-storage-inc")
    assert level_of(row, "disk vda") == "refused" and "another image there (8 MiB, not 16 MiB)" in str(row)
    (there / "base.qcow2").write_bytes((here / "base.qcow2").read_bytes())
    row = checked(host_a, guest, host_b.tcp_uri, "--copy-storage-inc")
    assert "its top overlay is copied" in check_of(row, "disk vda")["detail"]
    host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, "--copy-storage-inc")
    guest.assert_one(host_b, "paused")
    host_b.virsh("destroy", guest.name)
    info = host_b.run(["qemu-img", "info", f"{POOL}/top.qcow2"]).stdout
    assert f"backing file: {POOL}/base.qcow2" in info
    # The base was not copied into it: a MiB of its own, and the tables.
    assert (there / "top.qcow2").stat().st_blocks * 512 < 3 * 2**20
    for at, pattern in (("0 4M", 7), ("4M 1M", 9), ("5M 3M", 7)):
        host_b.run(["qemu-io", "-c", f"read -P {pattern} {at}", f"{POOL}/top.qcow2"])


def test_an_emulated_tpm_takes_its_state_along(moving: Define, host_a: Host, host_b: Host) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    guest = paused(moving, host_a, devices=tpm)
    row = checked(host_a, guest, host_b.tcp_uri)
    assert check_of(row, "TPM")["detail"] == "both hosts emulate it; its state moves along"
    before = identity(host_a, guest)
    host_a.kvmctl("migrate", guest.name, host_b.tcp_uri)
    guest.assert_one(host_b, "paused")
    assert identity(host_b, guest) == before


def identity(host: Host, guest: Moving) -> bytes:
    """The part of the TPM's state that is made anew with each TPM: its permanent state."""
    return (host.folder / "lib" / "swtpm" / guest.uuid / "tpm2" / "tpm2-00.permall").read_bytes()


@pytest.fixture
def closed_ports(host_b: Host) -> Iterator[None]:
    """A firewall on the destination that swallows what comes to the migration ports."""
    host_b.net.run(["nft", "add table inet closed; add chain inet closed in { type filter hook input priority 0; }"])
    host_b.net.run(["nft", "add rule inet closed in tcp dport 49152-49215 drop"])
    yield
    host_b.net.run(["nft", "delete table inet closed"])


def test_ports_names_and_clocks_as_the_source_sees_them(
    moving: Define, host_a: Host, host_b: Host, closed_ports: None, tmp_path: Path
) -> None:
    """Also where the source itself is far away: it is asked over ssh. libvirt alone tells nothing of a clock."""
    for host in (host_a, host_b):
        host.start_sshd()
    guest = paused(moving, host_a)
    row = checked(host_a, guest, host_b.ssh_uri)
    assert level_of(row, "ports") == "warn" and level_of(row, "clock") == "ok"
    # Two hosts of one machine have one clock: the other's is only said to be another.
    late = host_b.folder / "date"
    late.write_text('#!/bin/sh\nexec /bin/busybox date -d "@$(($(/bin/busybox date +%s) - 420))" +%s\n')
    late.chmod(0o755)
    host_b.run(["mount", "--bind", str(late), "/usr/bin/date"])
    try:
        row = checked(host_a, guest, host_b.ssh_uri, "-c", host_a.ssh_uri)
    finally:
        host_b.run(["umount", "/usr/bin/date"])
    assert "no answer, as the source sees it" in check_of(row, "ports")["detail"]
    clock = check_of(row, "clock")
    assert clock["level"] == "warn" and "min behind the source's" in clock["detail"] and "NTP" in clock["hint"]


def test_a_remote_source_reaches_the_other_host(moving: Define, host_a: Host, host_b: Host) -> None:
    """kvmctl runs on neither host's side: what it says of the way between them is what the source says."""
    host_a.start_sshd()
    guest = paused(moving, host_a)
    row = checked(host_b, guest, host_b.tcp_uri, "-c", host_a.ssh_uri)
    assert "answers the source" in check_of(row, "ports")["detail"] and level_of(row, "clock") == "unknown"
    host_b.kvmctl("-c", host_a.ssh_uri, "migrate", guest.name, host_b.tcp_uri)
    guest.assert_one(host_b, "paused")


def test_several_by_pattern(moving: Define, host_a: Host, host_b: Host) -> None:
    """Two move, one after the other; the third has a reason to stay, which is said, and the exit code is 8."""
    guests = [paused(moving, host_a) for _ in range(2)]
    stays = moving(start=False)
    said = host_a.kvmctl("migrate", "moving-*", host_b.tcp_uri, "-o", "json", check=False)
    assert said.returncode == 8, said.stderr
    rows = {row["name"]: row for row in said.json()}
    for guest in guests:
        assert rows[guest.name]["state"] == "paused"
        guest.assert_one(host_b, "paused")
    assert "is shutoff" in rows[stays.name]["error"]["message"]
    assert (stays.state(host_a), stays.state(host_b)) == ("shut off", "absent")


@pytest.mark.full
def test_compressed_pages_do_not_keep_it_from_finishing(moving: Define, host_a: Host, host_b: Host) -> None:
    """A guest that writes the same 8 MiB over and over, on a slow link: what QEMU reckons is far from what it sends."""
    guest = moving()
    with Guest(host_a, guest.name) as console:
        console.run("dd if=/dev/urandom of=/tmp/x bs=1M count=8")
        loop = "while :; do dd if=/tmp/x of=/tmp/d bs=1M conv=notrunc; done"
        console.run(f"(setsid sh -c '{loop}' </dev/null >/dev/null 2>&1 &)")
    options = ("--compress", "--bandwidth", "40M", "--timeout", "60s")
    row = host_a.kvmctl("migrate", guest.name, host_b.tcp_uri, *options, "-o", "json").json()
    guest.assert_one(host_b)
    stats = host_b.conn.lookupByName(guest.name).jobStats(1)
    assert stats["compression_pages"] > 0 and stats["compression_bytes"] < stats["compression_pages"] * 4096
    assert row["strategy"] in ("pre-copy", "auto-converge") and row["downtime_ms"] < 1000
