"""Published ports of guests, behind NAT and in user networking.

What shall be published is in the domain's metadata, and the guest's address is a reservation in the
network. The host's rules are derived from both, all of them every time, so none can be left over or be
out of date: sync() makes the firewall as libvirt's state says, whoever calls it (the hooks that libvirt
runs at every start and stop, too).
"""

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, ConnectionFailed, KvmctlError, Refused, UsageProblem
from kvmctl.model import metadata as model
from kvmctl.model import xml
from kvmctl.model.forward import parse_selection, written
from kvmctl.model.metadata import Forward, Metadata
from kvmctl.model.network import Network
from kvmctl.model.port_rules import Rule
from kvmctl.operations import addresses, firewall, forwards, hooks, metadata, networks, reservations
from kvmctl.operations.undo import Undo
from kvmctl.preflight import host_ports, hostnet

# Networks whose guests are behind the host and reach it as their gateway.
BEHIND_HOST = ("nat", "route", "open")


@dataclass(frozen=True)
class Way:
    """How a VM's ports are published: by QEMU (``user``), or by the host in front of ``network`` (``nat``)."""

    kind: Literal["user", "nat"]
    mac: str | None = None
    network: str | None = None


@dataclass(frozen=True)
class Plan:
    """What add() or remove() does: ``forwards`` are the ones that come or go."""

    domain: libvirt.virDomain
    vm: str
    way: Way
    forwards: tuple[Forward, ...]


def way_of(hypervisor: Hypervisor, tree: xml.Element, known: dict[str, Network] | None = None) -> Way | None:
    """How ports of the VM (its domain XML) can be published: through its first card that allows it."""
    kinds = known
    for interface in tree.iterfind("devices/interface"):
        source, mac = interface.find("source"), interface.find("mac")
        if interface.get("type") == "user":
            return Way("user")
        network = source.get("network") if source is not None else None
        if network and mac is not None:
            if kinds is None:
                kinds = {what.name: what for _, what in networks.everything(hypervisor)}
            if network in kinds and kinds[network].mode in BEHIND_HOST:
                return Way("nat", mac.get("address", "").lower(), network)
    return None


def through_qemu(hypervisor: Hypervisor, domain: libvirt.virDomain) -> bool:
    """Whether the VM's ports are published by QEMU: its first card that allows it is on user networking."""
    way = way_of(hypervisor, _tree(domain))
    return way is not None and way.kind == "user"


# ---------------------------------------------------------------- add and remove


def plan_add(hypervisor: Hypervisor, vm: str, wanted: Sequence[Forward]) -> Plan:
    """Look whether ``wanted`` can be published; those that are so already are left out of the plan.

    Raises Conflict, naming who has it, for a host port that is forwarded or in use; Refused where the
    guest is reached directly, or the host's firewall cannot be changed from here.
    """
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri):
        way = _way(hypervisor, domain)
        before = metadata.read(domain)
        new = tuple(forward for forward in wanted if forward not in before.forwards)
        name = domain.name()
    check(hypervisor, way, new, domain=domain)
    return Plan(domain, name, way, new)


def check(
    hypervisor: Hypervisor, way: Way, wanted: Sequence[Forward], *, domain: libvirt.virDomain | None = None
) -> None:
    """Everything that must hold before ``wanted`` is published by ``way``; see plan_add() for what it raises."""
    default = forwards.LOOPBACK if way.kind == "user" else None
    if way.kind == "user":
        forwards.check(wanted)
    else:
        _check_host(hypervisor, wanted)
    _refuse_forwarded(hypervisor, way, wanted, domain)
    if hostnet.is_here(hypervisor):
        host_ports.refuse_in_use(wanted, default)


def _check_host(hypervisor: Hypervisor, wanted: Sequence[Forward]) -> None:
    """The host's firewall is this machine's, and the addresses are its own."""
    refuse_elsewhere(hypervisor)
    firewall.check_root()
    firewall.check_nft()
    host = hostnet.look(hypervisor)
    own = {str(ipaddress.ip_interface(a).ip) for link in (host.links.values() if host else ()) for a in link.addresses}
    for forward in wanted:
        if forward.address is None:
            continue
        address = ipaddress.ip_address(forward.address)
        if address.version == 6:
            raise UsageProblem(
                f"{written(forward)}: ports of a guest behind NAT are published on IPv4 addresses only",
                "over IPv6 a guest in a routed network is reached directly",
            )
        if not address.is_unspecified and not address.is_loopback and host is not None and str(address) not in own:
            raise UsageProblem(f"{written(forward)}: the host has no address {address}", "'ip address' lists them")


