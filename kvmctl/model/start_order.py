"""When a VM is started as its host boots, among the others: kept in its metadata, for libvirt has no such thing."""

from dataclasses import dataclass

from kvmctl.model.metadata import Metadata, extra, new_extra, with_extra


@dataclass(frozen=True)
class StartOrder:
    """Lower numbers first; ``delay`` seconds pass after it before the next one. ``boot``: when that was last done."""

    order: int
    delay: int = 0
    boot: str | None = None


def read(metadata: Metadata) -> StartOrder | None:
    """The one in what is remembered of a VM; None where there is none, or somebody made nonsense of it by hand."""
    element = extra(metadata, "autostart")
    if element is None:
        return None
    order, delay = element.get("order", ""), element.get("delay", "0")
    if not all(text.isascii() and text.isdigit() and len(text) < 7 for text in (order, delay)) or not int(order):
        return None
    return StartOrder(int(order), int(delay), element.get("boot"))


def put(metadata: Metadata, start: StartOrder | None) -> Metadata:
    """``metadata`` with this one, or with none."""
    if start is None:
        return with_extra(metadata, "autostart", None)
    element = new_extra("autostart")
    element.set("order", str(start.order))
    element.set("delay", str(start.delay))
    if start.boot is not None:
        element.set("boot", start.boot)
    return with_extra(metadata, "autostart", element)
