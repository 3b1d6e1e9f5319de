"""What a new network's subnets and DHCP ranges must be. Pure: what the host has is handed in."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvmctl.errors import Conflict, Refused, UsageProblem
from kvmctl.model.names import harmless
from kvmctl.model.network import Address, Addressing, Host, Range, Subnet
from kvmctl.model.nic import check_mac

# libvirt counts a range's addresses in 16 bits (virSocketAddrGetRange in its virsocketaddr.c).
LONGEST_DHCP = 65535
_NO_SUBNET_OF_THESE = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved addresses"),
        ("::/96", "loopback and unspecified addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast"),
    )
)


class Taken(NamedTuple):
    """A subnet that is in use, and by whom: ``the network 'default'``, ``the host's route over eth0``."""

    subnet: Subnet
    by: str


def parse_subnet(text: str) -> Subnet:
    """``text`` as a subnet that a network of libvirt's can have.

    Raises UsageProblem where it is no subnet, has host bits set, is too large or small to be one network
    of guests, or is a range with a meaning of its own.
    """
    shown = _shown(text)
    if "/" not in text:
        raise UsageProblem(f"the subnet {shown} has no prefix length", "write it like 192.168.50.0/24")
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError:
        raise _why_no_subnet(text) from None
    for special, what in _NO_SUBNET_OF_THESE:
        # An address of the other version is in none of them.
        if subnet.prefixlen >= special.prefixlen and subnet.network_address in special:
            raise UsageProblem(f"the subnet {subnet} is for {what}", "use a private one, like 192.168.50.0/24")
    if subnet.version == 4 and not 8 <= subnet.prefixlen <= 30:
        raise UsageProblem(f"the subnet {subnet} is no size for a network of guests", "use a prefix from /8 to /30")
    if subnet.version == 6 and not 64 <= subnet.prefixlen <= 126:
        raise UsageProblem(f"the subnet {subnet} is no size for a network of guests", "use a prefix from /64 to /126")
    return subnet


def _why_no_subnet(text: str) -> UsageProblem:
    shown = _shown(text)
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return UsageProblem(f"{shown} is not a subnet", "write it like 192.168.50.0/24 or fd00:50::/64")
    return UsageProblem(
        f"the subnet {shown} has bits set behind its prefix", f"{interface.network} is the subnet that holds it"
    )


def parse_range(text: str) -> Range:
    """``FIRST-LAST`` as a DHCP range; whether it lies in a subnet is addressing()'s question."""
    first_text, _, last_text = text.partition("-")
    try:
        first, last = ipaddress.ip_address(first_text.strip()), ipaddress.ip_address(last_text.strip())
    except ValueError:
        raise UsageProblem(
            f"{_shown(text)} is not a DHCP range", "write it FIRST-LAST, like 192.168.50.100-192.168.50.200"
        ) from None
    if first.version != last.version:
        raise UsageProblem(f"the DHCP range {_shown(text)} mixes IPv4 and IPv6")
    if int(last) < int(first):
        raise UsageProblem(f"the DHCP range {_shown(text)} runs backwards", f"write {last}-{first}")
    if int(last) - int(first) >= LONGEST_DHCP:
        raise UsageProblem(f"the DHCP range {_shown(text)} has more addresses than libvirt takes ({LONGEST_DHCP})")
    return Range(first, last)


def parse_host(text: str) -> Host:
    """``MAC=IP`` or ``MAC=IP,NAME`` as a reservation."""
    mac, equals, rest = text.partition("=")
    ip, _, name = rest.partition(",")
    if not equals:
        raise UsageProblem(
            f"{_shown(text)} is not a reservation", "write it MAC=IP, like 52:54:00:12:34:56=192.168.50.9"
        )
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        raise UsageProblem(f"the reservation {_shown(text)}: {_shown(ip)} is not an IP address") from None
    if name and not is_host_name(name):
        raise UsageProblem(f"the reservation {_shown(text)}: {_shown(name)} is not a host name")
    checked = check_mac(mac)
    if address.version == 6:
        # DHCPv6 has no MAC in it: libvirt takes a name (or a DUID) there and refuses a MAC.
        if not name:
            raise UsageProblem(
                f"the reservation {_shown(text)}: DHCPv6 knows a guest by its name",
                "write MAC=IP,NAME with the host name that the guest sends",
            )
        return Host(str(address), None, name)
    return Host(str(address), checked, name or None)


def is_host_name(text: str) -> bool:
    """Whether ``text`` is one label or several of letters, digits and hyphens (RFC 1123), 253 characters at most."""
    return len(text) <= 253 and all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
        for label in text.split(".")
    )


