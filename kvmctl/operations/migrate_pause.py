"""How long a guest stood still, by libvirt's statistics of the finished job.

libvirt's ``downtime`` is the destination's time of the end less the source's time of the stop: where their clocks
differ, it is wrong by that. Its ``downtime_net`` leaves out what passed, by these same clocks, between the source's
last word and the destination's first one (virDomainJobData.timeDelta): that is right whatever the clocks say, and lacks
but the way between the two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

# What one libvirtd may take to hear of the other's last word, beside the way there.
HEARING_MS = 200


class Pause(NamedTuple):
    """``ms``: None where libvirt does not tell; ``apart``: how many seconds the destination's clock is ahead, or None.

    ``apart`` is only said where it is more than the way between the hosts explains.
    """

    ms: int | None
    apart: float | None = None


def read(stats: dict[str, Any], round_trip: Callable[[], float]) -> Pause:
    """The pause. ``round_trip`` says how many seconds a question to the destination takes; asked where it matters."""
    total, net = stats.get("downtime"), stats.get("downtime_net")
    if total is None or net is None:
        return Pause(total)
    between = total - net
    if 0 <= between <= HEARING_MS:
        return Pause(total)
    trip = 1000 * round_trip()
    if 0 <= between <= HEARING_MS + 2 * trip:
        return Pause(total)
    return Pause(net + round(trip / 2), (between - trip / 2) / 1000)
