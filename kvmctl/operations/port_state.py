"""Whether published ports are in force, and if not, why: metadata, libvirt and the firewall compared."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import metadata as model
from kvmctl.model import port_rules, xml
from kvmctl.model.metadata import Forward
from kvmctl.model.network import Network
from kvmctl.operations import firewall, forwards, networks, ports
from kvmctl.operations.firewall import Seen
from kvmctl.operations.ports import Way
from kvmctl.preflight import hostnet

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
NOT_RUNNING = "the guest is not running"
SYNC = "'kvmctl port sync' puts it back"


@dataclass(frozen=True)
class Host:
    """What the host says, once for all rows. ``seen`` None: it cannot be seen, and ``unseen`` tells why."""

    running_networks: dict[str, bool]
    known: dict[str, Network]
    seen: Seen | None
    unseen: str | None
    forwarding: bool | None


def rows(hypervisor: Hypervisor, vm: str | None = None) -> list[dict[str, Any]]:
    """See ports.rows()."""
    chosen = [hypervisor.find(vm)] if vm is not None else None
    found: list[dict[str, Any]] = []
    with translated(hypervisor.uri):
        host: Host | None = None
        for domain in chosen if chosen is not None else hypervisor.conn.listAllDomains(0):
            try:
                tree = xml.parse(domain.XMLDesc(0), "domain", "domain")
                published = model.from_domain(tree).forwards
                if not published:
                    continue
                host = host or look(hypervisor)
                found += _of_domain(domain, tree, published, host, hypervisor)
            except libvirt.libvirtError as error:
                if not is_missing(error):
                    raise
    return sorted(found, key=lambda row: (row["vm"], row["protocol"], row["host_port"]))


def look(hypervisor: Hypervisor) -> Host:
    """Ask libvirt for the networks and the firewall for its rules."""
    every = networks.everything(hypervisor)
    seen: Seen | None = None
    unseen: str | None = None
    forwarding: bool | None = None
    if hypervisor.is_remote:
        unseen = "the firewall of the other host cannot be seen over a remote connection"
    elif not hostnet.is_here(hypervisor):
        unseen = "the hypervisor is in another network namespace, whose firewall cannot be seen from here"
    elif not firewall.is_root():
        unseen = "only root can see the firewall"
    else:
        try:
            firewall.check_nft()
            seen = firewall.look()
        except KvmctlError as error:
            unseen = error.message
        with contextlib.suppress(OSError):
            forwarding = IP_FORWARD.read_text(encoding="ascii").strip() == "1"
    return Host(
        {what.name: bool(network.isActive()) for network, what in every},
        {what.name: what for _, what in every},
        seen,
        unseen,
        forwarding,
    )


def _of_domain(
    domain: libvirt.virDomain,
    tree: xml.Element,
    published: tuple[Forward, ...],
    host: Host,
    hypervisor: Hypervisor,
) -> list[dict[str, Any]]:
    way = ports.way_of(hypervisor, tree, host.known)
    running = bool(domain.isActive())
    through_qemu = forwards.active(domain) if way is not None and way.kind == "user" and running else set()
    found = []
    for forward in published:
        ip: str | None = None
        default = None
        active: bool | None = False
        reason: str | None = "the guest has no card any more through which the port could be published"
        if way is not None and way.kind == "user":
            default = forwards.LOOPBACK
            active = (
                Forward(forward.protocol, forward.host_port, forward.guest_port, forward.address or default)
                in through_qemu
            )
            reason = None if active else _why_user(running)
        elif way is not None:
            default = "0.0.0.0"
            network = host.known.get(way.network or "")
            ip = network.reserved(way.mac or "") if network is not None else None
            active, reason = _nat_state(forward, way, ip, running, host)
        found.append(
            {
                "vm": domain.name(),
                "protocol": forward.protocol,
                "address": forward.address or default,
                "host_port": forward.host_port,
                "guest_ip": ip,
                "guest_port": forward.guest_port,
                "active": active,
                "via": way.kind if way is not None else None,
                "reason": reason,
            }
        )
    return found


def _why_user(running: bool) -> str:
    return "QEMU does not have it; start the guest anew" if running else NOT_RUNNING


def _nat_state(forward: Forward, way: Way, ip: str | None, running: bool, host: Host) -> tuple[bool | None, str | None]:
    """Whether the forward is in force, and why not."""
    if not running:
        return False, NOT_RUNNING
    if not host.running_networks.get(way.network or "", False):
        return False, f"the network {way.network} is not running"
    if ip is None:
        return False, f"the network {way.network} keeps no address for the guest; {SYNC}"
    if host.seen is None:
        return None, host.unseen
    redirect = port_rules.Redirect(
        forward.protocol,
        None if forward.address == "0.0.0.0" else forward.address,
        forward.host_port,
        ip,
        forward.guest_port,
    )
    if redirect not in host.seen.redirects or redirect not in host.seen.own_redirects:
        return False, f"its rule is missing from the host's firewall (flushed or reloaded?); {SYNC}"
    network = host.known.get(way.network or "")
    blocked = _blocked(host.seen, network.bridge if network is not None else None)
    if blocked is not None:
        return False, blocked
    if host.forwarding is False:
        return False, "IPv4 forwarding is off on the host: sysctl -w net.ipv4.ip_forward=1"
    return True, None


def _blocked(seen: Seen, bridge: str | None) -> str | None:
    """Who rejects the packets before kvmctl's accept is asked."""
    tables = seen.iptables
    if tables is not None and (tables.libvirt or tables.policy == "DROP") and tables.jump != "ahead":
        who = "libvirt's own chain rejects" if tables.libvirt else "the FORWARD chain's policy drops"
        return f"{who} it: kvmctl's accept is {'missing' if tables.jump == 'none' else 'behind it'}; {SYNC}"
    if tables is not None and tables.jump == "ahead" and not tables.accepts:
        return f"kvmctl's chain {port_rules.CHAIN} was emptied; {SYNC}"
    if seen.libvirt_chain and not seen.stale:
        return f"libvirt's own chain {port_rules.LIBVIRT_CHAIN} rejects it: kvmctl's accept is missing; {SYNC}"
    if bridge in seen.rejected:
        return f"libvirt's own chain {port_rules.LIBVIRT_CHAIN} rejects it: kvmctl's accept is behind it; {SYNC}"
    return None
