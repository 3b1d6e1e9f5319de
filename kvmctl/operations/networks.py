"""libvirt's networks: list, look at, make, start, stop, delete."""

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, UsageProblem
from kvmctl.model import network as model
from kvmctl.model import xml
from kvmctl.model.names import check_new_name
from kvmctl.model.network import Network
from kvmctl.model.nic import check_interface, check_macvtap_mode
from kvmctl.operations import network_state
from kvmctl.operations.undo import Undo
from kvmctl.preflight import cards, hostnet, subnet


@dataclass(frozen=True)
class Request:
    """A new network as it was asked for, each text as the user wrote it. ``dhcp`` None: kvmctl chooses."""

    name: str
    mode: str = "nat"
    subnets: tuple[str, ...] = ()
    dhcp: tuple[str, ...] | None = None
    reservations: tuple[str, ...] = ()
    bridge: str | None = None
    devices: tuple[str, ...] = ()
    macvtap_mode: str | None = None
    domain: str | None = None
    autostart: bool = True
    start: bool = True


@dataclass(frozen=True)
class Plan:
    """What create() does: the network's XML, and whether it starts it now and at every boot."""

    network: Network
    xml: str
    autostart: bool
    start: bool


def find(hypervisor: Hypervisor, name: str) -> libvirt.virNetwork:
    """The network with this name or UUID. Raises NotFound, naming the URI."""
    with translated(hypervisor.uri):
        try:
            return hypervisor.conn.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if not is_missing(error):
                raise
        with contextlib.suppress(libvirt.libvirtError):
            return hypervisor.conn.networkLookupByUUIDString(name)
    raise NotFound(f"no network {name[:100]!a} on {hypervisor.uri}", "'kvmctl net list' shows those there are")


def find_or_none(hypervisor: Hypervisor, name: str) -> libvirt.virNetwork | None:
    """The network with exactly this name; None where there is none, or this libvirt has no networks at all."""
    with translated(hypervisor.uri):
        try:
            return hypervisor.conn.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if is_missing(error) or error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return None
            raise


def read(network: libvirt.virNetwork, flags: int = 0) -> Network:
    """The network as it is: the running definition where it runs. ``flags``: virNetworkGetXMLDesc's."""
    return model.from_element(xml.parse(network.XMLDesc(flags), "network", "network"))


def everything(hypervisor: Hypervisor) -> list[tuple[libvirt.virNetwork, Network]]:
    """All networks with what they say, by name; one that goes away meanwhile is left out."""
    found = []
    with translated(hypervisor.uri):
        for network in hypervisor.conn.listAllNetworks(0):
            try:
                found.append((network, read(network)))
            except libvirt.libvirtError as error:
                if not is_missing(error):
                    raise
    return sorted(found, key=lambda pair: pair[1].name)


def row(network: libvirt.virNetwork, what: Network) -> dict[str, Any]:
    """One network as ``net list`` has it; sizes none, ``subnet`` and ``dhcp`` the IPv4 ones before IPv6."""
    ordered = sorted(what.addressing, key=lambda a: a.subnet.version)
    ranges = [str(given) for addressing in ordered for given in addressing.ranges]
    return {
        "name": what.name,
        "uuid": what.uuid,
        "mode": what.mode,
        "bridge": what.bridge,
        "subnet": str(ordered[0].subnet) if ordered else None,
        "subnets": [str(addressing.subnet) for addressing in ordered],
        "dhcp": ranges[0] if ranges else None,
        "devices": list(what.devices),
        "macvtap_mode": what.macvtap_mode,
        "active": bool(network.isActive()),
        "autostart": bool(network.autostart()) if network.isPersistent() else False,
        "persistent": bool(network.isPersistent()),
    }


def listing(hypervisor: Hypervisor) -> list[dict[str, Any]]:
    """Every network; see row()."""
    with translated(hypervisor.uri):
        return [row(network, what) for network, what in everything(hypervisor)]


def info(hypervisor: Hypervisor, name: str) -> dict[str, Any]:
    """One network: row() and ``gateways domain reservations guests problems`` (None where they cannot be seen)."""
    network = find(hypervisor, name)
    with translated(hypervisor.uri):
        what = read(network)
        found = row(network, what)
        found["gateways"] = [str(addressing.gateway) for addressing in what.addressing]
        found["domain"] = what.domain
        found["reservations"] = [
            {"mac": host.mac, "ip": host.ip, "name": host.name}
            for addressing in what.addressing
            for host in addressing.hosts
        ]
        found["guests"] = [name for name, _running in guests_of(hypervisor, what.name)]
        found["problems"] = network_state.problems(hypervisor, what, found["active"])
    return found


