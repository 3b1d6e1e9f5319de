"""The host's networks and who is in them, for ``net map``."""

from collections import defaultdict
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.model import domain_view, xml
from kvmctl.model.domain_view import DomainView, NicView
from kvmctl.model.net_map import Node
from kvmctl.model.network import OWN_BRIDGE, Network
from kvmctl.operations import addresses, networks, port_state, ports
from kvmctl.preflight import hostnet


def draw(hypervisor: Hypervisor) -> Node:
    """The host at the root; below it networks, bridges and devices; below them guests; below those their forwards.

    What the host itself has (addresses, bridge ports) is there only where the hypervisor is this machine's.
    """
    with translated(hypervisor.uri):
        host = hostnet.look(hypervisor)
        every = networks.everything(hypervisor)
        forwards = _forwards(hypervisor)
        guests = _guests(hypervisor, forwards, {what.name: what for _, what in every})
        roots = [_network(network, what, guests.pop(("network", what.name), []), host) for network, what in every]
        own = {what.bridge for _, what in every if what.mode in OWN_BRIDGE}
        roots += _bridges(host, own, guests)
        roots += _devices(host, guests)
        user = tuple(guests.pop(("user", ""), []))
        if user:
            roots.append(Node("user", "user networking", ("QEMU's own, in by published ports only",), children=user))
        roots += [_elsewhere(kind, name, tuple(children)) for (kind, name), children in sorted(guests.items())]
        return Node("host", hypervisor.conn.getHostname(), (hypervisor.uri,), children=tuple(roots))


def _elsewhere(kind: str, name: str, guests: tuple[Node, ...]) -> Node:
    """What the guests' cards lead to and nobody here knows, or knows of: another machine's, or gone."""
    if kind == "network":
        return Node("network", name, ("no such network",), up=False, children=guests)
    if kind in ("bridge", "macvtap"):
        return Node("bridge" if kind == "bridge" else "device", name, ("not seen from here",), children=guests)
    return Node("user", " ".join(word for word in (kind, name) if word), ("a card of this type",), children=guests)


def _forwards(hypervisor: Hypervisor) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = defaultdict(list)
    for run in _runs(port_state.rows(hypervisor)):
        first, last = run[0], run[-1]
        active = first["active"] is not False
        detail = () if first["active"] else (first["reason"],)
        from_, to = (
            str(first[key]) if first is last else f"{first[key]}-{last[key]}" for key in ("host_port", "guest_port")
        )
        name = f"{first['address']}:{from_}/{first['protocol']} → {to}"
        found[first["vm"]].append(Node("forward", name, detail, active))
    return found


def _runs(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The forwards of a range together: those that differ in nothing but the next port."""
    found: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: (row["vm"], row["protocol"], row["address"] or "", row["host_port"])):
        before = found[-1][-1] if found else None
        if before == {**row, "host_port": row["host_port"] - 1, "guest_port": row["guest_port"] - 1}:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _guests(
    hypervisor: Hypervisor, forwards: dict[str, list[Node]], networks_of: dict[str, Network]
) -> dict[tuple[str, str], list[Node]]:
    """The guests' cards by where they lead: ``("network", name)``, ``("bridge", name)``, ``("macvtap", device)``, …"""
    found: dict[tuple[str, str], list[Node]] = defaultdict(list)
    trees = []
    for domain in hypervisor.conn.listAllDomains(0):
        try:
            trees.append((domain, xml.parse(domain.XMLDesc(0), "domain", "domain"), bool(domain.isActive())))
        except libvirt.libvirtError as error:
            if not is_missing(error):
                raise
    every = addresses.of_many(hypervisor, [(domain, tree) for domain, tree, running in trees if running])
    for _, tree, running in trees:
        seen = domain_view.view(tree)
        known = every.get(tree.findtext("uuid", ""), {})
        published = tuple(forwards.get(seen.name, ()))
        way = ports.way_of(hypervisor, tree, networks_of) if published else None
        for nic in seen.nics:
            # They go through one card: in user networking QEMU's first, else the one that has the reservation.
            carries = way is not None and (nic.mode == "user" if way.kind == "user" else _mac(nic) == way.mac)
            found[nic.mode, nic.source or ""].append(_guest(seen, nic, running, known, published if carries else ()))
            published = () if carries else published
    return found


def _guest(
    seen: DomainView, nic: NicView, running: bool, known: dict[str, list[str]], forwards: tuple[Node, ...]
) -> Node:
    detail = [*known.get(_mac(nic), []), nic.mac or "", nic.model or ""]
    detail += [nic.macvtap_mode] if nic.macvtap_mode else []
    detail += [nic.target] if nic.target and running else []
    detail += [] if nic.link_up else ["link down"]
    return Node("guest", seen.name, tuple(text for text in detail if text), running, forwards)


def _mac(nic: NicView) -> str:
    return (nic.mac or "").lower()


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
