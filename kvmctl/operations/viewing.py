"""How a VM's screen is watched: the address of its VNC or SPICE server, and a viewer for it."""

import shutil
from dataclasses import dataclass

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict
from kvmctl.model import domain_view
from kvmctl.model.state import ACTIVE
from kvmctl.operations.lifecycle import state_of


@dataclass(frozen=True)
class Plan:
    """``viewer``: the command to run, None where no viewer is installed here."""

    name: str
    uuid: str
    type: str
    address: str
    viewer: list[str] | None


def plan(hypervisor: Hypervisor, name: str) -> Plan:
    """Where the screen is. Raises Conflict where the VM is off or has none."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        shown, state = domain.name(), state_of(domain)
        if state not in ACTIVE:
            raise Conflict(f"{shown} is {state}, so its screen is dark", f"'kvmctl start {shown}' first")
        seen = domain_view.read(domain.XMLDesc(0))
        uuid = domain.UUIDString()
    for graphics in seen.graphics:
        if graphics.type in ("vnc", "spice") and (graphics.port or graphics.tls_port or graphics.listen):
            return Plan(shown, uuid, graphics.type, _address(hypervisor, graphics), _viewer(hypervisor, uuid))
    raise Conflict(f"{shown} has no screen that could be viewed", f"'kvmctl console {shown}' is its serial console")


def _address(hypervisor: Hypervisor, graphics: domain_view.GraphicsView) -> str:
    if graphics.port is None and graphics.tls_port is None:
        return f"{graphics.type}+unix://{graphics.listen}"
    host = graphics.listen or "127.0.0.1"
    if host in ("0.0.0.0", "::", "*"):
        host = hypervisor.host or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"{graphics.type}://{host}:{graphics.port or graphics.tls_port}"


def _viewer(hypervisor: Hypervisor, uuid: str) -> list[str] | None:
    path = shutil.which("virt-viewer")
    # virt-viewer finds the server itself, through an SSH tunnel where the hypervisor is another machine.
    return [path, "--connect", hypervisor.uri, "--wait", "--", uuid] if path else None
