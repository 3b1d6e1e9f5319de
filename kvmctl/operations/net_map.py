"""The host's networks and who is in them, for ``net map``."""

from collections import defaultdict

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.model import domain_view, xml
from kvmctl.model.domain_view import DomainView, NicView
from kvmctl.model.net_map import Node
from kvmctl.model.network import OWN_BRIDGE, Network
from kvmctl.operations import addresses, networks, port_state
from kvmctl.preflight import hostnet


def draw(hypervisor: Hypervisor) -> Node:
    """The host at the root; below it networks, bridges and devices; below them guests; below those their forwards.

    What the host itself has (addresses, bridge ports) is there only where the hypervisor is this machine's.
    """
    with translated(hypervisor.uri):
        host = hostnet.look(hypervisor)
        every = networks.everything(hypervisor)
        forwards = _forwards(hypervisor)
        guests = _guests(hypervisor, forwards)
        roots = [_network(network, what, guests.pop(("network", what.name), []), host) for network, what in every]
        own = {what.bridge for _, what in every if what.mode in OWN_BRIDGE}
        roots += _bridges(host, own, guests)
        roots += _devices(host, guests)
        user = guests.pop(("user", ""), [])
        roots += [Node("user", "user networking", ("QEMU's own, out only",), children=tuple(user))] if user else []
        roots += [
            Node("bridge" if kind == "bridge" else "device", name, ("not on this host",), children=tuple(children))
            for (kind, name), children in sorted(guests.items())
        ]
        return Node("host", hypervisor.conn.getHostname(), (hypervisor.uri,), children=tuple(roots))


def _forwards(hypervisor: Hypervisor) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = defaultdict(list)
    for row in port_state.rows(hypervisor):
        active = row["active"] is not False
        detail = () if row["active"] else (row["reason"],)
        name = f"{row['address']}:{row['host_port']}/{row['protocol']} → {row['guest_port']}"
        found[row["vm"]].append(Node("forward", name, detail, active))
    return found


def _guests(hypervisor: Hypervisor, forwards: dict[str, list[Node]]) -> dict[tuple[str, str], list[Node]]:
    """The guests' cards by where they lead: ``("network", name)``, ``("bridge", name)``, ``("macvtap", device)``, …"""
    found: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for domain in hypervisor.conn.listAllDomains(0):
        try:
            seen = domain_view.view(xml.parse(domain.XMLDesc(0), "domain", "domain"))
            running = bool(domain.isActive())
            known = addresses.by_mac(domain, ("lease", "arp")) if running else {}
        except libvirt.libvirtError as error:
            if is_missing(error):
                continue
            raise
        published = tuple(forwards.get(seen.name, ()))
        for nic in seen.nics:
            # The forwards go through the first card that can carry them; shown once, they are not shown twice.
            carries = nic.mode in ("network", "user")
            place = (nic.mode, nic.source or "") if nic.mode in ("network", "bridge", "macvtap") else ("user", "")
            found[place].append(_guest(seen, nic, running, known, published if carries else ()))
            published = () if carries else published
    return found


def _guest(
    seen: DomainView, nic: NicView, running: bool, known: dict[str, list[str]], forwards: tuple[Node, ...]
) -> Node:
    detail = [*known.get((nic.mac or "").lower(), []), nic.mac or "", nic.model or ""]
    detail += [nic.macvtap_mode] if nic.macvtap_mode else []
    detail += [nic.target] if nic.target and running else []
    detail += [] if nic.link_up else ["link down"]
    return Node("guest", seen.name, tuple(text for text in detail if text), running, forwards)


def _network(network: libvirt.virNetwork, what: Network, guests: list[Node], host: hostnet.HostNetwork | None) -> Node:
    detail = [what.mode + (f" ({what.macvtap_mode})" if what.macvtap_mode else "")]
    detail += [what.bridge] if what.bridge else []
    detail += [f"{addressing.gateway}/{addressing.subnet.prefixlen}" for addressing in what.addressing]
    detail += [f"via {', '.join(what.devices)}"] if what.devices else []
    if what.mode == "nat" and host is not None and not what.devices:
        out = sorted({route.dev for route in host.routes if route.is_default})
        detail += [f"out by {', '.join(out)}"] if out else []
    return Node("network", what.name, tuple(detail), bool(network.isActive()), tuple(guests))


def _bridges(
    host: hostnet.HostNetwork | None, own: set[str | None], guests: dict[tuple[str, str], list[Node]]
) -> list[Node]:
    """The host's bridges that are no network's of libvirt's own, with their ports and guests."""
    found = []
    for link in host.links.values() if host is not None else ():
        if link.kind not in ("bridge", "openvswitch") or link.name in own:
            continue
        assert host is not None
        ports = tuple(
            Node("port", other.name, up=other.up)
            for other in host.links.values()
            if other.master == link.name and other.kind != "tun"
        )
        inside = tuple(guests.pop(("bridge", link.name), ()))
        found.append(Node("bridge", link.name, _own_addresses(link), link.up, (*ports, *inside)))
    return found


def _devices(host: hostnet.HostNetwork | None, guests: dict[tuple[str, str], list[Node]]) -> list[Node]:
    """The host's cards, with the guests on macvtap over each."""
    found = []
    for link in host.links.values() if host is not None else ():
        if link.name == "lo" or link.kind in ("bridge", "openvswitch", "macvtap", "tun"):
            continue
        addresses_of = list(_own_addresses(link))
        inside = tuple(guests.pop(("macvtap", link.name), ()))
        addresses_of += [f"port of {link.master}"] if link.master else []
        found.append(Node("device", link.name, tuple(addresses_of), link.up, inside))
    return found


def _own_addresses(link: hostnet.Link) -> tuple[str, ...]:
    """Without those that every interface gives itself."""
    return tuple(text for text in link.addresses if not text.startswith("fe80:"))