def guests_of(hypervisor: Hypervisor, name: str) -> list[tuple[str, bool]]:
    """The VMs with a card in the network ``name``, and whether that card is in a running one."""
    found: dict[str, bool] = {}
    for card in cards.everywhere(hypervisor):
        if card.kind == "network" and card.source == name:
            found[card.vm] = found.get(card.vm, False) or card.live
    return sorted(found.items())


def plan(hypervisor: Hypervisor, request: Request) -> Plan:
    """Check ``request`` against itself, the other networks and the host, and decide what is open in it.

    Raises UsageProblem for what no network can be, Conflict where the name or bridge exists, Refused
    where a subnet meets another network or a host route.
    """
    name = check_new_name(request.name, "network")
    host = hostnet.look(hypervisor)
    others = everything(hypervisor)
    if any(what.name == name for _, what in others):
        raise Conflict(f"there is a network {name} already", "'kvmctl net info' shows it; choose another name")
    if request.mode in model.OWN_BRIDGE:
        network = _with_subnets(request, name, others, host)
    else:
        network = _without_subnets(request, name, others, host)
    return Plan(network, xml.text(model.to_element(network)), request.autostart, request.start)


def _with_subnets(
    request: Request,
    name: str,
    others: Sequence[tuple[libvirt.virNetwork, Network]],
    host: hostnet.HostNetwork | None,
) -> Network:
    if request.macvtap_mode is not None:
        raise UsageProblem(f"--macvtap-mode does not go with --mode {request.mode}", "use --mode macvtap")
    if len(request.devices) > 1 or (request.devices and request.mode in ("isolated", "open")):
        raise UsageProblem(
            f"--mode {request.mode} takes {'one --dev' if request.mode in ('nat', 'route') else 'no --dev'}",
            "--dev is the device that its guests' packets leave by",
        )
    for device in request.devices:
        check_interface(device, "device")
        if host is not None and device not in host.links:
            raise NotFound(f"the host has no network device {device!r}", "'ip link' lists them")
    if request.bridge is not None:
        _check_new_bridge(check_interface(request.bridge, "bridge"), others, host)
    if request.domain is not None and not subnet.is_host_name(request.domain):
        raise UsageProblem(f"{request.domain[:60]!a} is not a DNS domain", "write it like lab.example")
    taken = [subnet.Taken(s, f"the network {what.name!r}") for _, what in others for s in what.subnets]
    taken += host.taken if host is not None else []
    subnets = [subnet.parse_subnet(text) for text in request.subnets]
    ranges = None if request.dhcp is None else [subnet.parse_range(text) for text in request.dhcp]
    hosts = [subnet.parse_host(text) for text in request.reservations]
    if not subnets:
        if ranges or hosts:
            raise UsageProblem("--dhcp and --reserve need a --subnet", "add --subnet 192.168.50.0/24, for example")
        subnets = [subnet.free_subnet(taken)]
    addressing = subnet.addressing(subnets, ranges, hosts)
    subnet.refuse_overlap(subnets, taken)
    return Network(
        name, request.mode, bridge=request.bridge, devices=request.devices, domain=request.domain, addressing=addressing
    )


def _check_new_bridge(
    bridge: str, others: Sequence[tuple[libvirt.virNetwork, Network]], host: hostnet.HostNetwork | None
) -> None:
    """A network with addresses of its own makes its bridge: nobody may have one of that name yet."""
    for _, what in others:
        if what.bridge == bridge and what.mode in model.OWN_BRIDGE:
            raise Conflict(f"the bridge {bridge} is the network {what.name!r}'s", "choose another --bridge")
    if host is not None and bridge in host.links:
        on_that = f", or use --mode bridge --bridge {bridge} to put guests on that one"
        raise Conflict(
            f"the host has an interface {bridge} already, and this network makes a bridge of its own",
            "choose another --bridge" + (on_that if host.links[bridge].kind == "bridge" else ""),
        )


