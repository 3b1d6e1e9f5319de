"""Whether a network card can be plugged in where it shall be: looked at before anything is touched."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, NotFound, Refused, UsageProblem
from kvmctl.model import xml
from kvmctl.model.nic import BridgeNic, NetworkNic, Nic, UserNic, random_mac
from kvmctl.preflight.cards import Card

if TYPE_CHECKING:
    # Imported late below: a card on user networking has nothing to do with the host's network.
    from kvmctl.model.network import Network
    from kvmctl.preflight.hostnet import HostNetwork

MACVTAP_NOTE = (
    "the host itself and a guest on macvtap cannot reach each other; "
    "give the guest a second card (--net nat) for that, or use a bridge"
)


class Findings(NamedTuple):
    """What holds though it is no error: ``warnings`` to think about, ``notes`` to know."""

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(hypervisor: Hypervisor, nic: Nic, cards: Callable[[], Sequence[Card]], *, vm: str | None = None) -> Findings:
    """Look whether ``nic`` can be a card of ``vm`` (its UUID; None for a new VM).

    ``cards`` gives all cards there are; it is called only where it matters who has what.

    Raises NotFound for a network, bridge or device that is not there, UsageProblem for one of another
    kind, Conflict for a MAC that somebody has, Refused for what would take something away from others.
    """
    if isinstance(nic, UserNic) and nic.mac is None:
        return Findings()
    from kvmctl.preflight import hostnet

    if nic.mac is not None:
        check_mac_free(nic.mac, cards(), hostnet.look(hypervisor))
    if isinstance(nic, UserNic):
        return Findings()
    if isinstance(nic, NetworkNic):
        return _in_network(hypervisor, nic, cards, vm)
    host = hostnet.look(hypervisor)
    if isinstance(nic, BridgeNic):
        hostnet.check_bridge(host, nic.bridge)
        return Findings(warnings=_slow(nic.model, f"the bridge {nic.bridge}"))
    if hypervisor.is_session:
        raise _no_rights(hypervisor)
    hostnet.check_macvtap(host, nic.dev, nic.mode)
    check_device_free(nic.dev, nic.mode, cards(), vm)
    return Findings(warnings=_slow(nic.model, f"macvtap over {nic.dev}"), notes=(MACVTAP_NOTE,))


def _no_rights(hypervisor: Hypervisor) -> Refused:
    return Refused(
        f"{hypervisor.uri} runs without the rights to make this kind of network",
        "use --net user there, or -c qemu:///system",
    )


def _in_network(
    hypervisor: Hypervisor, nic: NetworkNic, cards: Callable[[], Sequence[Card]], vm: str | None
) -> Findings:
    from kvmctl.model.network import OWN_BRIDGE

    what, _running = read_network(hypervisor, nic.network)
    if hypervisor.is_session and what.mode != "bridge":
        raise _no_rights(hypervisor)
    if nic.nat and what.mode != "nat":
        raise UsageProblem(
            f"the network {nic.network} is no NAT network but {what.mode}", f"write --net network:{nic.network}"
        )
    if nic.ip is not None and what.mode not in OWN_BRIDGE:
        raise UsageProblem(
            f"the network {nic.network} ({what.mode}) has no DHCP server of libvirt's to reserve {nic.ip} in",
            "set the address within the guest",
        )
    warnings: list[str] = []
    notes: list[str] = []
    if what.mode == "macvtap":
        notes.append(MACVTAP_NOTE)
        if what.macvtap_mode == "passthrough":
            _pool_has_room(what, cards(), vm)
    if what.mode in ("bridge", "macvtap"):
        warnings.extend(_slow(nic.model, f"the network {nic.network} ({what.mode})"))
    if what.mode == "bridge" and what.bridge is not None:
        from kvmctl.preflight import hostnet

        hostnet.check_bridge(hostnet.look(hypervisor), what.bridge)
    return Findings(tuple(warnings), tuple(notes))


def read_network(hypervisor: Hypervisor, name: str) -> "tuple[Network, bool]":
    """The network ``name`` and whether it runs. Raises NotFound."""
    from kvmctl.model import network as network_model

    with translated(hypervisor.uri):
        try:
            network = hypervisor.conn.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if not is_missing(error):
                raise
            raise NotFound(
                f"no network {name[:100]!a} on {hypervisor.uri}",
                "'kvmctl net list' shows those there are, 'kvmctl net create' makes one; --net user needs none",
            ) from error
        return network_model.from_element(xml.parse(network.XMLDesc(0), "network")), bool(network.isActive())


def _pool_has_room(what: "Network", cards: Iterable[Card], vm: str | None) -> None:
    """In a passthrough network each running guest has a device of the pool for itself."""
    used = {card.actual: card.vm for card in cards if card.live and card.actual in what.devices and card.uuid != vm}
    if what.devices and len(used) >= len(what.devices):
        holders = ", ".join(f"{device} by {holder}" for device, holder in sorted(used.items(), key=str))
        raise Refused(
            f"every device of the network {what.name} is in use ({holders}), and passthrough shares none",
            "stop one of them, or give the network another device",
        )


def check_device_free(device: str, mode: str, cards: Iterable[Card], vm: str | None = None) -> None:
    """Raise Refused where macvtap in ``mode`` over ``device`` meets another VM's: passthrough shares with nobody.

    libvirt would tell only when the second guest starts, and then as "Invalid argument".
    """
    for card in cards:
        over_it = (card.kind == "direct" and card.source == device) or (card.live and card.actual == device)
        if not over_it or card.uuid == vm:
            continue
        if mode == "passthrough" or card.mode == "passthrough":
            how = "in passthrough mode" if card.mode == "passthrough" else f"in {card.mode or 'vepa'} mode"
            raise Refused(
                f"{device} is in use by {card.vm} {how}, and passthrough shares a device with nobody",
                "use another device, or another macvtap mode for both",
            )


def check_mac_free(mac: str, cards: Iterable[Card], host: "HostNetwork | None") -> None:
    """Raise Conflict, naming who has it, where ``mac`` is another card's or one of the host's."""
    for card in cards:
        if card.mac == mac:
            raise Conflict(f"the MAC address {mac} is {card.vm}'s already", "leave mac= out for a free one")
    for link in host.links.values() if host is not None else ():
        if link.mac == mac and link.kind not in ("tun", "macvtap"):
            raise Conflict(f"the MAC address {mac} is that of the host's {link.name}", "leave mac= out for a free one")


def free_mac(cards: Iterable[Card], also: Iterable[str] = ()) -> str:
    """A random MAC that none of ``cards`` and of ``also`` has."""
    taken = {card.mac for card in cards} | set(also)
    mac = random_mac()
    while mac in taken:
        mac = random_mac()
    return mac


def _slow(model: str | None, where: str) -> tuple[str, ...]:
    if model not in ("rtl8139", "ne2k_pci", "pcnet"):
        return ()
    return (
        f"{model} is an old, slow card: on {where} the guest gets a fraction of the line; "
        "use model=virtio where the guest has a driver for it, else e1000e",
    )


def check_start(domain: libvirt.virDomain, cards: Callable[[], Sequence[Card]]) -> None:
    """Before a start: Refused where the VM's macvtap device is a running guest's alone, or shall be its alone."""
    tree = xml.parse(domain.XMLDesc(0), "domain", "domain")
    for interface in tree.iterfind("devices/interface[@type='direct']"):
        source = interface.find("source")
        if source is not None and source.get("dev"):
            running = [card for card in cards() if card.live]
            check_device_free(source.get("dev", ""), source.get("mode", "vepa"), running, domain.UUIDString())
