"""``python -m tests.bench.copies [PART...]``: snapshots and copies, against virsh, virt-clone and booting anew."""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import libvirt

from tests.bench.measure import Row, compare, installed, quietly, save, table
from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab

NAME = "bench-copies"
COPY = "bench-copy"
DATA_MIB = 4096
XFS = "bench-xfs"
FORKS = 10


def run(host: Host, kvmctl: str, rounds: int, parts: list[str] | None = None) -> list[Row]:
    """All of them, or these ``parts``; each guest is removed again."""
    host.define_default_pool()
    host.start_default_network()
    few = max(3, rounds // 3)
    return [row for part in parts or PARTS for row in PARTS[part](host, kvmctl, few)]


def _create(host: Host, kvmctl: str, disk: str, *more: str, memory: str = "160M") -> None:
    tiny = images.tiny()
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    size = ["--memory", memory, "--vcpus", "1", "--net", "nat", "--graphics", "none", "--disk", disk]
    quietly(host.outside([kvmctl, "create", NAME, *boot, *size, *more]), host.environment())


def _remove(host: Host, kvmctl: str, *names: str) -> None:
    there = {domain.name() for domain in host.conn.listAllDomains(0)}
    found = [name for name in names if name in there]
    if found:
        quietly(host.outside([kvmctl, "delete", *found, "--storage", "all", "-y"]), host.environment())


def _snapshots(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """Of a guest of the usual size, and of a tiny one, where what starting Python costs shows most."""
    return [*_snapshots_of(host, kvmctl, rounds, 1024, 400), *_snapshots_of(host, kvmctl, rounds, 256, 64)]


def _snapshots_of(host: Host, kvmctl: str, rounds: int, memory: int, used: int) -> list[Row]:
    """Taking one of a running guest, and going back to it; ``memory`` and what of it is ``used`` in MiB."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]
    _create(host, kvmctl, "64M", memory=f"{memory}M")
    with Guest(host, NAME) as guest:
        # Some memory that has to be written: a guest that has just started has hardly any.
        guest.ready().run(f"dd if=/dev/urandom of=/tmp/used bs=1M count={used} 2>/dev/null", timeout=240)

    def forget() -> None:
        for snapshot in host.conn.lookupByName(NAME).listAllSnapshots(0):
            snapshot.delete(0)

    create = compare(
        f"snapshot create, running, {memory} MiB",
        "virsh snapshot-create-as",
        lambda: quietly(host.outside([kvmctl, "snapshot", "create", NAME, "one"]), env),
        lambda: quietly(host.outside(["virsh", "-c", uri, "snapshot-create-as", NAME, "one"]), env),
        rounds,
        1.1,
        forget,
    )
    quietly(host.outside([kvmctl, "snapshot", "create", NAME, "one"]), env)
    # virsh throws the present away, so that is what both do here.
    revert = compare(
        f"snapshot revert --discard, running, {memory} MiB",
        "virsh snapshot-revert",
        lambda: quietly(host.outside([kvmctl, "snapshot", "revert", NAME, "one", "--discard"]), env),
        lambda: quietly(host.outside(["virsh", "-c", uri, "snapshot-revert", NAME, "one"]), env),
        rounds,
        1.1,
    )
    _remove(host, kvmctl, NAME)
    return [create, revert]


def _stopped(host: Host, kvmctl: str, pool: str, rounds: int, full_goal: float, local: bool = False) -> list[Row]:
    """Copies of a guest with 4 GiB of data, defined and not started."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]
    _create(host, kvmctl, f"{DATA_MIB + 1024}M,pool={pool}", "--no-start")
    disk = host.conn.storagePoolLookupByName(pool).storageVolLookupByName(f"{NAME}.qcow2").path()
    for part in range(0, DATA_MIB, 512):
        host.run(["qemu-io", "-t", "writeback", "-c", f"write -q -P {part // 512 + 1} {part}M 512M", disk])
    # A reflink is made where the files are: on the host itself.
    enter = host.inside if local else host.outside
    env = {**env, "LIBVIRT_DEFAULT_URI": "qemu:///system"} if local else env
    uri = env["LIBVIRT_DEFAULT_URI"]
    theirs = ["virt-clone", "--connect", uri, "--original", NAME, "--name", COPY, "--auto-clone"]

    def remove() -> None:
        _remove(host, kvmctl, COPY)

    def against(what: str, goal: float, *options: str) -> Row:
        ours = [kvmctl, "clone", NAME, COPY, *options]
        return compare(
            what,
            "virt-clone --auto-clone",
            lambda: quietly(enter(ours), env),
            lambda: quietly(enter(theirs), env),
            rounds,
            goal,
            remove,
        )

    rows = [against(f"clone --full, 4 GiB, {'XFS' if local else 'ext4'}", full_goal, "--full")]
    if not local:
        # Last: the source then stands on an overlay, which virt-clone would copy alone.
        rows.append(against("clone, linked, 4 GiB", 0.05))
    _remove(host, kvmctl, COPY, NAME)
    return rows


def _on_xfs(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    with _xfs(host):
        return _stopped(host, kvmctl, XFS, rounds, full_goal=0.1, local=True)


@contextlib.contextmanager
def _xfs(host: Host) -> Iterator[None]:
    place, disk = f"/var/lib/libvirt/{XFS}", f"/var/lib/libvirt/{XFS}.img"
    host.run(["truncate", "-s", "16G", disk])
    host.run(["mkfs.xfs", "-q", disk])
    host.run(["mkdir", "-p", place])
    host.run(["mount", "-o", "loop", disk, place])
    text = f"<pool type='dir'><name>{XFS}</name><target><path>{place}</path></target></pool>"
    pool = host.conn.storagePoolCreateXML(text, 0)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            pool.destroy()
        host.run(["umount", "-l", place])
        host.run(["rm", "-f", disk])


def _live(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """Of a guest that boots in seconds: the hardest peer there is."""
    _create(host, kvmctl, "64M")
    with Guest(host, NAME) as guest:
        guest.ready().wait_for("agent started")
    row = _forked(host, kvmctl, rounds, "clone --live to its own address, tiny guest")
    _remove(host, kvmctl, NAME)
    return [row]


def _live_debian(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """Of a whole Debian."""
    env = host.environment()
    quietly(host.outside([kvmctl, "image", "import", str(images.debian()), "--name", "bench-debian"]), env)
    size = ["--memory", "512M", "--vcpus", "1", "--net", "nat", "--graphics", "none"]
    wait = ["--wait", "cloud-init", "--timeout", "15m"]
    quietly(host.outside([kvmctl, "create", NAME, "--image", "bench-debian", *size, *wait]), env)
    row = _forked(host, kvmctl, rounds, "clone --live to its own address, Debian")
    _remove(host, kvmctl, NAME)
    quietly(host.outside([kvmctl, "image", "delete", "bench-debian", "-y"]), env)
    return [row]


def _ten(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """Ten at once."""
    _create(host, kvmctl, "64M")
    with Guest(host, NAME) as guest:
        guest.ready().wait_for("agent started")
    row = _forked(host, kvmctl, rounds, f"clone --live --count {FORKS} to their own addresses, tiny guests", FORKS)
    _remove(host, kvmctl, NAME)
    return [row]


def _forked(host: Host, kvmctl: str, rounds: int, what: str, count: int | None = None) -> Row:
    """Forks that have their own addresses, against booting copies of the same guest until they have one."""
    env = host.environment()
    many = ["--count", str(count)] if count else []
    names = [f"{COPY}-{number}" for number in range(1, count + 1)] if count else [COPY]
    goal = None if count else 0.25
    pauses: list[int] = []

    def fork() -> None:
        command = host.outside([kvmctl, "clone", NAME, COPY, "--live", *many, "-o", "json"])
        done = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
        rows = done if isinstance(done, list) else [done]
        pauses.extend(row["pause_ms"] for row in rows[:1] if row["pause_ms"] is not None)
        _wait_for_addresses(host, names)

    def boot() -> None:
        quietly(host.outside([kvmctl, "clone", NAME, COPY, "--start", *many]), env)
        _wait_for_addresses(host, names)

    def remove() -> None:
        _remove(host, kvmctl, *names)

    row = compare(what, "booting as many" if count else "booting it", fork, boot, rounds, goal, remove)
    if not pauses:
        return row
    return replace(row, note=f"the source stood still for {statistics.median(pauses):.0f} ms, at most {max(pauses)} ms")


def _wait_for_addresses(host: Host, names: list[str]) -> None:
    network = host.conn.networkLookupByName("default")
    for name in names:
        mac = host.conn.lookupByName(name).XMLDesc(0).partition("<mac address='")[2][:17]
        wait_until(partial(network.DHCPLeases, mac), f"an address of {name}", 600)


def _copied(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    return _stopped(host, kvmctl, "default", rounds, full_goal=1.05)


PARTS: dict[str, Callable[[Host, str, int], list[Row]]] = {
    "snapshots": _snapshots,
    "copies": _copied,
    "xfs": _on_xfs,
    "live": _live,
    "debian": _live_debian,
    "ten": _ten,
}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.copies", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="three times the runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if set(options.parts) - set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    with Lab(f"bench{os.getpid()}") as lab, installed() as kvmctl:
        rows = run(lab.a, kvmctl, options.rounds, options.parts)
    sys.stdout.write(table(rows) + "\n")
    if options.json is not None:
        save(rows, options.json)


if __name__ == "__main__":
    main()
