"""Names: which ones kvmctl gives, and how a foreign one is made harmless before a terminal sees it."""

import re
import unicodedata

from kvmctl.errors import UsageProblem

# Compiled when used: every list would pay for it.
NEW_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z"
UUID = r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z"


def check_new_name(name: str, what: str = "VM") -> str:
    """``name`` if a new ``what`` may have it.

    Raises UsageProblem where it does not match ``[A-Za-z0-9][A-Za-z0-9_.-]{0,62}``, is all digits (it
    would be taken for an id) or a UUID.
    """
    shown = name if len(name) <= 70 else name[:67] + "..."
    if not re.match(NEW_NAME, name):
        raise UsageProblem(
            f"{shown!a} cannot be the name of a new {what}",
            "use up to 63 letters, digits, '_', '.' and '-', beginning with a letter or a digit",
        )
    if name.isdigit():
        raise UsageProblem(f"the name {shown!a} is all digits and would be taken for an id", "add a letter")
    if re.match(UUID, name):
        raise UsageProblem(f"the name {shown!a} is a UUID and would be taken for one", "choose another name")
    return name


def harmless(text: str) -> str:
    r"""``text`` with everything that could steer a terminal or hide what it says written as ``\xNN``.

    Control characters (C0, DEL, C1 as U+009B), format characters (bidirectional overrides, zero width),
    line separators, surrogates and private use become visible; all else stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
