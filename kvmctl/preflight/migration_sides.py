"""Both ends of a migration, read once, for all the checks."""

from typing import NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import state, xml
from kvmctl.model.migration import Wish
from kvmctl.preflight.asking import Asking


# A tuple, as others that a move waits for: a dataclass takes eight times as long to be made.
class Sides(NamedTuple):
    """``live`` is the domain as it runs (or its saved definition where it does not), ``config`` the saved one.

    ``here`` and ``there`` are the two hosts' capabilities, ``vcpus`` and ``memory_bytes`` what the guest
    may use now.
    """

    source: Hypervisor
    destination: Hypervisor
    domain: libvirt.virDomain
    name: str
    uuid: str
    state: str
    memory_bytes: int
    most_memory_bytes: int
    vcpus: int
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
    def stopped_by_disk(self) -> bool:
        """Whether QEMU paused it over an I/O error, which libvirt then moves nowhere."""
        with translated(self.source.uri):
            number, reason = self.domain.state()
        return bool(number == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)

    @property
    def virt(self) -> str:
        """``kvm`` or ``qemu``."""
        return self.live.get("type", "")


def look(source: Hypervisor, destination: Hypervisor, domain: libvirt.virDomain, wish: Wish) -> Sides:
    """Read everything that the checks judge."""
    there = Asking(lambda: _capabilities(destination))
    with translated(source.uri):
        # info(): state, most memory in KiB, memory, vCPUs, CPU time
        number, most_memory, memory, vcpus, _ = domain.info()
        live = xml.parse(domain.XMLDesc(0), "domain", "domain")
        config = None
        if domain.isPersistent():
            config = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "domain", "domain")
        name, uuid = domain.name(), domain.UUIDString()
    return Sides(
        source=source,
        destination=destination,
        domain=domain,
        name=name,
        uuid=uuid,
        state=state.word(number),
        memory_bytes=memory * 1024,
        most_memory_bytes=most_memory * 1024,
        vcpus=vcpus,
        live=live,
        config=config,
        here=_capabilities(source),
        there=there.result(),
        wish=wish,
    )


def _capabilities(hypervisor: Hypervisor) -> xml.Element:
    return xml.parse(hypervisor.capabilities, "capabilities", "capabilities")
