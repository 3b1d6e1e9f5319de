"""Whether a change goes to the running guest, to what is saved of it, or to both."""

from dataclasses import dataclass

import libvirt

from kvmctl.connection import translated
from kvmctl.errors import Conflict, UsageProblem


@dataclass(frozen=True)
class Affect:
    """``live``: the running guest; ``config``: its definition, which the next start reads."""

    live: bool
    config: bool

    @property
    def flags(self) -> int:
        """The same as libvirt's VIR_DOMAIN_AFFECT flags."""
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE if self.live else 0
        return live | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if self.config else 0)

    @property
    def words(self) -> str:
        """For a sentence: "now and for later starts"."""
        if self.live:
            return "now and for later starts" if self.config else "for this run only"
        return "for later starts"


def affect(domain: libvirt.virDomain, live: bool = False, config: bool = False) -> Affect:
    """What to change: both where there are both, or what ``--live`` or ``--config`` asked for.

    Raises Conflict for the live half of a VM that is off, and the saved half of a transient one.
    """
    if live and config:
        raise UsageProblem("give --live or --config, not both: without either both are changed")
    with translated():
        active, persistent, name = bool(domain.isActive()), bool(domain.isPersistent()), domain.name()
    if live and not active:
        raise Conflict(f"{name} is not running, so there is nothing live to change", "leave out --live")
    if config and not persistent:
        raise Conflict(f"{name} is transient: it has no saved definition to change", "leave out --config")
    if live or config:
        return Affect(live, config)
    return Affect(active, persistent)
