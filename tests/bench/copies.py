"""Snapshots and copies, against virsh, virt-clone and booting anew."""

import contextlib
from collections.abc import Iterator

import libvirt

from tests.bench.measure import Row, compare, quietly
from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host, wait_until

NAME = "bench-copies"
COPY = "bench-copy"
DATA_MIB = 4096
XFS = "bench-xfs"


def run(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """All of them; each guest is removed again."""
    host.define_default_pool()
    host.start_default_network()
    few = max(3, rounds // 3)
    return [
        *_snapshots(host, kvmctl, few),
        *_stopped(host, kvmctl, "default", few, full_goal=1.05),
        *_on_xfs(host, kvmctl, few),
        *_live(host, kvmctl, few),
    ]


def _create(host: Host, kvmctl: str, disk: str, *more: str) -> None:
    tiny = images.tiny()
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    size = ["--memory", "160M", "--vcpus", "1", "--net", "nat", "--graphics", "none", "--disk", disk]
    quietly(host.outside([kvmctl, "create", NAME, *boot, *size, *more]), host.environment())


def _remove(host: Host, kvmctl: str, *names: str) -> None:
    there = {domain.name() for domain in host.conn.listAllDomains(0)}
    found = [name for name in names if name in there]
    if found:
        quietly(host.outside([kvmctl, "delete", *found, "--storage", "all", "-y"]), host.environment())


def _snapshots(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """Taking one of a running guest, and going back to it."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]
    _create(host, kvmctl, "64M")
    with Guest(host, NAME) as guest:
        # Some memory that has to be written: a guest that has just started has hardly any.
        guest.ready().run("dd if=/dev/urandom of=/tmp/used bs=1M count=64 2>/dev/null", timeout=120)

    def forget() -> None:
        for snapshot in host.conn.lookupByName(NAME).listAllSnapshots(0):
            snapshot.delete(0)

    create = compare(
        "snapshot create, running",
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
        "snapshot revert --discard, running",
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
    """A fork that has its own address, against booting the same guest until it has one."""
    env = host.environment()
    _create(host, kvmctl, "64M")
    with Guest(host, NAME) as guest:
        guest.ready().wait_for("agent started")

    def fork() -> None:
        quietly(host.outside([kvmctl, "clone", NAME, COPY, "--live"]), env)
        _wait_for_address(host, COPY)

    def boot() -> None:
        quietly(host.outside([kvmctl, "clone", NAME, COPY, "--start"]), env)
        _wait_for_address(host, COPY)

    row = compare(
        "clone --live, to its own address",
        "booting a copy",
        fork,
        boot,
        rounds,
        0.25,
        lambda: _remove(host, kvmctl, COPY),
    )
    _remove(host, kvmctl, NAME)
    return [row]


def _wait_for_address(host: Host, name: str) -> None:
    domain = host.conn.lookupByName(name)
    mac = domain.XMLDesc(0).partition("<mac address='")[2][:17]
    network = host.conn.networkLookupByName("default")
    wait_until(lambda: network.DHCPLeases(mac), f"an address of {name}")
