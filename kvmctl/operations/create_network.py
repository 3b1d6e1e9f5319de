"""A new VM's network cards: which, where they lead, what must be made for them."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import UsageProblem
from kvmctl.model import nic as wires
from kvmctl.model.metadata import Forward, Reservation
from kvmctl.operations.undo import Undo
from kvmctl.preflight import cards as all_cards
from kvmctl.preflight import nics as preflight


class Choice(NamedTuple):
    """The cards; the networks to start and the addresses to reserve for them; what the user should know."""

    nics: tuple[wires.Nic, ...]
    start: tuple[str, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    warnings: tuple[str, ...] = ()


def choose(
    hypervisor: Hypervisor,
    wanted: Sequence[wires.Nic] | None,
    forwards: Sequence[Forward],
    model: str,
    uuid: str | None = None,
) -> Choice:
    """The cards that were asked for, or one that gets the guest out; ``model`` for those that name none.

    ``uuid`` is the VM's where it exists already (half made by a process that was killed). Raises what
    preflight.nics.check() and ports.check() raise; changes nothing.
    """
    cards = cache(lambda: tuple(all_cards.everywhere(hypervisor)))
    if wanted is None:
        from kvmctl.operations import networks

        out = not hypervisor.is_session and networks.find_or_none(hypervisor, "default") is not None
        wanted = (wires.NetworkNic("default", nat=True) if out else wires.UserNic(),)
    chosen: list[wires.Nic] = []
    start: dict[str, None] = {}
    kept: list[Reservation] = []
    warnings: dict[str, None] = {}
    for asked in wanted:
        nic = asked._replace(model=asked.model or model)
        findings = preflight.check(hypervisor, nic, cards, vm=uuid)
        warnings |= dict.fromkeys((*findings.warnings, *findings.notes))
        if nic.ip is not None and nic.mac is None:
            nic = nic._replace(mac=preflight.free_mac(cards(), [other.mac for other in chosen if other.mac]))
        if isinstance(nic, wires.NetworkNic):
            what, running = preflight.read_network(hypervisor, nic.network)
            if not running:
                start[nic.network] = None
            if nic.ip is not None and what.reserved(nic.mac or "") != nic.ip:
                from kvmctl.operations import reservations

                reservations.check(hypervisor, nic.network, nic.mac or "", nic.ip)
                kept.append(Reservation(nic.network, nic.ip, None if ":" in nic.ip else nic.mac))
        chosen.append(nic)
    _refuse_twins(chosen)
    if forwards:
        _check_forwards(hypervisor, chosen, forwards)
    return Choice(tuple(chosen), tuple(start), tuple(kept), tuple(warnings))


def _refuse_twins(nics: Sequence[wires.Nic]) -> None:
    """What each card may have alone, two of one guest may not have either."""
    alone = [nic.dev for nic in nics if isinstance(nic, wires.MacvtapNic) and nic.mode == "passthrough"]
    for device in alone:
        if sum(isinstance(nic, wires.MacvtapNic) and nic.dev == device for nic in nics) > 1:
            raise UsageProblem(f"two cards over {device} cannot be, with one of them in passthrough mode")


def _check_forwards(hypervisor: Hypervisor, nics: Sequence[wires.Nic], forwards: Sequence[Forward]) -> None:
    from kvmctl.operations import ports

    for nic in nics:
        if isinstance(nic, wires.UserNic):
            ports.check(hypervisor, ports.Way("user"), forwards)
            return
        if isinstance(nic, wires.NetworkNic):
            what, _running = preflight.read_network(hypervisor, nic.network)
            if what.mode in ports.BEHIND_HOST:
                ports.check(hypervisor, ports.Way("nat", nic.mac, nic.network), forwards)
                return
    raise UsageProblem("-p publishes ports of a guest on --net user or --net nat; this one is reached directly")


def reserve(hypervisor: Hypervisor, name: str, wanted: Sequence[Reservation], undo: Undo) -> None:
    """Have the networks keep the addresses for the VM ``name``; undone where a later step fails."""
    if not wanted:
        return
    # Imported late: most guests reserve nothing.
    from kvmctl.operations import reservations

    for reservation in wanted:
        with undo.step():
            made, new = reservations.reserve(
                hypervisor, reservation.network, reservation.mac or "", reservation.ip, name
            )
            if new:
                undo.add(f"give the address {made.ip} back", _release(hypervisor, made))


def _release(hypervisor: Hypervisor, made: Reservation) -> Callable[[], object]:
    from kvmctl.operations import reservations

    return lambda: reservations.release(hypervisor, made)


def publish(hypervisor: Hypervisor, domain: libvirt.virDomain, forwards: Sequence[Forward], undo: Undo) -> None:
    """Publish the running guest's ports, which its metadata holds already."""
    if not forwards:
        return
    # Imported late: most guests publish nothing.
    from kvmctl.operations import forwards as user_forwards
    from kvmctl.operations import ports

    with translated(hypervisor.uri):
        if ports.through_qemu(hypervisor, domain):
            for forward in forwards:
                user_forwards.add(domain, forward)
            return
        undo.add("take back the published ports", lambda: ports.unpublish_all(hypervisor, domain))
        ports.publish(hypervisor, domain, forwards)