def refuse_elsewhere(hypervisor: Hypervisor) -> None:
    """Raise Refused where the host's firewall is not this machine's."""
    if hypervisor.is_remote:
        where = hypervisor.host or "the other host"
        raise Refused(
            f"ports of a guest behind NAT are published by its host's firewall, and over {hypervisor.uri} "
            f"that of {where} cannot be changed",
            f"run kvmctl there (ssh {where}), or use --net user, whose ports go through libvirt",
        )
    if not hostnet.is_here(hypervisor):
        raise Refused(
            f"the hypervisor at {hypervisor.uri} is in another network namespace than kvmctl, which cannot change "
            "its firewall from here",
            "run kvmctl there ('ip netns exec', 'nsenter')",
        )


def _refuse_forwarded(
    hypervisor: Hypervisor, way: Way, wanted: Sequence[Forward], domain: libvirt.virDomain | None
) -> None:
    own = domain.UUIDString() if domain is not None else None
    with translated(hypervisor.uri):
        for other in hypervisor.conn.listAllDomains(0):
            theirs = metadata.read(other).forwards
            if not theirs or not wanted:
                continue
            same = other.UUIDString() == own
            kind = way if same else way_of(hypervisor, _tree(other))
            for forward in wanted:
                clash = next((t for t in theirs if _clash(forward, way, t, kind)), None)
                if clash is not None:
                    raise Conflict(
                        f"the host's port {forward.host_port}/{forward.protocol} leads to {other.name()} already "
                        f"({written(clash)})",
                        f"'kvmctl port remove {other.name()} {written(clash)}' first, or publish another port",
                    )


def _clash(one: Forward, one_way: Way, other: Forward, other_way: Way | None) -> bool:
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    mine = one.address or (forwards.LOOPBACK if one_way.kind == "user" else "0.0.0.0")
    theirs = other.address or (forwards.LOOPBACK if other_way is not None and other_way.kind == "user" else "0.0.0.0")
    return mine == theirs or "0.0.0.0" in (mine, theirs)


def add(hypervisor: Hypervisor, plan: Plan) -> list[dict[str, Any]]:
    """Publish the plan's forwards; where a step fails everything is as before. Returns their rows()."""
    if plan.forwards:
        with translated(hypervisor.uri), Undo() as undo:
            if plan.way.kind == "user":
                _add_user(plan, undo)
            else:
                with firewall.locked():
                    _add_nat(hypervisor, plan, undo)
            undo.keep()
    elif plan.way.kind != "user" and plan.domain.isActive():
        # Known, but perhaps not in force: the guest may have come from another host, or the firewall been flushed.
        with translated(hypervisor.uri):
            publish(hypervisor, plan.domain, metadata.read(plan.domain).forwards)
    return [row for row in rows(hypervisor, plan.vm) if _named(row, plan.forwards)]


def _add_user(plan: Plan, undo: Undo) -> None:
    if plan.domain.isActive():
        for forward in plan.forwards:
            with undo.step():
                forwards.add(plan.domain, forward)
                undo.add(f"take back {written(forward)}", partial(forwards.remove, plan.domain, forward))
    # Read anew: somebody else may have published another port since the look.
    now = metadata.read(plan.domain)
    metadata.write(plan.domain, now.with_forwards((*now.forwards, *plan.forwards)))


def _add_nat(hypervisor: Hypervisor, plan: Plan, undo: Undo) -> None:
    # Others may have published since the look; now that the lock is held they wait.
    _refuse_forwarded(hypervisor, plan.way, plan.forwards, plan.domain)
    now = metadata.read(plan.domain)
    # Undone last of all, when metadata and reservation are as before: the rules follow from them.
    undo.add("put the firewall back", lambda: sync(hypervisor))
    kept = _reserve(hypervisor, plan.domain, plan.way, now, undo)
    undo.add("forget the forwards", lambda: metadata.write(plan.domain, now))
    metadata.write(plan.domain, kept._replace(forwards=(*now.forwards, *plan.forwards)))
    sync(hypervisor)


def _reserve(hypervisor: Hypervisor, domain: libvirt.virDomain, way: Way, before: Metadata, undo: Undo) -> Metadata:
    """Have the network keep the guest's address; the metadata that remembers it."""
    assert way.network is not None and way.mac is not None
    ip = None
    if domain.isActive():
        network = networks.read(networks.find(hypervisor, way.network))
        ip = _present_address(domain, way, network) if network.reserved(way.mac) is None else None
    with undo.step():
        made, new = reservations.reserve(hypervisor, way.network, way.mac, ip, domain.name())
        if new:
            undo.add(f"give the address {made.ip} back", lambda: reservations.release(hypervisor, made))
    if not new:
        return before
    return before._replace(reservations=(*before.reservations, made))


def _present_address(domain: libvirt.virDomain, way: Way, network: Network) -> str | None:
    """The IPv4 address the guest has in ``network`` now: its lease, else what its agent or ARP tells."""
    for sources in (("lease",), ("agent", "arp")):
        for text in addresses.by_mac(domain, sources).get(way.mac or "", []):
            address = ipaddress.ip_address(text)
            addressing = network.holding(address)
            if address.version == 4 and addressing is not None and address != addressing.gateway:
                return text
    return None


