"""Starting up, listing and creating, against virsh and virt-install."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.measure import Row, compare, quietly
from tests.lab import images
from tests.lab.hosts import Host

_DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>
"""
NAME = "bench"


@contextmanager
def defined(host: Host, count: int) -> Iterator[None]:
    """``count`` shut-off domains of the QEMU driver."""
    made = [host.conn.defineXML(_DOMAIN.format(name=f"bench-{number:04}")) for number in range(count)]
    try:
        yield
    finally:
        for domain in made:
            domain.undefine()


def run(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """All of them."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]

    def on_host(*args: str) -> list[str]:
        # Entered alike for both, so that the entering is no difference between them.
        return host.outside(list(args))

    rows = []
    for option, goal in (("--version", None), ("--help", 3.0)):
        rows.append(
            compare(
                f"kvmctl {option}",
                "virsh --version",
                functools.partial(quietly, [kvmctl, option], env),
                lambda: quietly(["virsh", "--version"], env),
                rounds,
                goal,
            )
        )
    for count, goal in ((1, 3.0), (100, None), (1000, 0.5)):
        with defined(host, count):
            rows.append(
                compare(
                    f"list, {count} VM{'s' if count > 1 else ''}",
                    "virsh list --all",
                    lambda: quietly(on_host(kvmctl, "list"), env),
                    lambda: quietly(on_host("virsh", "-c", uri, "list", "--all"), env),
                    rounds,
                    goal,
                )
            )
    rows += creation(host, kvmctl, max(3, rounds // 2))
    return rows


def creation(host: Host, kvmctl: str, rounds: int) -> list[Row]:
    """The same guest by both: direct kernel, a new 1 GiB disk, a card on user networking, VNC."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]
    tiny = images.tiny()
    ours = [
        kvmctl,
        "create",
        NAME,
        "--kernel",
        str(tiny.kernel),
        "--initrd",
        str(tiny.initrd),
        "--cmdline",
        tiny.cmdline,
        "--memory",
        "256M",
        "--vcpus",
        "1",
        "--disk",
        "1G",
        "--net",
        "user",
    ]
    theirs = [
        "virt-install",
        "--connect",
        uri,
        "--name",
        NAME,
        "--memory",
        "256",
        "--vcpus",
        "1",
        "--virt-type",
        "qemu",
        "--boot",
        f"kernel={tiny.kernel},initrd={tiny.initrd},kernel_args='{tiny.cmdline}'",
        "--import",
        "--disk",
        "size=1",
        "--network",
        "user",
        "--graphics",
        "vnc",
        "--osinfo",
        "debian11",
        "--noautoconsole",
    ]

    def remove() -> None:
        for domain in host.conn.listAllDomains(0):
            if domain.name() == NAME:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        for pool in host.conn.listAllStoragePools(2):
            for volume in pool.listAllVolumes(0):
                if volume.name().startswith(f"{NAME}."):
                    volume.delete(0)

    host.define_default_pool()
    real = compare(
        "create, started",
        "virt-install",
        lambda: quietly(host.outside(ours), env),
        lambda: quietly(host.outside(theirs), env),
        rounds,
        0.5,
        remove,
    )
    dry = compare(
        "create --dry-run",
        "virt-install --dry-run",
        lambda: quietly(host.outside([*ours, "--dry-run"]), env),
        lambda: quietly(host.outside([*theirs, "--dry-run"]), env),
        rounds,
        0.3,
        remove,
    )
    return [real, dry]
