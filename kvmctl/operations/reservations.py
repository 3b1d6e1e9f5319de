"""Addresses that a network's DHCP server keeps for one card (virNetworkUpdate)."""

import contextlib
import ipaddress
from collections.abc import Collection, Iterator

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, KvmctlError, UsageProblem
from kvmctl.model import xml
from kvmctl.model.metadata import Reservation
from kvmctl.model.network import OWN_BRIDGE, Address, Addressing, Host, Network, host_element
from kvmctl.operations import networks


def reserve(
    hypervisor: Hypervisor,
    network: str,
    mac: str,
    ip: str | None = None,
    name: str | None = None,
    *,
    passing: bool = False,
) -> tuple[Reservation, bool]:
    """Keep ``ip`` for the card ``mac``, and whether that was new.

    ``ip`` None: the IPv4 address that is kept for it already, or is leased to it, or else a free one of the
    DHCP range. ``name`` is the host name; for IPv6 it is what the guest is known by. ``passing``: in the running
    network alone, not in its saved definition. Raises UsageProblem for an address that is none of the network's, and
    Conflict, naming who has it, for one that is taken.
    """
    found = networks.find(hypervisor, network)
    with translated(hypervisor.uri):
        what = networks.read(found)
        if what.mode not in OWN_BRIDGE:
            raise UsageProblem(
                f"the network {network} ({what.mode}) has no DHCP server of libvirt's to reserve an address in"
            )
        kept = what.reserved(mac)
        if kept is not None and (ip is None or ip == kept):
            return Reservation(network, kept, mac), False
        chosen = ipaddress.ip_address(ip) if ip is not None else _choose(found, what, mac)
        _refuse_other(what, mac, chosen)
        _check_free(hypervisor, found, what, mac, chosen)
        host = Host(str(chosen), mac, None) if chosen.version == 4 else Host(str(chosen), None, name)
        made = Reservation(network, str(chosen), mac if chosen.version == 4 else None)
        try:
            flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if passing else _everywhere(found)
            _update(found, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, what, host, flags)
        except BaseException:
            # It may have been done all the same, or half; nobody had the address before.
            with contextlib.suppress(KvmctlError, libvirt.libvirtError):
                release(hypervisor, made)
            raise
    return made, True


def check(hypervisor: Hypervisor, network: str, mac: str, ip: str) -> None:
    """Raise what reserve() would raise for this address, and change nothing."""
    found = networks.find(hypervisor, network)
    with translated(hypervisor.uri):
        what = networks.read(found)
        _refuse_other(what, mac, ipaddress.ip_address(ip))
        _check_free(hypervisor, found, what, mac, ipaddress.ip_address(ip))


def release(hypervisor: Hypervisor, reservation: Reservation) -> bool:
    """Give the address back. False where it is not kept any more, or the network is gone."""
    with translated(hypervisor.uri):
        try:
            found = hypervisor.conn.networkLookupByName(reservation.network)
        except libvirt.libvirtError as error:
            if is_missing(error):
                return False
            raise
        what = networks.read(found)
        host = _kept(what, reservation)
        flags = 0
        # One that was made in passing, or changed by virsh, is only here or only there.
        if host is not None and found.isActive():
            flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
        if found.isPersistent():
            saved = _kept(networks.read(found, libvirt.VIR_NETWORK_XML_INACTIVE), reservation)
            flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG if saved is not None else 0
            host = host or saved
        if host is None or not flags:
            return False
        _update(found, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, what, host, flags)
    return True


def _kept(what: Network, reservation: Reservation) -> Host | None:
    """The network's entry for it."""
    for addressing in what.addressing:
        for host in addressing.hosts:
            same_card = reservation.mac is None or (host.mac or "").lower() == reservation.mac.lower()
            if host.ip == reservation.ip and same_card:
                return host
    return None


def _refuse_other(what: Network, mac: str, address: Address) -> None:
    kept = what.reserved(mac)
    if kept is not None and address.version == 4 and kept != str(address):
        raise Conflict(
            f"the network {what.name} keeps {kept} for the card {mac} already", "use that address, or another card"
        )


def _everywhere(network: libvirt.virNetwork) -> int:
    """To change the running and the saved definition together."""
    flags = 0
    if network.isActive():
        flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
    if network.isPersistent():
        flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
    return flags


def _update(network: libvirt.virNetwork, command: int, what: Network, host: Host, flags: int) -> None:
    address = ipaddress.ip_address(host.ip)
    # Which <ip> the host belongs to: libvirt counts all of them, whatever their family.
    parent = next(index for index, addressing in enumerate(what.addressing) if address in addressing.subnet)
    network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, parent, xml.raw(host_element(host)), flags)


def _choose(network: libvirt.virNetwork, what: Network, mac: str) -> Address:
    """The address leased to the card now, or a free one from the end of the IPv4 DHCP range."""
    for ip, holder in _leases(network).items():
        address = ipaddress.ip_address(ip)
        if holder == mac.lower() and address.version == 4 and what.holding(address) is not None:
            return address
    for candidate in free_addresses(network, what):
        return candidate
    raise KvmctlError(
        f"the network {what.name} has no free IPv4 address to reserve", "give one of its subnet with ip=, or widen it"
    )


def free_addresses(network: libvirt.virNetwork, what: Network, taken: Collection[str] = ()) -> Iterator[Address]:
    """The IPv4 addresses that are leased to nobody, kept for nobody and not ``taken``, best first."""
    others = {host.ip for addressing in what.addressing for host in addressing.hosts} | set(_leases(network))
    for addressing in what.addressing:
        if addressing.subnet.version == 4:
            for candidate in _candidates(addressing):
                if str(candidate) not in others and str(candidate) not in taken and candidate != addressing.gateway:
                    yield candidate


def _candidates(addressing: Addressing) -> list[Address]:
    """What could be kept, best first: the last 1024 addresses of the DHCP ranges, else of the subnet."""
    spans = [(int(given.first), int(given.last)) for given in addressing.ranges] or [
        (int(addressing.subnet.network_address) + 2, int(addressing.subnet.broadcast_address) - 1)
    ]
    return [
        ipaddress.ip_address(n) for first, last in reversed(spans) for n in range(last, max(first, last - 1023) - 1, -1)
    ]


def _leases(network: libvirt.virNetwork) -> dict[str, str]:
    """Address to MAC, of the leases that run."""
    if not network.isActive():
        return {}
    return {entry["ipaddr"]: (entry.get("mac") or "").lower() for entry in network.DHCPLeases() if entry.get("ipaddr")}


def _check_free(hypervisor: Hypervisor, network: libvirt.virNetwork, what: Network, mac: str, address: Address) -> None:
    addressing = what.holding(address)
    if addressing is None:
        subnets = ", ".join(map(str, what.subnets)) or "none"
        raise UsageProblem(f"{address} is not in the network {what.name}", f"its subnets: {subnets}")
    broadcast = addressing.subnet.broadcast_address if addressing.subnet.version == 4 else None
    if address in (addressing.gateway, addressing.subnet.network_address, broadcast):
        raise UsageProblem(
            f"{address} is the host's own, the network's or the broadcast address of {addressing.subnet}"
        )
    for host in addressing.hosts:
        if host.ip == str(address):
            raise Conflict(
                f"{address} is kept for {host.mac or host.name} in the network {what.name}", "choose another address"
            )
    holder = _leases(network).get(str(address))
    if holder and holder != mac.lower():
        owner = networks.owners(hypervisor).get(holder)
        raise Conflict(f"{address} is leased to {owner or holder} in the network {what.name}", "choose another address")
