"""Networks: listing addresses of many guests, publishing a port, and what a published port lets through.

``python -m tests.bench.networks`` measures these alone.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.bench.measure import Row, compare, installed, quietly, save, table
from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab

# What the guest sends each time, in bytes: a second or two for an emulated one.
AMOUNT = 32 << 20

_DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
  </devices></domain>
"""


@contextmanager
def running(host: Host, count: int) -> Iterator[list[str]]:
    """``count`` guests behind NAT that run but do not use the CPU (paused); their names."""
    host.start_default_network()
    names = [f"net-{number:03}" for number in range(count)]
    made = [
        host.conn.createXML(_DOMAIN.format(name=name), libvirt.VIR_DOMAIN_START_PAUSED)  # keeps the figures steady
        for name in names
    ]
    try:
        yield names
    finally:
        for domain in made:
            domain.destroy()


def run(host: Host, kvmctl: str, rounds: int, count: int = 100) -> list[Row]:
    """All of them."""
    return [*lists(host, kvmctl, rounds, count), throughput(host, kvmctl, max(3, rounds // 2))]


def lists(host: Host, kvmctl: str, rounds: int, count: int) -> list[Row]:
    """Listing ``count`` guests and their addresses, and publishing a port for one."""
    env = host.environment()
    uri = env["LIBVIRT_DEFAULT_URI"]

    def on_host(*args: str) -> list[str]:
        # Entered alike for both, so that the entering is no difference between them.
        return host.outside(list(args))

    with running(host, count) as names:
        loop = f"for vm in {' '.join(names)}; do virsh -q -c '{uri}' domifaddr $vm; done"
        rows = [
            compare(
                f"{words}, {count} guests",
                "a loop over virsh domifaddr",
                lambda w=words: quietly(on_host(kvmctl, *w.split()), env),  # type: ignore[misc]
                lambda: quietly(on_host("sh", "-c", loop), env),
                max(3, rounds // 3),
                0.2,
            )
            for words in ("list -o wide", "net list")
        ]
        one = names[0]
        rows.append(
            compare(
                "port add",
                "virsh domifaddr",
                lambda: quietly(on_host(kvmctl, "port", "add", one, "18080:80"), env),
                lambda: quietly(on_host("virsh", "-q", "-c", uri, "domifaddr", one), env),
                rounds,
                between=lambda: quietly(on_host(kvmctl, "port", "remove", one, "--all"), env),
            )
        )
    return rows


def throughput(host: Host, kvmctl: str, rounds: int) -> Row:
    """The guest sends to its host: through a published port, and straight to the guest's own address."""
    env = host.environment()
    tiny = images.tiny()
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    quietly(host.outside([kvmctl, "create", "sender", *boot, "--memory", "256M", "-p", "15001:5001"]), env)
    try:
        with Guest(host, "sender") as guest:
            address = guest.ready().address()
            guest.run(f"(while :; do nc -l -p 5001 -e head -c {AMOUNT} /dev/zero; done) >/dev/null 2>&1 &")

            def receive(where: str) -> None:
                # The guest may not listen again yet; that all of it has come is checked.
                count = f"socat -u -b 262144 TCP:{where},retry=200,interval=0.01 - | wc -c"
                quietly(host.outside(["sh", "-c", f'test "$({count})" = {AMOUNT}']), env)

            return compare(
                f"{AMOUNT >> 20} MiB from guest to host, through a forward",
                "straight from its address",
                lambda: receive(f"{host.address}:15001"),
                lambda: receive(f"{address}:5001"),
                rounds,
            )
    finally:
        quietly(host.outside([kvmctl, "delete", "--yes", "sender"]), env)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.networks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="runs of each (default: %(default)s)")
    parser.add_argument("--guests", type=int, default=100, help="how many are listed (default: %(default)s)")
    parser.add_argument("--lists-only", action="store_true", help="leave out what a published port lets through")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    with Lab(f"bn{os.getpid()}") as lab, installed() as kvmctl:
        rows = lists(lab.a, kvmctl, options.rounds, options.guests)
        if not options.lists_only:
            rows.append(throughput(lab.a, kvmctl, max(3, options.rounds // 2)))
    sys.stdout.write(table(rows) + "\n")
    if options.json is not None:
        save(rows, options.json)


if __name__ == "__main__":
    main()
