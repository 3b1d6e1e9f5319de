"""The first page of help: what commands there are. Made without click, so that it is there at once."""

import os
import sys

from kvmctl.cli import ALIASES, COMMANDS

# Wider lines are hard to read; click's own limit for the other pages is the same.
WIDEST = 100
NARROWEST = 60

INTRODUCTION = (
    "Run KVM virtual machines: create, connect, snapshot, clone and migrate them through libvirt.",
    "kvmctl COMMAND --help explains a command and shows examples.",
)
# In the order in which somebody new needs them.
SECTIONS = (
    "Virtual machines",
    "Inside the guest",
    "State and copies",
    "Networks",
    "Devices",
    "Images",
    "Host",
    "Other",
)
# The options that work before and after every command; a test holds them against options.everywhere.
OPTIONS = (
    ("-c, --connect URI", "The hypervisor, as a libvirt URI."),
    ("-o, --output FORMAT", "How to print the result: table, wide, json, yaml or name."),
    ("-q, --quiet", "No progress, hints or warnings."),
    ("--color WHEN", "When to use colour: auto, always or never (NO_COLOR works too)."),
    ("--debug", "Show a traceback when something fails."),
    ("--version", "Show the version and exit."),
    ("-h, --help", "Show this message and exit."),
)


def text(width: int | None = None) -> str:
    """The page, its lines at most ``width`` characters long (by default the terminal's width)."""
    width = max(NARROWEST, min(WIDEST, width if width is not None else _terminal_width()))
    lines = ["Usage: kvmctl [OPTIONS] COMMAND [ARGS]...", ""]
    for paragraph in INTRODUCTION:
        lines += [*_wrapped(paragraph, width, "  "), ""]
    spoken = {name: alias for alias, name in ALIASES.items()}
    sections: dict[str, list[tuple[str, str]]] = {"Options": list(OPTIONS), **{name: [] for name in SECTIONS}}
    for name, (section, _module, short) in COMMANDS.items():
        sections[section].append((f"{name}, {spoken[name]}" if name in spoken else name, short))
    left = max(len(label) for rows in sections.values() for label, _ in rows)
    for section, rows in sections.items():
        lines.append(f"{section}:")
        for label, short in rows:
            first, *rest = _wrapped(short, width, " " * (left + 4))
            lines += [f"  {label:<{left}}  {first.strip()}", *rest]
        lines.append("")
    return "\n".join(lines)


def _terminal_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit():
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 80


def _wrapped(paragraph: str, width: int, indent: str) -> list[str]:
    lines = [indent]
    for word in paragraph.split():
        separator = "" if lines[-1] == indent else " "
        if len(lines[-1]) + len(separator) + len(word) > width and separator:
            lines.append(indent + word)
        else:
            lines[-1] += separator + word
    return lines
