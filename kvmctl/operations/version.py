"""Which kvmctl, libvirt and hypervisor are at work."""

from collections.abc import Callable
from typing import Any

import libvirt

from kvmctl import __version__
from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import ConnectionFailed


def versions(connect: Callable[[], Hypervisor]) -> dict[str, Any]:
    """``{"kvmctl", "libvirt_client", "uri", "libvirt", "hypervisor", "hypervisor_version"}``.

    What the hypervisor would have to say is None where it cannot be reached: one asks for versions also
    to find out why.
    """
    found: dict[str, Any] = {
        "kvmctl": __version__,
        "libvirt_client": dotted(libvirt.getVersion()),
        "uri": None,
        "libvirt": None,
        "hypervisor": None,
        "hypervisor_version": None,
    }
    try:
        hypervisor = connect()
    except ConnectionFailed:
        return found
    with translated(hypervisor.uri):
        found["uri"] = hypervisor.uri
        found["libvirt"] = dotted(hypervisor.conn.getLibVersion())
        found["hypervisor"] = hypervisor.conn.getType()
        found["hypervisor_version"] = dotted(hypervisor.conn.getVersion())
    return found


def dotted(number: int) -> str:
    """libvirt's 1000000 * major + 1000 * minor + release as ``major.minor.release``."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