def _without_subnets(
    request: Request,
    name: str,
    others: Sequence[tuple[libvirt.virNetwork, Network]],
    host: hostnet.HostNetwork | None,
) -> Network:
    given = {
        "--subnet": request.subnets,
        "--dhcp": request.dhcp is not None,
        "--reserve": request.reservations,
        "--domain": request.domain,
    }
    for option, value in given.items():
        if value:
            raise UsageProblem(
                f"{option} does not go with --mode {request.mode}: addresses come from the network outside"
            )
    if request.mode == "bridge":
        if request.bridge is None:
            raise UsageProblem("--mode bridge needs --bridge, the host's bridge that the guests join")
        if request.devices or request.macvtap_mode is not None:
            raise UsageProblem("--dev and --macvtap-mode do not go with --mode bridge", "use --mode macvtap")
        hostnet.check_bridge(host, check_interface(request.bridge, "bridge"))
        _refuse_libvirts_bridge(request.bridge, others)
        return Network(name, "bridge", bridge=request.bridge)
    if request.mode != "macvtap":
        raise UsageProblem(f"{request.mode[:40]!a} is no mode of a network", f"one of {', '.join(model.MODES)}")
    if not request.devices:
        raise UsageProblem("--mode macvtap needs --dev, the host's device that the guests go out by")
    if request.bridge is not None:
        raise UsageProblem("--bridge does not go with --mode macvtap")
    mode = check_macvtap_mode(request.macvtap_mode or "bridge")
    for device in request.devices:
        hostnet.check_macvtap(host, check_interface(device, "device"), mode)
        if request.devices.count(device) > 1:
            raise UsageProblem(f"--dev {device} is given twice")
    return Network(name, "macvtap", devices=request.devices, macvtap_mode=mode)


def _refuse_libvirts_bridge(bridge: str, others: Sequence[tuple[libvirt.virNetwork, Network]]) -> None:
    for _, what in others:
        if what.bridge == bridge and what.mode in model.OWN_BRIDGE:
            raise Conflict(
                f"{bridge} is the bridge of the network {what.name!r}", f"use that network: --net network:{what.name}"
            )


def create(hypervisor: Hypervisor, plan: Plan) -> dict[str, Any]:
    """Make the network; where a step fails, nothing of it is left. Returns row()."""
    with translated(hypervisor.uri), Undo() as undo:
        with undo.step():
            network = hypervisor.conn.networkDefineXML(plan.xml)
            undo.add(f"undefine the network {plan.network.name}", network.undefine)
        if plan.autostart:
            # The link in libvirt's autostart folder goes away with the definition.
            network.setAutostart(1)
        if plan.start:
            with undo.step():
                _start(network)
                undo.add(f"stop the network {plan.network.name}", network.destroy)
        made = row(network, read(network))
        undo.keep()
    return made


def start(hypervisor: Hypervisor, name: str) -> dict[str, Any]:
    """Start it; row(), ``changed`` and ``reattached``, the guests that had run on without it and are in it again."""
    network = find(hypervisor, name)
    with translated(hypervisor.uri):
        changed = not network.isActive()
        if changed:
            _start(network)
        reattached = reattach(hypervisor) if changed else []
        if changed:
            _ports_follow(hypervisor)
        return {**row(network, read(network)), "changed": changed, "reattached": reattached}


def _ports_follow(hypervisor: Hypervisor) -> None:
    """Its bridge is another one now, or gone: the ports published for its guests are put in force, or taken back."""
    # Imported late: ports are of networks.
    from kvmctl.operations import ports

    ports.follow(hypervisor)


def _start(network: libvirt.virNetwork) -> None:
    try:
        network.create()
    except libvirt.libvirtError as error:
        if "No chain/target/match" in error.get_error_message():
            raise KvmctlError(
                f"the network {network.name()} cannot start: libvirt's chains are gone from the firewall, flushed "
                "while libvirtd was running",
                "restart libvirtd, which makes them anew and leaves guests alone ('systemctl restart libvirtd')",
            ) from error
        raise


def reattach(hypervisor: Hypervisor) -> list[str]:
    """Plug running guests into the bridges of their networks again; their names.

    A network that is stopped takes its bridge away, and starting it makes a new one without the guests'
    devices: libvirt puts them back only when it starts itself. Nothing is done where the host's
    interfaces cannot be changed from here.
    """
    host = hostnet.look(hypervisor)
    if host is None or os.geteuid() != 0:
        return []
    bridges = {
        what.name: what.bridge
        for network, what in everything(hypervisor)
        if what.mode in model.OWN_BRIDGE and what.bridge is not None and network.isActive()
    }
    found: dict[str, None] = {}
    for card in cards.everywhere(hypervisor):
        bridge = bridges.get(card.source or "") if card.live and card.kind == "network" else None
        link = host.links.get(card.target or "")
        if bridge is not None and bridge in host.links and link is not None and link.master is None:
            _join(link.name, bridge)
            found[card.vm] = None
    return sorted(found)


