"""An address for each fork before it asks for one, where it will ask a DHCP server of libvirt's.

dnsmasq pings an address for three seconds before it gives it to a card that it does not know (PING_WAIT in its
config.h), one card after the other; what is kept for a card it gives at once. So one is kept for each new card of a
fork whose source has a lease: in the running network alone, noted in the fork's metadata before that, and given back
as soon as the fork has its lease, or with the fork.
"""

import contextlib
import time
from collections.abc import Collection, Sequence

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import clone as copies
from kvmctl.model import xml
from kvmctl.model.metadata import Reservation
from kvmctl.model.network import OWN_BRIDGE, Network
from kvmctl.operations import addresses, networks, reservations
from kvmctl.operations.clone_plan import Copy

# A guest that asks at all does so when the cable is put in, and is answered in no time.
LEASE_SECONDS = 15.0


def choose(hypervisor: Hypervisor, made: Sequence[Copy], out: Collection[str]) -> list[tuple[Reservation, ...]]:
    """For each copy what is to be kept for its cards; nothing is kept yet.

    Nothing for a card whose original has no lease or its cable ``out``, as its guest does not ask for one, nor where
    the range is full.
    """
    known: dict[str, _Choice | None] = {}
    found = []
    for copy in made:
        olds = {new: old for old, new in copy.identity.macs.items()}
        chosen = []
        for mac, network in copies.cards_in_networks(copy.domain):
            if network not in known:
                known[network] = _look(hypervisor, network)
            choice = known[network]
            old = olds.get(mac, mac)
            ip = choice.take(old) if choice is not None and old not in out else None
            if ip is not None:
                chosen.append(Reservation(network, ip, mac))
        found.append(tuple(chosen))
    return found


class _Choice:
    """The addresses of one network that are nobody's, and who has a lease in it."""

    def __init__(self, network: libvirt.virNetwork, what: Network, taken: set[str]) -> None:
        self.leased = {(entry.get("mac") or "").lower() for entry in network.DHCPLeases()}
        self.free = reservations.free_addresses(network, what, taken)

    def take(self, mac: str) -> str | None:
        """One of them for a copy of the card ``mac``."""
        address = next(self.free, None) if mac in self.leased else None
        return str(address) if address is not None else None


def _look(hypervisor: Hypervisor, name: str) -> _Choice | None:
    """None where the network has no DHCP server of libvirt's, or there is nobody to ask."""
    try:
        network = networks.find(hypervisor, name)
        what = networks.read(network)
        if not network.isActive() or what.mode not in OWN_BRIDGE or not any(a.ranges for a in what.addressing):
            return None
        return _Choice(network, what, _talking(hypervisor))
    except (libvirt.libvirtError, KvmctlError):
        # It is about seconds: without it the fork gets its address as any other machine does.
        return None


def _talking(hypervisor: Hypervisor) -> set[str]:
    """The addresses that the host has seen its guests use: some may have been set by hand, amid a DHCP range."""
    guests = []
    with translated(hypervisor.uri):
        for domain in hypervisor.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                guests.append((domain, xml.parse(domain.XMLDesc(0), "domain", "domain")))
            except libvirt.libvirtError as error:
                if not is_missing(error):
                    raise
    seen = addresses.of_many(hypervisor, guests, ("arp",))
    return {address for every in seen.values() for address in addresses.flat(every)}


def keep(hypervisor: Hypervisor, chosen: Sequence[Reservation]) -> None:
    """Keep them for a while. What somebody else has taken meanwhile is passed over: see _look()."""
    for each in chosen:
        assert each.mac is not None
        with contextlib.suppress(KvmctlError):
            reservations.reserve(hypervisor, each.network, each.mac, each.ip, passing=True)


def give_back(hypervisor: Hypervisor, chosen: Sequence[Reservation]) -> None:
    """Keep them no longer."""
    for each in chosen:
        reservations.release(hypervisor, each)


def settle(hypervisor: Hypervisor, chosen: Sequence[Reservation]) -> tuple[Reservation, ...]:
    """Wait until the cards have leases, and give their reservations back; those of a guest that did not ask stay.

    Returns them: they are remembered of the copy, and go with it or with the network's next stop.
    """
    until = time.monotonic() + LEASE_SECONDS
    left = list(chosen)
    while left and time.monotonic() < until:
        for each in [each for each in left if _leased(hypervisor, each)]:
            reservations.release(hypervisor, each)
            left.remove(each)
        if left:
            time.sleep(0.05)
    return tuple(left)


def _leased(hypervisor: Hypervisor, kept: Reservation) -> bool:
    """Whether the card has its lease, or the network is no more."""
    with translated(hypervisor.uri):
        try:
            return bool(hypervisor.conn.networkLookupByName(kept.network).DHCPLeases(kept.mac))
        except libvirt.libvirtError as error:
            if is_missing(error) or error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                return True
            raise
