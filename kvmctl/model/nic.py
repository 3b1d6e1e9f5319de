"""A guest's network card: what ``--net`` says, and the ``<interface>`` that libvirt reads.

A card without a model or MAC leaves the choice to whoever builds the guest (and after that to libvirt,
which would take rtl8139 and a MAC of its own). ``inbound`` and ``outbound`` are bytes a second into the guest and out
of it; 0 is no limit.
"""

import re
from typing import Literal, NamedTuple, cast, get_args

from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.names import harmless
from kvmctl.model.units import parse_size

Model = Literal["virtio", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k_pci", "vmxnet3"]
MacvtapMode = Literal["bridge", "vepa", "private", "passthrough"]
MODELS: tuple[str, ...] = get_args(Model)
MACVTAP_MODES: tuple[str, ...] = get_args(MacvtapMode)
GRAMMAR = (
    "write nat[:NETWORK], bridge:BR, macvtap:DEV[:MODE], network:NAME, user or none, "
    "each with ,model= ,mac= ,ip= ,in= or ,out="
)

# IFNAMSIZ in linux/if.h is 16 with the final NUL.
LONGEST_INTERFACE = 15
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


class UserNic(NamedTuple):
    """QEMU's own user networking: out without any right, in only by published ports."""

    model: str | None = None
    mac: str | None = None
    ip: str | None = None
    inbound: int | None = None
    outbound: int | None = None


class NetworkNic(NamedTuple):
    """A card in a libvirt network; ``nat`` where the user asked for NAT, so that another kind is an error."""

    network: str = "default"
    nat: bool = False
    model: str | None = None
    mac: str | None = None
    ip: str | None = None
    inbound: int | None = None
    outbound: int | None = None


class BridgeNic(NamedTuple):
    """A card on an existing bridge of the host."""

    bridge: str
    model: str | None = None
    mac: str | None = None
    ip: str | None = None
    inbound: int | None = None
    outbound: int | None = None


class MacvtapNic(NamedTuple):
    """A card with a macvtap device over the host's device ``dev``."""

    dev: str
    mode: MacvtapMode = "bridge"
    model: str | None = None
    mac: str | None = None
    ip: str | None = None
    inbound: int | None = None
    outbound: int | None = None


Nic = UserNic | NetworkNic | BridgeNic | MacvtapNic


def parse_nic(text: str, model: str | None = None) -> Nic | None:
    """The card that ``--net TEXT`` asks for, None for ``none``; ``model`` is the one where TEXT names none.

    Raises UsageProblem for what is not in the grammar, a MAC no card may have, a name no interface can
    have, or a reservation (``ip=``) where no DHCP server of libvirt's could hold it.
    """
    place, *settings = text.split(",")
    kind, _, rest = place.partition(":")
    options = _options(text, settings)
    if kind == "none":
        if rest or options:
            raise UsageProblem(f"--net {_shown(text)}: 'none' takes nothing after it")
        return None
    nic = _place(text, kind, rest)
    address = options.get("ip")
    if address is not None and not isinstance(nic, NetworkNic):
        raise UsageProblem(
            f"--net {_shown(text)}: only a network of libvirt's has a DHCP server to reserve an address in",
            "use nat or network:NAME, or set the address within the guest",
        )
    chosen = options.get("model", model)
    return nic._replace(
        model=check_model(chosen) if chosen is not None else None,
        mac=check_mac(options["mac"]) if "mac" in options else None,
        ip=check_address(address) if address is not None else None,
        inbound=_rate(text, nic, options.get("in")),
        outbound=_rate(text, nic, options.get("out")),
    )


def _rate(text: str, nic: Nic, said: str | None) -> int | None:
    if said is None:
        return None
    rate = 0 if said == "0" else parse_size(said)
    if rate and isinstance(nic, UserNic):
        raise UsageProblem(
            f"--net {_shown(text)}: QEMU's user networking has no rate limits", "use nat, or leave it out"
        )
    if 0 < rate < 1024:
        raise UsageProblem(f"--net {_shown(text)}: the least rate is 1 KiB a second")
    # libvirt counts in KiB.
    return rate // 1024 * 1024


def _place(text: str, kind: str, rest: str) -> Nic:
    """The card without its options; ``rest`` is what follows ``kind:``."""
    if kind == "user" and not rest:
        return UserNic()
    if kind == "nat":
        if text.startswith("nat:") and not rest:
            raise UsageProblem(f"--net {_shown(text)}: no network is named after 'nat:'", GRAMMAR)
        return NetworkNic(check_network_name(rest) if rest else "default", nat=True)
    if kind == "network":
        return NetworkNic(check_network_name(rest))
    if kind == "bridge":
        return BridgeNic(check_interface(rest, "bridge"))
    if kind == "macvtap":
        device, _, mode = rest.partition(":")
        return MacvtapNic(check_interface(device, "device"), check_macvtap_mode(mode) if ":" in rest else "bridge")
    raise UsageProblem(f"--net {_shown(text)} is no network that kvmctl knows", GRAMMAR)


def _options(text: str, settings: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in ("model", "mac", "ip", "in", "out") or not equals or not value:
            raise UsageProblem(
                f"--net {_shown(text)}: {_shown(setting)} is none of model=, mac=, ip=, in= and out=", GRAMMAR
            )
        if key in found:
            raise UsageProblem(f"--net {_shown(text)}: {key}= stands there twice")
        found[key] = value
    return found


def _shown(text: str) -> str:
    return repr(harmless(text if len(text) <= 60 else text[:57] + "..."))


def check_model(model: str) -> Model:
    """``model`` if QEMU's guests can have it."""
    if model not in MODELS:
        raise UsageProblem(f"{_shown(model)} is no NIC model that kvmctl knows", f"one of {', '.join(MODELS)}")
    return cast(Model, model)


def check_macvtap_mode(mode: str) -> MacvtapMode:
    """``mode`` if macvtap has it."""
    if mode not in MACVTAP_MODES:
        raise UsageProblem(f"{_shown(mode)} is no macvtap mode", f"one of {', '.join(MACVTAP_MODES)}")
    return cast(MacvtapMode, mode)


def check_mac(mac: str) -> str:
    """``mac`` in lower case, if a card may have it: six bytes, neither multicast nor all zero."""
    lowered = mac.lower()
    if not _MAC.match(lowered):
        raise UsageProblem(f"{_shown(mac)} is not a MAC address", "write it like 52:54:00:12:34:56")
    if lowered == "00:00:00:00:00:00":
        raise UsageProblem("a card cannot have the MAC address 00:00:00:00:00:00", "leave mac= out for a random one")
    if int(lowered[:2], 16) & 1:
        raise UsageProblem(
            f"{lowered} is a multicast MAC address (its first byte is odd), which no card may have",
            "use an even first byte, like 52:54:00:…",
        )
    return lowered


def check_interface(name: str, what: str = "interface") -> str:
    """``name`` if a network interface of the host can be called that, and nobody's shell could mistake it."""
    if not name:
        raise UsageProblem(f"no {what} is named", GRAMMAR)
    if len(name.encode()) > LONGEST_INTERFACE:
        raise UsageProblem(
            f"{_shown(name)} is too long for a {what}: Linux allows {LONGEST_INTERFACE} bytes", "'ip link' lists them"
        )
    if not _INTERFACE.match(name):
        raise UsageProblem(
            f"{_shown(name)} cannot be the name of a {what}: letters, digits, '_', '.', '@' and '-' only",
            "'ip link' lists them",
        )
    return name


def check_network_name(name: str) -> str:
    """``name`` if a libvirt network can be called that. Other tools' names are looser than kvmctl's own."""
    if not name:
        raise UsageProblem("no network is named", "'kvmctl net list' shows those there are")
    if len(name) > 255 or "/" in name or harmless(name) != name:
        raise UsageProblem(f"{_shown(name)} cannot be the name of a network", "'kvmctl net list' shows those there are")
    return name


def check_address(text: str) -> str:
    """``text`` as an IPv4 or IPv6 address in its usual form, if one guest can have it."""
    # Imported late, as in the other places that a new VM passes: most are given no address.
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageProblem(f"{_shown(text)} is not an IP address", "write it like 192.168.122.50") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise UsageProblem(f"{_shown(text)} has a zone, which a reservation cannot have")
    if address.is_multicast or address.is_unspecified or address.is_loopback or str(address) == "255.255.255.255":
        raise UsageProblem(f"no guest can have the address {address}", "give one of the network's own")
    return str(address)


def random_mac() -> str:
    """A new MAC with QEMU's and libvirt's prefix 52:54:00; whether somebody has it already is not known here."""
    # Imported late: mostly libvirt chooses the address.
    import secrets

    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def to_element(nic: Nic) -> xml.Element:
    """``<interface>`` as libvirt takes it, for a guest or for plugging in. Its reservation is not in it."""
    if isinstance(nic, UserNic):
        element = xml.new("interface", type_="user")
    elif isinstance(nic, NetworkNic):
        element = xml.new("interface", type_="network")
    elif isinstance(nic, BridgeNic):
        element = xml.new("interface", type_="bridge")
    else:
        element = xml.new("interface", type_="direct")
    if nic.mac is not None:
        xml.add(element, "mac", address=nic.mac)
    if isinstance(nic, NetworkNic):
        xml.add(element, "source", network=nic.network)
    elif isinstance(nic, BridgeNic):
        xml.add(element, "source", bridge=nic.bridge)
    elif isinstance(nic, MacvtapNic):
        xml.add(element, "source", dev=nic.dev, mode=nic.mode)
    if nic.model is not None:
        xml.add(element, "model", type_=nic.model)
    if nic.inbound or nic.outbound:
        band = xml.add(element, "bandwidth")
        for side, rate in (("inbound", nic.inbound), ("outbound", nic.outbound)):
            if rate:
                xml.add(band, side, average=rate // 1024)
    return element