def _join(device: str, bridge: str) -> None:
    command = ["ip", "link", "set", "dev", device, "master", bridge]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise KvmctlError(f"{device} could not be put into the bridge {bridge}: {done.stderr.strip()}")


def stop(hypervisor: Hypervisor, name: str, *, force: bool = False) -> dict[str, Any]:
    """Stop it; row() and ``changed``. Raises Conflict while running guests are in it, unless ``force``."""
    network = find(hypervisor, name)
    with translated(hypervisor.uri):
        changed = bool(network.isActive())
        if changed:
            if not force:
                running = [guest for guest, runs in guests_of(hypervisor, network.name()) if runs]
                _refuse_guests(network.name(), running, "running in it, and would be cut off")
            found = row(network, read(network))
            network.destroy()
            _ports_follow(hypervisor)
            if not found["persistent"]:
                return {**found, "active": False, "changed": True}
        return {**row(network, read(network)), "changed": changed}


def delete(hypervisor: Hypervisor, name: str, *, force: bool = False) -> dict[str, Any]:
    """Stop and undefine it; ``{name, uuid, changed}``. Raises Conflict while guests use it, unless ``force``."""
    network = find(hypervisor, name)
    with translated(hypervisor.uri):
        found = {"name": network.name(), "uuid": network.UUIDString(), "changed": True}
        if not force:
            _refuse_guests(network.name(), [g for g, _ in guests_of(hypervisor, network.name())], "defined with it")
        persistent = network.isPersistent()
        if network.isActive():
            network.destroy()
            _ports_follow(hypervisor)
        if persistent:
            network.undefine()
    return found


def _refuse_guests(network: str, guests: Sequence[str], what: str) -> None:
    if guests:
        shown = ", ".join(guests[:5]) + (f" and {len(guests) - 5} more" if len(guests) > 5 else "")
        raise Conflict(
            f"the network {network} is in use: {shown} {'is' if len(guests) == 1 else 'are'} {what}",
            "stop or change them first, or add --force",
        )


def leases(hypervisor: Hypervisor, name: str | None = None) -> list[dict[str, Any]]:
    """The DHCP leases of one network, or of all running ones.

    ``{network, mac, ip, prefix, hostname, client_id, expires, vm, reserved}``; ``hostname`` is what the
    guest said of itself, ``vm`` the VM whose card has that MAC (None where there is none).
    """
    chosen = [find(hypervisor, name)] if name is not None else [network for network, _ in everything(hypervisor)]
    owned = owners(hypervisor)
    found: list[dict[str, Any]] = []
    with translated(hypervisor.uri):
        for network in chosen:
            if not network.isActive():
                if name is not None:
                    raise Conflict(f"the network {network.name()} is not running", f"kvmctl net start {network.name()}")
                continue
            what = read(network)
            if what.mode not in model.OWN_BRIDGE:
                continue
            found += [_lease(entry, what, owned) for entry in network.DHCPLeases()]
    return sorted(found, key=lambda lease: (lease["network"], _sortable(lease["ip"])))


def _lease(entry: dict[str, Any], what: Network, owned: dict[str, str]) -> dict[str, Any]:
    mac = (entry.get("mac") or "").lower() or None
    expiry = entry.get("expirytime") or 0
    ip = entry.get("ipaddr") or ""
    return {
        "network": what.name,
        "mac": mac,
        "ip": ip,
        "prefix": entry.get("prefix"),
        "hostname": entry.get("hostname") or None,
        "client_id": entry.get("clientid") or None,
        "expires": datetime.fromtimestamp(expiry, UTC).isoformat() if expiry else None,
        "vm": owned.get(mac or ""),
        "reserved": any(host.ip == ip for addressing in what.addressing for host in addressing.hosts),
    }


def _sortable(ip: str) -> tuple[int, int]:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return (0, 0)
    return (address.version, int(address))


def owners(hypervisor: Hypervisor) -> dict[str, str]:
    """MAC to VM, over every card of every VM."""
    return {card.mac: card.vm for card in cards.everywhere(hypervisor) if card.mac is not None}