def addressing(
    subnets: Sequence[Subnet], ranges: Sequence[Range] | None, hosts: Sequence[Host]
) -> tuple[Addressing, ...]:
    """Each subnet with the host's address (its first), the ranges and reservations that lie in it.

    ``ranges`` None: all of an IPv4 subnet that is left, none of an IPv6 one, whose guests make their own
    addresses (SLAAC). Raises UsageProblem for a range or reservation that lies in none of them, meets
    the host's own address or another.
    """
    for index, subnet in enumerate(subnets):
        for other in subnets[:index]:
            if overlap(subnet, other):
                raise UsageProblem(f"the subnets {other} and {subnet} overlap", "give one of each IP version")
    built = []
    for subnet in subnets:
        gateway = subnet.network_address + 1
        own = [r for r in ranges if r.first in subnet] if ranges is not None else _all_of(subnet)
        for given in own:
            _check_range(given, subnet, gateway)
        kept = tuple(host for host in hosts if ipaddress.ip_address(host.ip) in subnet)
        _check_hosts(kept, subnet, gateway)
        built.append(Addressing(gateway, subnet, tuple(own), kept))
    for given in ranges or ():
        if not any(given.first in subnet for subnet in subnets):
            raise UsageProblem(f"the DHCP range {given} lies outside {_listed(subnets)}")
    for host in hosts:
        if not any(ipaddress.ip_address(host.ip) in subnet for subnet in subnets):
            raise UsageProblem(f"the reserved address {host.ip} lies outside {_listed(subnets)}")
    return tuple(built)


def _check_range(given: Range, subnet: Subnet, gateway: Address) -> None:
    if given.last not in subnet:
        raise UsageProblem(f"the DHCP range {given} ends outside {subnet}")
    if int(given.first) <= int(gateway) <= int(given.last):
        raise UsageProblem(
            f"the DHCP range {given} holds {gateway}, the host's own address there", f"begin it at {gateway + 1}"
        )
    if given.first == subnet.network_address or (subnet.version == 4 and given.last == subnet.broadcast_address):
        raise UsageProblem(f"the DHCP range {given} holds the network's or the broadcast address of {subnet}")


def _check_hosts(hosts: Iterable[Host], subnet: Subnet, gateway: Address) -> None:
    seen: dict[str, Host] = {}
    for host in hosts:
        unusable = {str(gateway): "the host's own", str(subnet.network_address): "the network's own"}
        if subnet.version == 4:
            unusable[str(subnet.broadcast_address)] = "the broadcast"
        if host.ip in unusable:
            raise UsageProblem(f"{host.ip} is {unusable[host.ip]} address in {subnet} and cannot be reserved")
        for key in (host.ip, host.mac or host.ip):
            if key in seen:
                raise UsageProblem(f"{key} is reserved twice")
        seen[host.ip] = host
        if host.mac is not None:
            seen[host.mac] = host


def _all_of(subnet: Subnet) -> list[Range]:
    if subnet.version == 6:
        return []
    last = min(int(subnet.broadcast_address) - 1, int(subnet.network_address) + LONGEST_DHCP)
    return [Range(subnet.network_address + 2, ipaddress.ip_address(last))]


def refuse_overlap(subnets: Iterable[Subnet], taken: Iterable[Taken]) -> None:
    """Raise Refused, naming who has it, where one of ``subnets`` meets what is ``taken``.

    A route to half of all addresses or more is a way out (a default route, or a VPN's pair of /1), not
    somebody's subnet.
    """
    there = [entry for entry in taken if entry.subnet.prefixlen > 1]
    for subnet in subnets:
        for entry in there:
            if overlap(subnet, entry.subnet):
                raise Refused(
                    f"the subnet {subnet} overlaps {entry.subnet}, which is {entry.by}",
                    "choose another with --subnet, or leave it out for a free one",
                )


def free_subnet(taken: Iterable[Taken]) -> Subnet:
    """The first 192.168.N.0/24, then 10.N.0.0/24, that meets nothing ``taken``; Conflict where none is left."""
    there = [entry for entry in taken if entry.subnet.prefixlen > 1]
    for text in (*(f"192.168.{n}.0/24" for n in range(100, 255)), *(f"10.{n}.0.0/24" for n in range(100, 255))):
        subnet = ipaddress.ip_network(text)
        if not any(overlap(subnet, entry.subnet) for entry in there):
            return subnet
    raise Conflict("no free subnet was found", "choose one with --subnet")


def overlap(one: Subnet, other: Subnet) -> bool:
    """Whether they have an address in common."""
    return one.version == other.version and one.overlaps(other)


def _listed(subnets: Sequence[Subnet]) -> str:
    return " and ".join(str(subnet) for subnet in subnets) or "every subnet of the network, for it has none"


def _shown(text: str) -> str:
    return repr(harmless(text if len(text) <= 60 else text[:57] + "..."))
