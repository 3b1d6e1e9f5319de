"""Every network card of every VM: who has a MAC, a network, a bridge or a device."""

from collections.abc import Iterator
from typing import NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.model import xml


class Card(NamedTuple):
    """One ``<interface>`` of a VM, in its running definition (``live``) or its saved one, or both alike.

    ``kind`` is libvirt's type; ``source`` the network, bridge or device, ``portgroup`` aside; ``actual``
    the host's device that a macvtap network gave a running guest.
    """

    vm: str
    uuid: str
    live: bool
    mac: str | None
    kind: str
    source: str | None
    mode: str | None = None
    target: str | None = None
    actual: str | None = None


def of_domain(domain: libvirt.virDomain) -> list[Card]:
    """The cards of one VM, running and saved definition each read once; a card in both is there twice."""
    running = bool(domain.isActive())
    texts = [(running, domain.XMLDesc(0))]
    if running and domain.isPersistent():
        texts.append((False, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
    return [
        _card(domain, live, element)
        for live, text in texts
        for element in xml.parse(text, "domain", "domain").iterfind("devices/interface")
    ]


def everywhere(hypervisor: Hypervisor) -> Iterator[Card]:
    """The cards of every VM; one that goes away meanwhile has none."""
    with translated(hypervisor.uri):
        domains = hypervisor.conn.listAllDomains(0)
    for domain in domains:
        try:
            found = of_domain(domain)
        except libvirt.libvirtError as error:
            if is_missing(error):
                continue
            with translated(hypervisor.uri):
                raise
        yield from found


def _card(domain: libvirt.virDomain, live: bool, element: xml.Element) -> Card:
    source = element.find("source")
    mac = element.find("mac")
    target = element.find("target")
    kind = element.get("type", "")
    attributes = dict(source.attrib) if source is not None else {}
    # For a macvtap network the running definition names the network and the device it was given.
    network = attributes.get("network")
    place = network or attributes.get("bridge") or attributes.get("dev")
    return Card(
        vm=domain.name(),
        uuid=domain.UUIDString(),
        live=live,
        mac=(mac.get("address") or "").lower() or None if mac is not None else None,
        kind="network" if network else kind,
        source=str(place) if place is not None else None,
        mode=str(attributes["mode"]) if "mode" in attributes else None,
        target=target.get("dev") if target is not None else None,
        actual=str(attributes["dev"]) if network and "dev" in attributes else None,
    )
