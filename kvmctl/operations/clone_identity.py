"""Making a forked guest a machine of its own: identity inside first, then a card with a MAC of its own.

Until both are done its network stays cut, so that no two machines with one MAC are ever on one wire.
"""

import time
from collections.abc import Collection
from importlib.resources import files

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import xml
from kvmctl.operations import networks
from kvmctl.operations.agent import Agent
from kvmctl.operations.clone_plan import Copy, Plan
from kvmctl.operations.exec import output_of
from kvmctl.operations.seed import hostname_for

# An agent that answered in the source answers in the copy within a second or two; emulated on a busy machine later.
AGENT_SECONDS = 45.0
# New host keys on an emulated CPU take some seconds.
SCRIPT_SECONDS = 120.0
# A guest lets go of a card within a second; one that does not listen to the request never will.
UNPLUG_SECONDS = 30.0


def cut(hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
    """Take the cables out of the copy's cards. It has not run yet.

    That they are out in its XML is not enough: QEMU takes the state of a card's cable from the memory it loads, where
    it was in (virtio_net_post_load_device in its hw/net/virtio-net.c; its other cards do likewise). And libvirt
    tells QEMU only of a change.
    """
    with translated(hypervisor.uri):
        for card in _cards(domain):
            for state in ("up", "down"):
                _set_cable(card, state)
                domain.updateDeviceFlags(xml.raw(card), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _set_cable(card: xml.Element, state: str) -> None:
    link = card.find("link")
    if link is None:
        link = xml.add(card, "link")
    link.set("state", state)


def give(hypervisor: Hypervisor, plan: Plan, copy: Copy, out: Collection[str] = ()) -> list[str]:
    """Let the copy go on, cut off; give it its identity and its cards. Returns what did not go as it should.

    ``out`` are the MACs of those of its cards whose cable stays out, as it was in the source.

    New keys take seconds where the guest is emulated. Meanwhile its new card is in, the cable out: a bridge that
    looks for loops lets nothing through a new port for some seconds, and the cable is put in when they are over, as
    a guest whose first question is lost waits before it asks again.
    """
    domain = hypervisor.find(copy.identity.uuid)
    with translated(hypervisor.uri):
        if domain.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
    warnings = [] if plan.keep_identity else _inside(hypervisor, domain, plan, copy)
    renew = not plan.keep_identity and not warnings
    plugged: dict[str, float] = {}
    for card in _cards(domain):
        wrong = _replace(hypervisor, domain, card, cable=not renew and _mac(card) not in out)
        warnings += wrong
        if not wrong and _mac(card) not in out:
            plugged[_mac(card)] = time.monotonic() + _opening_seconds(hypervisor, card)
    if renew:
        told = f"the SSH host keys inside {copy.identity.name} are still those of {plan.source}"
        warnings += _run(Agent(hypervisor, domain), "fork-keys.sh", [], told)
        for mac, opens in plugged.items():
            time.sleep(max(0.0, opens - time.monotonic()))
            warnings += _connect(hypervisor, domain, mac)
    return warnings


def _opening_seconds(hypervisor: Hypervisor, card: xml.Element) -> float:
    """How long the new port of the card lets nothing through, where that can be known."""
    source = card.find("source")
    name = source.get("network") if source is not None else None
    network = networks.find_or_none(hypervisor, name) if name else None
    if network is None:
        return 0.0
    with translated(hypervisor.uri):
        return networks.read(network).opening_seconds


def _inside(hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan, copy: Copy) -> list[str]:
    name = copy.identity.name
    told = f"host name, machine-id and SSH host keys inside {name} are still those of {plan.source}"
    if not plan.agent:
        return [f"no guest agent answers in {plan.source}: {told}"]
    agent = Agent(hypervisor, domain)
    until = time.monotonic() + AGENT_SECONDS
    while not agent.answers():
        if time.monotonic() > until:
            return [f"the guest agent does not answer in the copy: {told}"]
        time.sleep(0.1)
    macs = [part for pair in copy.identity.macs.items() for part in pair]
    uuid = copy.identity.uuid
    return _run(agent, "fork-identity.sh", [hostname_for(name), uuid.replace("-", ""), uuid, *macs], told)


def _run(agent: Agent, script: str, arguments: list[str], told: str) -> list[str]:
    """Run one of kvmctl's scripts in the guest; where that fails, ``told`` and why."""
    text = files("kvmctl").joinpath(f"data/{script}").read_text(encoding="utf-8")
    try:
        finished, out, err = output_of(agent, ["/bin/sh", "-c", text, "kvmctl", *arguments], SCRIPT_SECONDS)
    except KvmctlError as error:
        return [f"{told}: {error.message}"]
    if finished.status != 0 or not out.rstrip().endswith(b"done"):
        reason = err.decode("utf-8", "replace").strip().splitlines()
        return [f"{told}: {reason[-1] if reason else 'the guest refused'}"]
    return []


def _cards(domain: libvirt.virDomain) -> list[xml.Element]:
    with translated():
        return xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "domain").findall("devices/interface")


def _replace(hypervisor: Hypervisor, domain: libvirt.virDomain, card: xml.Element, *, cable: bool) -> list[str]:
    """Pull the card out and plug a new one into the same place, with the cable in or out."""
    mac = _mac(card)
    cut = f"the card {mac} of {domain.name()} stays without its cable"
    try:
        domain.detachDeviceFlags(xml.raw(card), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        until = time.monotonic() + UNPLUG_SECONDS
        while any(_mac(other) == mac for other in _cards(domain)):
            if time.monotonic() > until:
                return [f"the guest does not let go of its old card: {cut}, for that would be the source's MAC"]
            time.sleep(0.05)
        domain.attachDeviceFlags(xml.raw(_anew(card, cable)), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        return [f"{explain(error, hypervisor.uri).message}: {cut}"]
    return []


def _connect(hypervisor: Hypervisor, domain: libvirt.virDomain, mac: str) -> list[str]:
    """Put the cable of the card ``mac`` in."""
    try:
        for card in _cards(domain):
            if _mac(card) == mac:
                _set_cable(card, "up")
                domain.updateDeviceFlags(xml.raw(card), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except (libvirt.libvirtError, KvmctlError) as error:
        found = explain(error, hypervisor.uri) if isinstance(error, libvirt.libvirtError) else error
        return [f"{found.message}: the card {mac} of {domain.name()} stays without its cable"]
    return []


def _mac(card: xml.Element) -> str:
    element = card.find("mac")
    return element.get("address", "").lower() if element is not None else ""


def _anew(card: xml.Element, cable: bool) -> xml.Element:
    """The card as it is to be plugged in, with nothing in it that libvirt gave to the old one."""
    for child in [child for child in card if child.tag in ("link", "alias", "target")]:
        card.remove(child)
    if not cable:
        xml.add(card, "link", state="down")
    return card
