"""How a guest's SSH server is reached from here, and whether it answers."""

import ipaddress
import re
import socket
from dataclasses import dataclass

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import Conflict
from kvmctl.model import domain_view
from kvmctl.model.domain_view import DomainView
from kvmctl.operations import addresses
from kvmctl.operations.agent import Agent, AgentError, NotConnected

SSH_PORT = 22
_CONNECT_SECONDS = 3.0
# RFC 4253 4.2: the server's identification begins with this and has at most 255 bytes.
_BANNER = b"SSH-"
_LISTENING = "0A"


class NotYet(Exception):
    """It does not answer now; the text says what was tried."""


@dataclass(frozen=True)
class Door:
    """Where to knock: a published port of this machine, or the guest's own address."""

    address: str
    port: int
    published: bool

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def doors(
    hypervisor: Hypervisor, domain: libvirt.virDomain, seen: DomainView | None = None, *, on_its_host: bool = False
) -> list[Door]:
    """The ways to the guest's port 22 from this machine (``on_its_host``: from the hypervisor's), published ones first.

    Published ports and networks belong to the hypervisor's host, so through a remote connection there is
    none but the addresses of guests on a bridge of its own network. A host cannot reach its own macvtap
    guests, and nobody user networking, but by a published port.
    """
    seen = seen or domain_view.read(domain.XMLDesc(0))
    found = []
    near = on_its_host or not hypervisor.is_remote
    if near:
        for forward in seen.kvmctl.forwards:
            address = _loopback_for(forward.address)
            if forward.guest_port == SSH_PORT and forward.protocol == "tcp" and address is not None:
                found.append(Door(address, forward.host_port, True))
    usual = ("bridge",) if not near else ("network", "bridge", "ethernet")
    macs = [(nic.mac or "").lower() for nic in seen.nics if nic.mode in usual]
    if macs:
        known = addresses.by_mac(domain)
        found.extend(Door(address, SSH_PORT, False) for address in addresses.flat(known, macs))
    return found


def _loopback_for(address: str | None) -> str | None:
    """Where a published port is reached from its own host; None for what is no address (edited by hand)."""
    try:
        parsed = ipaddress.ip_address(address or "127.0.0.1")
    except ValueError:
        return None
    if parsed.is_unspecified:
        return "127.0.0.1" if parsed.version == 4 else "::1"
    return str(parsed)


def ssh(hypervisor: Hypervisor, domain: libvirt.virDomain, agent: Agent) -> str:
    """Where SSH answers, or ``port 22 in the guest`` where only the guest itself can tell.

    Raises NotYet; Conflict where neither a way from here nor a guest agent exists.
    """
    seen = domain_view.read(domain.XMLDesc(0))
    found = doors(hypervisor, domain, seen)
    for door in found:
        if _greets(door):
            return str(door)
    if any(door.published for door in found):
        raise NotYet(f"nothing answers on {found[0]} yet")
    reachable = not hypervisor.is_remote and any(nic.mode in ("network", "bridge", "ethernet") for nic in seen.nics)
    if reachable:
        raise NotYet(f"nothing answers on {found[0]} yet" if found else "it has no address yet")
    if seen.agent_channel is None:
        raise Conflict(
            f"{seen.name} cannot be reached from here: no port is published and it has no guest agent channel",
            f"publish one: kvmctl port add {seen.name} 2222:22",
        )
    if seen.agent_channel != "connected":
        raise NotYet("the guest agent is not connected yet")
    if _listens(agent):
        return f"port {SSH_PORT} in the guest"
    raise NotYet("nothing listens on the guest's port 22 yet")


def _greets(door: Door) -> bool:
    try:
        with socket.create_connection((door.address, door.port), _CONNECT_SECONDS) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            greeting = b""
            while len(greeting) < len(_BANNER) and (piece := connection.recv(255)):
                greeting += piece
    except OSError:
        return False
    return greeting.startswith(_BANNER)


def _listens(agent: Agent) -> bool:
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            table = agent.content(path).decode("ascii", "replace")
        except NotConnected as error:
            raise NotYet("the guest agent does not answer") from error
        except AgentError as error:
            if error.hint is not None:
                # The guest forbids reading files: no waiting will change that.
                raise
            continue
        # proc_net_tcp: "sl local_address rem_address st ...", addresses as HEX:PORT in hex.
        for line in table.splitlines()[1:]:
            match = re.match(r"\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F:]+ ([0-9A-F]{2}) ", line)
            if match and int(match[1], 16) == SSH_PORT and match[2] == _LISTENING:
                return True
    return False
