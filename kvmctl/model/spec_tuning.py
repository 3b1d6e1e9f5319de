"""What a spec says of a VM's tuning: compared with what is so, and told again."""

from collections.abc import Iterator
from typing import Any

from kvmctl.errors import KvmctlError
from kvmctl.model import tuned, tuning, xml
from kvmctl.model.spec import Spec, size_text
from kvmctl.model.start_order import StartOrder
from kvmctl.model.tuned import Tuning
from kvmctl.model.tuning import MemoryLimit, Pin
from kvmctl.model.units import human_size

# The spec's keys that are tuning, each by itself what settings can change.
KEYS = (
    *("pins", "cpu_shares", "cpu_limit", "memory_limit", "hugepages", "numa", "boot"),
    *("autostart_order", "autostart_delay"),
)


def wanted(spec: Spec, key: str, domain: xml.Element) -> Tuning:
    """What has to be set so that ``key`` is as ``spec`` says; what is pinned and shall not be is let go."""
    said = {key: getattr(spec, key)}
    if key == "autostart_delay" and spec.autostart_order is not None:
        said["autostart_order"] = spec.autostart_order
    found = tuned.from_words(said)
    if key != "pins":
        return found
    named = {pin.vcpu for pin in found.pins}
    gone = [pin.vcpu for pin in map(tuning.parse_pin, tuned.pins_of(domain)) if pin.vcpu not in named]
    return Tuning(pins=(*found.pins, *(Pin(vcpu, frozenset()) for vcpu in gone)))


def unlike(spec: Spec, domain: xml.Element, order: StartOrder | None) -> Iterator[tuple[str, str, str]]:
    """(key, what is so, what is wanted) of each key that is not as ``spec`` says."""
    numbers: tuple[tuple[str, Any, Any], ...] = (
        ("cpu_shares", tuned.shares_of(domain), spec.cpu_shares),
        ("cpu_limit", tuned.percent_of(domain) or 0, spec.cpu_limit),
        ("hugepages", domain.find("memoryBacking/hugepages") is not None, spec.hugepages),
        ("autostart_order", order.order if order is not None else 0, spec.autostart_order),
        ("autostart_delay", order.delay if order is not None else 0, spec.autostart_delay),
    )
    if spec.pins is not None and set(map(tuning.parse_pin, spec.pins)) != set(_pins(domain)):
        yield "pins", ", ".join(tuned.pins_of(domain)) or "none", ", ".join(spec.pins) or "none"
    if spec.memory_limit is not None:
        limit, now = tuning.parse_memory_limit(spec.memory_limit), tuning.memory_limit_of(domain)
        if any(w is not None and w != n for w, n in ((limit.soft, now.soft), (limit.hard, now.hard))):
            yield "memory_limit", _limit(now), _limit(limit)
    if spec.numa is not None and tuning.parse_numa(spec.numa) != tuning.numa_of(domain):
        yield "numa", tuned.numa_text(tuning.numa_of(domain)) or "none", spec.numa
    if spec.boot is not None and _boots(domain, spec.boot) != tuning.boot_of(domain):
        yield "boot", ", ".join(tuning.boot_of(domain)) or "not said", ", ".join(spec.boot)
    for key, now_, asked in numbers:
        if asked is not None and now_ != asked:
            yield key, _shown(now_), _shown(asked)


def told(domain: xml.Element, order: StartOrder | None) -> dict[str, Any]:
    """The spec's fields that say what the ``<domain>`` and its start order are; None where nothing was tuned."""
    return {
        "pins": tuned.pins_of(domain) or None,
        "cpu_shares": tuned.shares_of(domain),
        "cpu_limit": tuned.percent_of(domain),
        "memory_limit": _limit_text(tuning.memory_limit_of(domain)),
        "hugepages": True if domain.find("memoryBacking/hugepages") is not None else None,
        "numa": tuned.numa_text(tuning.numa_of(domain)),
        "boot": tuned.boot_words(domain) or None,
        "autostart_order": order.order if order is not None else None,
        "autostart_delay": (order.delay or None) if order is not None else None,
    }


def _limit_text(limit: MemoryLimit) -> str | None:
    """``limit`` as ``--memory-limit`` has it; None where there is none."""
    parts = [f"{key}={size_text(size)}" for key, size in (("soft", limit.soft), ("hard", limit.hard)) if size]
    return ",".join(parts) or None


def _pins(domain: xml.Element) -> list[Pin]:
    found = []
    for text in tuned.pins_of(domain):
        try:
            found.append(tuning.parse_pin(text))
        except KvmctlError:
            # In another tool's words, such as "^3"; it is not what any spec says.
            found.append(Pin(-1, frozenset()))
    return found


def _boots(domain: xml.Element, words: tuple[str, ...]) -> list[str] | None:
    """What the ``<domain>`` would boot from with these; None where it has no such device."""
    trial = xml.parse(xml.raw(domain), "domain", "domain")
    try:
        tuning.set_boot(trial, list(words), "the VM")
    except KvmctlError:
        return None
    return tuning.boot_of(trial)


def _limit(limit: MemoryLimit) -> str:
    parts = [f"{name} {human_size(size)}" for name, size in (("soft", limit.soft), ("hard", limit.hard)) if size]
    return ", ".join(parts) or "none"


def _shown(value: Any) -> str:
    return "not said" if value is None else str(value) if not isinstance(value, bool) else "yes" if value else "no"
