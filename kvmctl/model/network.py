"""A libvirt network: what kvmctl reads of one, and the ``<network>`` of a new one."""

import ipaddress
from typing import Literal, NamedTuple

from kvmctl.model import xml

Mode = Literal["nat", "route", "isolated", "open", "bridge", "macvtap"]
MODES: tuple[Mode, ...] = ("nat", "route", "isolated", "open", "bridge", "macvtap")
# Those in which libvirt makes the bridge, gives it an address and runs dnsmasq on it.
OWN_BRIDGE: tuple[str, ...] = ("nat", "route", "isolated", "open")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class Range(NamedTuple):
    """The first and the last address that DHCP gives out."""

    first: Address
    last: Address

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class Host(NamedTuple):
    """An address that DHCP keeps for one card. For IPv6 libvirt may know the guest by name instead of MAC."""

    ip: str
    mac: str | None = None
    name: str | None = None


class Addressing(NamedTuple):
    """One subnet: the host's own address in it, its DHCP ranges and reservations."""

    gateway: Address
    subnet: Subnet
    ranges: tuple[Range, ...] = ()
    hosts: tuple[Host, ...] = ()


class Network(NamedTuple):
    """A network as libvirt has it. ``mode`` is one of MODES, or libvirt's word for what kvmctl does not make."""

    name: str
    mode: str
    uuid: str | None = None
    bridge: str | None = None
    devices: tuple[str, ...] = ()
    macvtap_mode: str | None = None
    domain: str | None = None
    addressing: tuple[Addressing, ...] = ()
    # Of a bridge that libvirt makes: whether it looks for loops, and the seconds it was told to listen for them.
    stp: bool = True
    delay: int = 0

    @property
    def opening_seconds(self) -> int:
        """How long a new port of libvirt's own bridge lets nothing through: it listens first, and learns as long.

        The kernel makes it two seconds each where it was told less (br_stp_start and BR_MIN_FORWARD_DELAY in Linux's
        net/bridge).
        """
        return 2 * max(self.delay, 2) if self.stp and self.mode in OWN_BRIDGE else 0

    @property
    def subnets(self) -> list[Subnet]:
        """Its subnets, IPv4 and IPv6, in libvirt's order."""
        return [addressing.subnet for addressing in self.addressing]

    def holding(self, address: Address) -> Addressing | None:
        """The addressing whose subnet ``address`` is in."""
        return next((a for a in self.addressing if address in a.subnet), None)

    def reserved(self, mac: str, version: int = 4) -> str | None:
        """The address of IP ``version`` that is kept for the card ``mac``."""
        for addressing in self.addressing:
            for host in addressing.hosts:
                if addressing.subnet.version == version and host.mac is not None and host.mac.lower() == mac.lower():
                    return host.ip
        return None


def from_element(root: xml.Element) -> Network:
    """What a ``<network>`` says; addresses in it that are none are left out."""
    forward = root.find("forward")
    bridge = root.find("bridge")
    libvirt_mode = forward.get("mode", "nat") if forward is not None else None
    devices = tuple(
        name for name in (element.get("dev") for element in root.iterfind("forward/interface")) if name is not None
    )
    if forward is not None and not devices and forward.get("dev"):
        devices = (forward.get("dev", ""),)
    mode, macvtap_mode = _mode(libvirt_mode, bridge is not None)
    domain = root.find("domain")
    return Network(
        name=root.findtext("name") or "",
        mode=mode,
        uuid=root.findtext("uuid"),
        bridge=bridge.get("name") if bridge is not None else None,
        devices=devices,
        macvtap_mode=macvtap_mode,
        domain=domain.get("name") if domain is not None else None,
        addressing=tuple(found for found in map(_addressing, root.iterfind("ip")) if found is not None),
        stp=bridge is None or bridge.get("stp") != "off",
        delay=_whole(bridge.get("delay") if bridge is not None else None),
    )


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _mode(forward: str | None, has_bridge: bool) -> tuple[str, str | None]:
    """kvmctl's word for libvirt's forward mode, and the macvtap mode where it is one."""
    if forward is None:
        return "isolated", None
    if forward == "bridge" and has_bridge:
        return "bridge", None
    if forward in ("bridge", "vepa", "private", "passthrough"):
        return "macvtap", forward
    return forward, None


def _addressing(element: xml.Element) -> Addressing | None:
    mask = element.get("prefix") or element.get("netmask")
    try:
        interface = ipaddress.ip_interface(f"{element.get('address')}/{mask}" if mask else element.get("address", ""))
    except ValueError:
        return None
    ranges = []
    for found in element.iterfind("dhcp/range"):
        try:
            ranges.append(
                Range(ipaddress.ip_address(found.get("start", "")), ipaddress.ip_address(found.get("end", "")))
            )
        except ValueError:
            continue
    hosts = tuple(
        Host(found.get("ip", ""), found.get("mac"), found.get("name"))
        for found in element.iterfind("dhcp/host")
        if found.get("ip")
    )
    return Addressing(interface.ip, interface.network, tuple(ranges), hosts)


def to_element(network: Network) -> xml.Element:
    """``<network>`` for virNetworkDefineXML, in the order of libvirt's schema. Its mode must be one of MODES."""
    root = xml.new("network")
    xml.add(root, "name", network.name)
    if network.mode != "isolated":
        root.append(_forward(network))
    if network.mode == "bridge":
        xml.add(root, "bridge", name=network.bridge)
    elif network.mode in OWN_BRIDGE:
        # Without a name libvirt takes the first free virbrN; stp and delay are its own defaults.
        xml.add(root, "bridge", name=network.bridge, stp="on", delay=0)
    if network.domain is not None:
        xml.add(root, "domain", name=network.domain, localOnly="yes")
    for addressing in network.addressing:
        ip = xml.add(
            root,
            "ip",
            family="ipv6" if addressing.subnet.version == 6 else "ipv4",
            address=addressing.gateway,
            prefix=addressing.subnet.prefixlen,
        )
        if addressing.ranges or addressing.hosts:
            dhcp = xml.add(ip, "dhcp")
            for given in addressing.ranges:
                xml.add(dhcp, "range", start=given.first, end=given.last)
            for host in addressing.hosts:
                dhcp.append(host_element(host))
    return root


def _forward(network: Network) -> xml.Element:
    if network.mode == "macvtap":
        forward = xml.new("forward", mode=network.macvtap_mode or "bridge")
        for device in network.devices:
            xml.add(forward, "interface", dev=device)
        return forward
    forward = xml.new("forward", mode=network.mode, dev=network.devices[0] if network.devices else None)
    if network.mode == "nat" and any(subnet.version == 6 for subnet in network.subnets):
        # Otherwise libvirt only routes the IPv6 half of a NAT network, and nothing outside knows the way back.
        xml.add(forward, "nat", ipv6="yes")
    return forward


def host_element(host: Host) -> xml.Element:
    """``<host>`` as it stands in ``<dhcp>`` and as virNetworkUpdate takes it."""
    return xml.new("host", mac=host.mac, name=host.name, ip=host.ip)
