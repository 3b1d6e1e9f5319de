"""A VM's network cards: list, plug in, pull out, link up and down; running and saved definition together."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, TimedOut, UsageProblem
from kvmctl.model import xml
from kvmctl.model.domain_view import view
from kvmctl.model.nic import NetworkNic, Nic, check_mac, to_element
from kvmctl.operations import addresses, metadata, networks, reservations
from kvmctl.operations.affect import affect
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.undo import Undo
from kvmctl.preflight import cards as all_cards
from kvmctl.preflight import nics as preflight
from kvmctl.preflight.cards import Card
from kvmctl.preflight.nics import Findings

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
DEFAULT_MODEL = "virtio"


@dataclass(frozen=True)
class Attachment:
    """What attach() does: the card with its MAC and model, its XML, and which definitions it goes into."""

    domain: libvirt.virDomain
    vm: str
    nic: Nic
    xml: str
    flags: int
    findings: Findings


def listing(hypervisor: Hypervisor, vm: str) -> list[dict[str, Any]]:
    """The cards of one VM, those of the running definition first.

    ``{mac, model, mode, source, target, link_up, macvtap_mode, ips, reserved, live, saved}``: ``mode`` is a
    word of ``--net`` (or libvirt's type), ``live`` and ``saved`` in which definition the card is.
    """
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri):
        running = bool(domain.isActive())
        live = view(_tree(domain, 0)).nics if running else ()
        saved = view(_tree(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)).nics if domain.isPersistent() else ()
        kinds = {what.name: what for _, what in networks.everything(hypervisor)}
    known = addresses.by_mac(domain) if running else {}
    rows = []
    saved_macs, live_macs = {nic.mac for nic in saved}, {nic.mac for nic in live}
    for nic in (*live, *(nic for nic in saved if nic.mac not in live_macs)):
        network = kinds.get(nic.source or "") if nic.mode == "network" else None
        rows.append(
            {
                "mac": nic.mac,
                "model": nic.model,
                "mode": "nat" if network is not None and network.mode == "nat" else nic.mode,
                "source": nic.source,
                "target": nic.target if nic.mac in live_macs else None,
                "link_up": nic.link_up,
                "macvtap_mode": nic.macvtap_mode or (network.macvtap_mode if network is not None else None),
                "ips": known.get((nic.mac or "").lower(), []),
                "reserved": network.reserved(nic.mac) if network is not None and nic.mac else None,
                "live": nic.mac in live_macs,
                "saved": nic.mac in saved_macs,
            }
        )
    return rows


def complete(nic: Nic, cards: list[Card], also: tuple[str, ...] = ()) -> Nic:
    """``nic`` with a model and a MAC that nobody has (nor is in ``also``), where it was asked for without."""
    return nic._replace(model=nic.model or DEFAULT_MODEL, mac=nic.mac or preflight.free_mac(cards, also))


def plan_attach(hypervisor: Hypervisor, vm: str, nic: Nic | None, *, live: bool, config: bool) -> Attachment:
    """Look whether ``nic`` can be plugged into ``vm``; see preflight.nics.check() for what it raises.

    Neither ``live`` nor ``config``: the running definition where it runs, and the saved one where there is one.
    """
    if nic is None:
        raise UsageProblem("'none' is no card that could be plugged in")
    domain = hypervisor.find(vm)
    cards = list(all_cards.everywhere(hypervisor))
    findings = preflight.check(hypervisor, nic, lambda: cards, vm=domain.UUIDString())
    whole = complete(nic, cards)
    with translated(hypervisor.uri):
        flags = affect(domain, live, config).flags
        if isinstance(whole, NetworkNic) and flags & LIVE and not preflight.read_network(hypervisor, whole.network)[1]:
            raise Conflict(f"the network {whole.network} is not running", f"kvmctl net start {whole.network}")
        return Attachment(domain, domain.name(), whole, xml.text(to_element(whole)), flags, findings)


def attach(hypervisor: Hypervisor, plan: Attachment) -> dict[str, Any]:
    """Plug the card in, with its reservation; where a step fails, nothing of it is left. Returns its row."""
    nic, domain = plan.nic, plan.domain
    assert nic.mac is not None
    kept = definition_kept(domain, f"nic attach {plan.vm} {nic.mac}")
    with translated(hypervisor.uri), kept, Undo() as undo:
        if nic.ip is not None and isinstance(nic, NetworkNic):
            _reserve(hypervisor, plan, nic, undo)
        undo.add(f"pull the card {nic.mac} out again", lambda: _pull(domain, nic.mac or "", plan.flags))
        _plug(domain, plan.xml, plan.flags)
        _check_agreement(domain, nic.mac, plan.flags)
        undo.keep()
    return _row(hypervisor, plan.vm, nic.mac)


def _reserve(hypervisor: Hypervisor, plan: Attachment, nic: NetworkNic, undo: Undo) -> None:
    assert nic.mac is not None
    with undo.step():
        made, new = reservations.reserve(hypervisor, nic.network, nic.mac, nic.ip, plan.vm)
        if new:
            undo.add(f"give the address {made.ip} back", lambda: reservations.release(hypervisor, made))
    if new:
        before = metadata.read(plan.domain)
        undo.add("forget the reservation", lambda: metadata.write(plan.domain, before))
        metadata.write(plan.domain, before._replace(reservations=(*before.reservations, made)))


def _plug(domain: libvirt.virDomain, text: str, flags: int) -> None:
    try:
        domain.attachDeviceFlags(text, flags)
    except libvirt.libvirtError as error:
        if "No more available PCI" in error.get_error_message():
            raise Conflict(
                f"{domain.name()} has no free slot for another card",
                "plug a virtio or e1000e one into a running guest, or stop it and use --config",
            ) from error
        raise


def _pull(domain: libvirt.virDomain, mac: str, flags: int) -> None:
    """Take back an attach that may have been done in one definition, both, or none."""
    for flag in (LIVE, CONFIG):
        if flags & flag:
            element = _find(_tree(domain, _xml_flags(flag)), mac)
            if element is not None:
                domain.detachDeviceFlags(xml.raw(element), flag)


def _check_agreement(domain: libvirt.virDomain, mac: str, flags: int) -> None:
    """What libvirt has now, not what was asked of it: one card with this MAC in each definition."""
    for flag, where in ((LIVE, "running"), (CONFIG, "saved")):
        if flags & flag:
            count = len(_all(_tree(domain, _xml_flags(flag)), mac))
            if count != 1:
                raise KvmctlError(f"{domain.name()} has {count} cards with the MAC {mac} in its {where} definition")


def detach(hypervisor: Hypervisor, vm: str, mac: str, *, live: bool, config: bool, timeout: float) -> dict[str, Any]:
    """Pull the card ``mac`` out: ``{vm, mac, changed}``.

    The running guest must let go of it, so that comes first, and the saved definition follows only then:
    both agree afterwards. Raises NotFound, and TimedOut where the guest did not let go in ``timeout`` seconds.
    """
    mac = check_mac(mac)
    domain = hypervisor.find(vm)
    with translated(hypervisor.uri), definition_kept(domain, f"nic detach {domain.name()} {mac}"):
        flags = affect(domain, live, config).flags
        there = [flag for flag in (LIVE, CONFIG) if flags & flag and _all(_tree(domain, _xml_flags(flag)), mac)]
        if not there:
            raise _no_card(domain, mac)
        if LIVE in there:
            _detach_live(domain, mac, timeout)
        if CONFIG in there:
            element = _find(_tree(domain, _xml_flags(CONFIG)), mac)
            assert element is not None
            domain.detachDeviceFlags(xml.raw(element), CONFIG)
        if not any(card.mac == mac for card in all_cards.of_domain(domain)):
            _give_back(hypervisor, domain, mac)
        return {"vm": domain.name(), "mac": mac, "changed": True}


def _detach_live(domain: libvirt.virDomain, mac: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    element = _find(_tree(domain, 0), mac)
    assert element is not None
    domain.detachDeviceFlags(xml.raw(element), LIVE)
    # libvirt itself waits 5 s and then returns as if all were well; only its XML tells.
    while _find(_tree(domain, 0), mac) is not None:
        if time.monotonic() > end:
            raise TimedOut(
                f"the guest {domain.name()} did not let go of the card {mac} in {timeout:g} s",
                "is it still booting? nothing was changed in the saved definition; try again",
            )
        time.sleep(0.1)


def _give_back(hypervisor: Hypervisor, domain: libvirt.virDomain, mac: str) -> None:
    """Release the reservations that were made for the card, and forget them."""
    before = metadata.read(domain)
    gone = [r for r in before.reservations if (r.mac or "").lower() == mac]
    for reservation in gone:
        reservations.release(hypervisor, reservation)
    if gone:
        kept = tuple(r for r in before.reservations if r not in gone)
        metadata.write(domain, before._replace(reservations=kept))


def link(hypervisor: Hypervisor, vm: str, mac: str, *, up: bool, live: bool, config: bool) -> dict[str, Any]:
    """Plug the card's cable in or out: its row and ``changed``."""
    mac = check_mac(mac)
    domain = hypervisor.find(vm)
    changed = False
    kept = definition_kept(domain, f"nic link {domain.name()} {mac} {'up' if up else 'down'}")
    with translated(hypervisor.uri), kept, Undo() as undo:
        flags = affect(domain, live, config).flags
        seen = False
        for flag in (LIVE, CONFIG):
            element = _find(_tree(domain, _xml_flags(flag)), mac) if flags & flag else None
            if element is None:
                continue
            seen = True
            before = xml.raw(element)
            if _set_link(element, up):
                undo.add("set the link as it was", _update_again(domain, before, flag))
                domain.updateDeviceFlags(xml.raw(element), flag)
                changed = True
        if not seen:
            raise _no_card(domain, mac)
        undo.keep()
    return {**_row(hypervisor, domain.name(), mac), "changed": changed}


def _update_again(domain: libvirt.virDomain, text: str, flag: int) -> Callable[[], object]:
    return lambda: domain.updateDeviceFlags(text, flag)


def _set_link(element: xml.Element, up: bool) -> bool:
    """Change ``<link>`` in the tree; whether that was needed. Without one the link is up."""
    link = element.find("link")
    if (link is None or link.get("state") != "down") == up:
        return False
    if link is None:
        link = xml.add(element, "link")
    link.set("state", "up" if up else "down")
    return True


def _row(hypervisor: Hypervisor, vm: str, mac: str) -> dict[str, Any]:
    return next({"vm": vm, **row} for row in listing(hypervisor, vm) if (row["mac"] or "").lower() == mac)


def _no_card(domain: libvirt.virDomain, mac: str) -> NotFound:
    return NotFound(f"{domain.name()} has no card {mac}", f"'kvmctl nic list {domain.name()}' shows those it has")


def _xml_flags(flag: int) -> int:
    return 0 if flag == LIVE else int(libvirt.VIR_DOMAIN_XML_INACTIVE)


def _tree(domain: libvirt.virDomain, flags: int) -> xml.Element:
    return xml.parse(domain.XMLDesc(flags), "domain", "domain")


def _all(tree: xml.Element, mac: str) -> list[xml.Element]:
    found = []
    for interface in tree.iterfind("devices/interface"):
        element = interface.find("mac")
        if element is not None and element.get("address", "").lower() == mac:
            found.append(interface)
    return found


def _find(tree: xml.Element, mac: str) -> xml.Element | None:
    return next(iter(_all(tree, mac)), None)
