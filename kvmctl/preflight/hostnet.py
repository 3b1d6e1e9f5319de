"""The host's own interfaces, addresses and routes, where the hypervisor is this machine.

Read with iproute2 (`ip -j`), which libvirt itself depends on. libvirt has no call for routes, and its node
devices do not tell a bridge from another interface.
"""

import contextlib
import ipaddress
import json
import subprocess
from typing import Any, NamedTuple

from kvmctl.connection import Hypervisor
from kvmctl.errors import NotFound, Refused, UsageProblem
from kvmctl.model.network import Subnet
from kvmctl.preflight.here import is_here as is_here
from kvmctl.preflight.subnet import Taken


class Link(NamedTuple):
    """One interface. ``kind`` as iproute2 names it (``bridge``, ``macvtap``, ``veth``, …), None for hardware."""

    name: str
    kind: str | None = None
    mac: str | None = None
    master: str | None = None
    parent: str | None = None
    up: bool = False
    addresses: tuple[str, ...] = ()


class Route(NamedTuple):
    """One route of the main table: what it leads to and over which device."""

    subnet: Subnet
    dev: str

    @property
    def is_default(self) -> bool:
        """Whether it leads everywhere."""
        return self.subnet.prefixlen == 0


class HostNetwork(NamedTuple):
    """All of it, at one moment."""

    links: dict[str, Link]
    routes: tuple[Route, ...] = ()

    @property
    def default_devices(self) -> set[str]:
        """The devices that carry the host's own way out, with what a bridge or bond among them stands on."""
        found = {route.dev for route in self.routes if route.is_default}
        while True:
            below = {link.name for link in self.links.values() if link.master in found}
            below |= {link.parent for name, link in self.links.items() if name in found and link.parent}
            if below <= found:
                return found
            found |= below

    @property
    def taken(self) -> list[Taken]:
        """The subnets that the host's routes lead to."""
        return [Taken(route.subnet, f"the host's route over {route.dev}") for route in self.routes]


def look(hypervisor: Hypervisor) -> HostNetwork | None:
    """The host's network; None where the hypervisor is not in this network namespace, or ``ip`` is missing."""
    if not is_here(hypervisor):
        return None
    try:
        links = [_link(entry) for entry in _ip("-d", "addr", "show") if entry.get("ifname")]
        routes = [*_routes(_ip("-4", "route", "show")), *_routes(_ip("-6", "route", "show"))]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return HostNetwork({link.name: link for link in links}, tuple(routes))


def _ip(*arguments: str) -> list[dict[str, Any]]:
    result = subprocess.run(
        ["ip", "-j", *arguments],
        capture_output=True,
        timeout=10,
        check=True,
    )
    found = json.loads(result.stdout or b"[]")
    return [entry for entry in found if isinstance(entry, dict)]


def _link(entry: dict[str, Any]) -> Link:
    return Link(
        name=entry["ifname"],
        kind=entry.get("linkinfo", {}).get("info_kind"),
        mac=entry.get("address"),
        master=entry.get("master"),
        parent=entry.get("link"),
        up="UP" in entry.get("flags", []),
        addresses=tuple(
            f"{a['local']}/{a['prefixlen']}" for a in entry.get("addr_info", []) if "local" in a and "prefixlen" in a
        ),
    )


def _routes(entries: list[dict[str, Any]]) -> list[Route]:
    found: list[Route] = []
    for entry in entries:
        destination, dev = entry.get("dst", ""), entry.get("dev")
        hops = [hop.get("dev") for hop in entry.get("nexthops", [])] if dev is None else [dev]
        with contextlib.suppress(ValueError):
            if destination == "default":
                # Which family is told apart by nothing else in the entry, and nobody asks.
                destination = "0.0.0.0/0"
            subnet = ipaddress.ip_network(destination, strict=False)
            if not subnet.is_link_local and not subnet.is_multicast:
                found.extend(Route(subnet, hop) for hop in hops if hop)
    return found


def check_bridge(host: HostNetwork | None, name: str) -> None:
    """Raise where ``name`` is no bridge of the host: NotFound where nothing is called that, else UsageProblem."""
    if host is None:
        return
    link = host.links.get(name)
    if link is None:
        raise NotFound(
            f"the host has no bridge {name!r}", f"make it with 'ip link add {name} type bridge', or see 'ip link'"
        )
    if link.kind not in ("bridge", "openvswitch"):
        raise UsageProblem(
            f"{name} is not a bridge but {'a ' + link.kind + ' device' if link.kind else 'a network card'}",
            f"use --net macvtap:{name}, or make a bridge and put {name} into it",
        )


def check_macvtap(host: HostNetwork | None, name: str, mode: str) -> None:
    """Raise where no macvtap in ``mode`` can be made over ``name``.

    NotFound where the host has no such device; UsageProblem for loopback and the like; Refused for
    passthrough of what carries the host's own default route, which would cut the host off.
    """
    if host is None:
        return
    link = host.links.get(name)
    if link is None:
        raise NotFound(f"the host has no network device {name!r}", "'ip link' lists them")
    if name == "lo" or link.kind in ("macvtap", "macvlan", "tun"):
        raise UsageProblem(
            f"no macvtap device can be made over {name}", "give a network card, VLAN, bond, veth or bridge"
        )
    if link.master is not None:
        raise Refused(
            f"{name} is a port of {link.master}, so no macvtap device can be made over it",
            f"use --net bridge:{link.master}" if host.links.get(link.master, link).kind == "bridge" else None,
        )
    if mode == "passthrough" and name in host.default_devices:
        raise Refused(
            f"{name} carries the host's own default route: in passthrough mode the guest would take it away",
            f"use --net macvtap:{name}:bridge, or another device",
        )
