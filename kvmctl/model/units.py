"""Sizes and durations as people write them.

``G``, ``GiB`` and ``g`` are 2^30; ``GB`` is 10^9. Sizes are whole bytes, durations are seconds.
"""

import re

from kvmctl.errors import UsageProblem

KIB = 1024
MIB = KIB**2
GIB = KIB**3

# Thirty digits are more than any size has, and few enough for every conversion.
# Compiled when used: every list would pay for it.
_SIZE = r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([a-zA-Z]*)\s*\Z"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|)\s*\Z"
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# libvirt keeps sizes in a signed 64-bit number of bytes.
LARGEST = 2**63 - 1
# poll(2) counts milliseconds in a signed 32-bit number: 24.8 days.
LONGEST = 24 * 86400.0


def parse_size(text: str, bare: int = 1) -> int:
    """``text`` in bytes; a number without a unit counts ``bare`` bytes (MIB for memory, GIB for disks).

    Raises UsageProblem for anything that is no positive size of whole bytes below 2^63.
    """
    match = re.match(_SIZE, text)
    size: int | None = None
    if match:
        number, unit = match[1], match[2].lower()
        factor: int | None
        if unit == "":
            factor = bare
        elif unit == "b":
            factor = 1
        elif unit.endswith("ib"):
            factor = 1024 ** _POWERS[unit[:-2]] if unit[:-2] in _POWERS and unit != "ib" else None
        elif unit.endswith("b"):
            factor = 1000 ** _POWERS[unit[:-1]] if unit[:-1] in _POWERS else None
        else:
            factor = 1024 ** _POWERS[unit] if unit in _POWERS else None
        if factor is not None:
            # Not as a float: that loses the last bytes of a large size, and overflows on a huge one.
            whole, _, decimals = number.partition(".")
            size = int(whole + decimals) * factor // 10 ** len(decimals)
    if size is None:
        raise UsageProblem(f"{text[:60]!a} is not a size", "write it like 2G, 512MiB or 1.5GiB")
    if size <= 0 or size > LARGEST:
        raise UsageProblem(f"the size {text[:60]!a} is out of range", "give a size above 0 and below 8 EiB")
    return size


def parse_duration(text: str) -> float:
    """``text`` (``30s``, ``2m``, ``30ms``, ``1h``, or bare seconds) in seconds.

    Raises UsageProblem for anything else, and for more than 24 days.
    """
    match = re.match(_DURATION, text)
    if not match:
        raise UsageProblem(f"{text[:60]!a} is not a duration", "write it like 30s, 2m or 30ms")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST:
        raise UsageProblem(f"the duration {text[:40]!a} is too long", "give at most 24d")
    return seconds


def human_size(size: int | None) -> str:
    """``size`` bytes in the unit that reads best: ``512 MiB``, ``1.5 GiB``; ``-`` where not known."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        # What would read as 1024 is 1 of the next.
        if value < 1023.5 or unit == "PiB":
            digits = f"{value:.1f}".rstrip("0").rstrip(".") if value < 100 else f"{value:.0f}"
            return f"{digits} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def human_duration(seconds: float | None) -> str:
    """``seconds`` as ``850 ms``, ``12 s``, ``3 min``, ``2 h 5 min`` or ``3 d 4 h``; ``-`` where not known."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
