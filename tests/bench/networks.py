"""Networks: listing addresses of many guests, and publishing a port, against virsh."""

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from tests.bench.measure import Row, compare, quietly
from tests.lab.hosts import Host

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