def what_is_not_kept(plan: Plan) -> str | None:
    """What the user should know of how long the forwards will hold, or None."""
    if plan.way.kind == "nat" and plan.forwards and hooks.missing():
        return (
            "libvirt's hooks are not installed: the forwards follow kvmctl's own starts and stops, not virsh's or "
            "a reboot's; 'kvmctl host setup' installs them"
        )
    return None


def plan_remove(hypervisor: Hypervisor, vm: str, named: Sequence[str], *, everything: bool = False) -> Plan:
    """Which forwards go, named as parse_selection() has it. Raises NotFound for one that is not there."""
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri):
        before = metadata.read(domain)
        name = domain.name()
        chosen = dict.fromkeys(forward for text in named for forward in parse_selection(text, before.forwards))
        way = way_of(hypervisor, _tree(domain)) or Way("nat")
    gone = before.forwards if everything else tuple(chosen)
    if way.kind == "nat" and gone:
        refuse_elsewhere(hypervisor)
        firewall.check_root()
    return Plan(domain, name, way, gone)


def remove(hypervisor: Hypervisor, plan: Plan) -> dict[str, Any]:
    """Take the forwards back; ``{vm, removed, changed}``. Open connections through them stay."""
    with translated(hypervisor.uri):
        if plan.way.kind == "user":
            now = metadata.read(plan.domain)
            metadata.write(plan.domain, now.with_forwards(_without(now.forwards, plan.forwards)))
            if plan.domain.isActive():
                for forward in plan.forwards:
                    forwards.remove(plan.domain, forward)
        elif plan.forwards:
            with firewall.locked(), Undo() as undo:
                now = metadata.read(plan.domain)
                undo.add("put the firewall back", lambda: sync(hypervisor))
                undo.add("publish them again", lambda: metadata.write(plan.domain, now))
                metadata.write(plan.domain, now.with_forwards(_without(now.forwards, plan.forwards)))
                sync(hypervisor)
                undo.keep()
    return {"vm": plan.vm, "removed": [written(f) for f in plan.forwards], "changed": bool(plan.forwards)}


def _without(there: tuple[Forward, ...], gone: tuple[Forward, ...]) -> tuple[Forward, ...]:
    return tuple(forward for forward in there if forward not in gone)


# ---------------------------------------------------------------- for create, start, delete


def publish(hypervisor: Hypervisor, domain: libvirt.virDomain, wanted: Iterable[Forward]) -> None:
    """Put ``wanted``, which the metadata of the running guest holds already, in force: reservation and rules."""
    chosen = tuple(wanted)
    if not chosen:
        return
    with translated(hypervisor.uri):
        way = _way(hypervisor, domain)
        _check_host(hypervisor, chosen)
        with firewall.locked(), Undo() as undo:
            before = metadata.read(domain)
            kept = _reserve(hypervisor, domain, way, before, undo)
            if kept != before:
                undo.add("forget the reservation", lambda: metadata.write(domain, before))
                metadata.write(domain, kept)
            sync(hypervisor)
            undo.keep()


def unpublish_all(hypervisor: Hypervisor, domain: libvirt.virDomain) -> list[str]:
    """Take back every forward and reservation of ``domain``, which is being deleted.

    Returns what could not be done, a line each: over a remote connection the host's rules stay until its
    hooks see the guest stop.
    """
    with translated(hypervisor.uri):
        before = metadata.read(domain)
        if not before.forwards and not before.reservations:
            return []
        behind_nat = bool(before.forwards) and not through_qemu(hypervisor, domain)
        now = before._replace(forwards=())
        metadata.write(domain, now)
        warnings = []
        if behind_nat:
            try:
                refuse_elsewhere(hypervisor)
                sync(hypervisor)
            except Refused as error:
                warnings.append(f"{error.message}: its rules stay until 'kvmctl port sync' runs there")
        for reservation in before.reservations:
            reservations.release(hypervisor, reservation)
        # Not before they are given back: kvmctl may be killed meanwhile.
        metadata.write(domain, now._replace(reservations=()))
    return warnings


def reapply(hypervisor: Hypervisor, domain: libvirt.virDomain) -> list[str]:
    """After a start: put in force what the metadata says. Returns one line for each that could not be."""
    try:
        with translated(hypervisor.uri):
            wanted = metadata.read(domain).forwards
            if not wanted:
                return []
            if through_qemu(hypervisor, domain):
                return forwards.reapply(hypervisor, domain)
            publish(hypervisor, domain, wanted)
    except KvmctlError as error:
        return [f"its published ports are not in force: {error.message}"]
    return []


