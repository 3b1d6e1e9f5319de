"""A UUID for a machine that is made."""

import os


def new_uuid() -> str:
    """A random UUID, version 4 of RFC 9562, as libvirt and Python's uuid module make them.

    That module finds out first which system it is on, for other versions of UUIDs: 3 ms, which each new VM would take
    longer.
    """
    value = int.from_bytes(os.urandom(16))
    value = value & ~(0xF << 76) | 4 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
