"""Both ends of a migration, read once, for all the checks."""

from dataclasses import dataclass

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import state, xml
from kvmctl.model.migration import Wish


@dataclass(frozen=True)
class Sides:
    """``live`` is the domain as it runs (or its saved definition where it does not), ``config`` the saved one.

    ``here`` and ``there`` are the two hosts' capabilities.
    """

    source: Hypervisor
    destination: Hypervisor
    domain: libvirt.virDomain
    name: str
    uuid: str
    state: str
    live: xml.Element
    config: xml.Element | None
    here: xml.Element
    there: xml.Element
    wish: Wish

    @property
    def active(self) -> bool:
        """Whether there is a running (or paused) guest to move."""
        return self.state in state.ACTIVE

    @property
    def trees(self) -> list[xml.Element]:
        """Every definition that must be acceptable on the other side."""
        return [self.live] if self.config is None else [self.live, self.config]

    @property
    def virt(self) -> str:
        """``kvm`` or ``qemu``."""
        return self.live.get("type", "")


def look(source: Hypervisor, destination: Hypervisor, domain: libvirt.virDomain, wish: Wish) -> Sides:
    """Read everything that the checks judge."""
    with translated(source.uri):
        number = domain.state()[0]
        live = xml.parse(domain.XMLDesc(0), "domain", "domain")
        config = None
        if domain.isPersistent():
            config = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "domain", "domain")
        here = xml.parse(source.conn.getCapabilities(), "capabilities", "capabilities")
        name, uuid = domain.name(), domain.UUIDString()
    with translated(destination.uri):
        there = xml.parse(destination.conn.getCapabilities(), "capabilities", "capabilities")
    return Sides(source, destination, domain, name, uuid, state.word(number), live, config, here, there, wish)