def settle(hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
    """After ``domain`` stopped: take its rules away, where that can be done from here; libvirt's hooks do it too."""
    try:
        published = bool(metadata.read(domain).forwards)
    except (KvmctlError, libvirt.libvirtError):
        # A transient guest is gone with its metadata: only the rules can tell.
        published = True
    if published:
        tidy(hypervisor)


def tidy(hypervisor: Hypervisor) -> None:
    """Take away the rules of guests that do not run here any more, where that can be done from here."""
    with contextlib.suppress(KvmctlError, libvirt.libvirtError):
        if firewall.is_root() and hostnet.is_here(hypervisor) and firewall.has_rules():
            sync(hypervisor)


def follow(hypervisor: Hypervisor) -> None:
    """After a network was started or stopped: sync(), where that can be done from here; libvirt's hooks do it too."""
    with contextlib.suppress(KvmctlError, libvirt.libvirtError):
        if firewall.is_root() and hostnet.is_here(hypervisor):
            sync(hypervisor)


# ---------------------------------------------------------------- the rules


def patiently(connect: Callable[[], Hypervisor], seconds: float = 60) -> Hypervisor:
    """The connection, waited for: libvirt's hooks run while it is still starting."""
    end = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except ConnectionFailed:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def repair(hypervisor: Hypervisor) -> int:
    """What libvirt's hooks ask for: running guests in their networks again, QEMU's forwards, and sync()."""
    networks.reattach(hypervisor)
    with translated(hypervisor.uri):
        for domain in hypervisor.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            # One that stops meanwhile, or whose QEMU refuses, is no reason to leave the others without.
            with contextlib.suppress(KvmctlError, libvirt.libvirtError):
                if metadata.read(domain).forwards and through_qemu(hypervisor, domain):
                    forwards.reapply(hypervisor, domain)
    return sync(hypervisor)


def sync(hypervisor: Hypervisor) -> int:
    """Make the host's rules exactly what libvirt's state asks for; how many forwards are in force then."""
    refuse_elsewhere(hypervisor)
    with firewall.locked(), translated(hypervisor.uri):
        rules = wanted_rules(hypervisor)
        firewall.apply(rules)
    return len(rules)


def wanted_rules(hypervisor: Hypervisor) -> list[Rule]:
    """The rules that the running guests' metadata and their networks' reservations ask for, in a stable order."""
    active = {
        what.name: what for network, what in networks.everything(hypervisor) if network.isActive() and what.bridge
    }
    rules = []
    for domain in hypervisor.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            tree = _tree(domain)
        except libvirt.libvirtError as error:
            if is_missing(error):
                continue
            raise
        remembered = model.from_domain(tree)
        way = way_of(hypervisor, tree, active) if remembered.forwards else None
        if way is not None and way.kind == "nat":
            rules += _rules(remembered.forwards, way, active)
    return sorted(rules, key=lambda rule: (rule.protocol, rule.host_port, rule.address or "", rule.guest_ip))


def _rules(wanted: Iterable[Forward], way: Way, active: dict[str, Network]) -> list[Rule]:
    network = active[way.network or ""]
    ip = network.reserved(way.mac or "")
    addressing = network.holding(ipaddress.ip_address(ip)) if ip is not None else None
    if ip is None or addressing is None or network.bridge is None:
        return []
    return [
        Rule(
            forward.protocol,
            None if forward.address == "0.0.0.0" else forward.address,
            forward.host_port,
            ip,
            forward.guest_port,
            network.bridge,
            str(addressing.subnet),
        )
        for forward in wanted
        if forward.address is None or ":" not in forward.address
    ]


# ---------------------------------------------------------------- looking


def rows(hypervisor: Hypervisor, vm: str | None = None) -> list[dict[str, Any]]:
    """What is published, and whether it is in force.

    ``{vm, protocol, address, host_port, guest_ip, guest_port, active, via, reason}``: ``active`` is None
    where it cannot be seen from here, ``reason`` says why it is not True.
    """
    from kvmctl.operations import port_state

    return port_state.rows(hypervisor, vm)


def _named(row: dict[str, Any], wanted: Iterable[Forward]) -> bool:
    return any(
        (row["protocol"], row["host_port"], row["guest_port"]) == (f.protocol, f.host_port, f.guest_port)
        for f in wanted
    )


def _way(hypervisor: Hypervisor, domain: libvirt.virDomain) -> Way:
    way = way_of(hypervisor, _tree(domain))
    if way is None:
        raise Refused(
            f"{domain.name()} is neither behind NAT nor in user networking, so no port of the host leads to it",
            "it is reached at its own address: 'kvmctl nic list' shows it",
        )
    return way


def _tree(domain: libvirt.virDomain) -> xml.Element:
    return xml.parse(domain.XMLDesc(0), "domain", "domain")
