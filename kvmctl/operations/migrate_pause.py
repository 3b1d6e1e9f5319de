"""How long a guest stood still, by libvirt's statistics of the finished job.

libvirt's ``downtime`` is the destination's time of the end less the source's time of the stop: where their clocks
differ, it is wrong by that. Its ``downtime_net`` leaves out what passed, by these same clocks, between the source's
last word and the destination's first one (virDomainJobData.timeDelta): that is right whatever the clocks say, and lacks
but the way between the two. Where the destination's clock is behind, libvirt says neither: what it then gives is QEMU's
own figure at the source, without the moments in which the two libvirts agree that the guest goes on over there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

# What one libvirtd may take to hear of the other's last word, beside the way there.
HEARING_MS = 200


class Pause(NamedTuple):
    """``ms``: None where libvirt does not tell; ``apart``: how many seconds the destination's clock is ahead, or None.

    ``apart`` is only said where it is more than the way between the hosts explains. ``behind``: the destination's clock
    is, by nobody knows how much, and ``ms`` is less than the whole pause.
    """

    ms: int | None
    apart: float | None = None
    behind: bool = False

    def within(self, limit: float) -> bool | None:
        """Whether the pause was no longer than ``limit`` ms; None where that is not known."""
        if self.ms is None or (self.behind and self.ms <= limit):
            return None
        return self.ms <= limit

    def warnings(self) -> list[str]:
        """What the user should know of the clocks."""
        if self.behind and self.ms is not None:
            lacks = f"the pause of {self.ms} ms is QEMU's own, and lacks what the two libvirts took"
            return [f"the destination's clock is behind the source's: {lacks}; keep both on the same time (NTP)"]
        if self.apart is None:
            return []
        by = f"{abs(self.apart):.1f} s {'ahead of' if self.apart > 0 else 'behind'}"
        return [f"the destination's clock is {by} the source's: keep both on the same time (NTP)"]


def read(stats: dict[str, Any], round_trip: Callable[[], float]) -> Pause:
    """The pause. ``round_trip`` says how many seconds a question to the destination takes; asked where it matters."""
    total, net = stats.get("downtime"), stats.get("downtime_net")
    if total is None or net is None:
        return Pause(total, behind=total is not None)
    between = total - net
    if 0 <= between <= HEARING_MS:
        return Pause(total)
    trip = 1000 * round_trip()
    if 0 <= between <= HEARING_MS + 2 * trip:
        return Pause(total)
    return Pause(net + round(trip / 2), (between - trip / 2) / 1000)
