"""Tables, JSON, YAML, errors and progress: with bar.py the only file that knows rich.

Data goes to stdout, everything else to stderr. rich is imported only for a terminal, so that a pipe
does not pay for it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from kvmctl.cli.app import OUTPUTS, App
from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.model.names import harmless
from kvmctl.operations.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]


class Column:
    """One column of a table: the key in the row, its heading, how a value reads, whether only ``wide`` has it."""

    # Neither a dataclass nor a named tuple: every list would pay for making the class.
    def __init__(
        self,
        key: str,
        heading: str,
        read: Callable[[Any], str] | None = None,
        wide: bool = False,
        right: bool = False,
    ) -> None:
        self.key = key
        self.heading = heading
        self.read = read
        self.wide = wide
        self.right = right

    def cell(self, row: Row) -> str:
        """What stands in ``row``'s cell; ``-`` where the value is not known."""
        value = row.get(self.key)
        if self.read is not None:
            return harmless(self.read(value))
        return plain(value)

    def cells(self, rows: Sequence[Row]) -> list[str]:
        """What stands in each of ``rows``. Of a thousand VMs most have the same state and memory."""
        known: dict[Any, str] = {}
        found = []
        for row in rows:
            value = row.get(self.key)
            if value.__hash__ is None:
                found.append(self.cell(row))
                continue
            # By type as well: True and 1 are equal and read differently.
            same = (value.__class__, value)
            text = known.get(same)
            if text is None:
                text = known[same] = self.cell(row)
            found.append(text)
        return found


def plain(value: Any) -> str:
    """A value as a person reads it, harmless to a terminal."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items())
    return harmless(str(value))


def wanted(arguments: Sequence[str]) -> str:
    """The output format that ``arguments`` name, as far as can be seen without parsing them."""
    found = "table"
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        value = ""
        if argument in ("-o", "--output") and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith("--output="):
            value = argument.partition("=")[2]
        elif argument.startswith("-o") and len(argument) > 2:
            value = argument[2:].lstrip("=")
        if value in OUTPUTS:
            found = value
    return found


# ---------------------------------------------------------------- data, on stdout


def show_list(
    app: App, rows: Sequence[Row], columns: Sequence[Column], name: str = "name", empty: str | None = None
) -> None:
    """Print ``rows`` as the user asked: an array, a table, or each row's ``name``.

    ``empty`` is said on stderr in place of a table without rows.
    """
    if _structured(app, list(rows)):
        return
    if app.output == "name":
        for row in rows:
            _write(_usable_name(row, name) + "\n")
        return
    if not rows:
        if empty:
            info(app, empty)
        return
    shown = [column for column in columns if app.output == "wide" or not column.wide]
    _table(
        app,
        [column.heading for column in shown],
        list(zip(*(column.cells(rows) for column in shown), strict=True)),
        [column.right for column in shown],
    )


def show_one(
    app: App, row: Row, table: Callable[[], str | Sequence[tuple[str, Any]]] | None = None, name: str = "name"
) -> None:
    """Print one object: JSON, YAML, its ``name``, or for people what ``table`` gives.

    ``table`` returns a sentence, or (label, value) pairs; without it every key is shown.
    """
    if _structured(app, row):
        return
    if app.output == "name":
        _write(_usable_name(row, name) + "\n")
        return
    what = table() if table is not None else [(key.replace("_", " "), value) for key, value in row.items()]
    if isinstance(what, str):
        _write(what + "\n")
        return
    width = max((len(label) for label, _ in what), default=0)
    bold, plain_again = ("\x1b[1m", "\x1b[0m") if colored(app, sys.stdout) else ("", "")
    for label, value in what:
        lines = value if isinstance(value, list) and value and isinstance(value[0], str) else [value]
        for index, line in enumerate(lines):
            head = f"{label:<{width}}" if index == 0 else " " * width
            _write(f"{bold}{head}{plain_again}  {plain(line)}\n")


def show_text(text: str) -> None:
    """Print ``text`` (XML, a spec) as it is, with a line end."""
    _write(text if text.endswith("\n") else text + "\n")


def columns() -> int | None:
    """How wide the terminal is that standard output goes to; None where it goes elsewhere."""
    from shutil import get_terminal_size

    return get_terminal_size().columns if sys.stdout.isatty() else None


def json_line(row: Row) -> None:
    """Print one object on one line at once, for a stream of them."""
    import json

    _write(json.dumps(row) + "\n")
    sys.stdout.flush()


def checks_text(app: App, checks: Sequence[Row]) -> str:
    """Checks (``name``, ``level``, ``detail``, ``hint``) as lines for people, wrapped to a terminal's width.

    The remedy stands below each that is not ok, once where several in a row have the same.
    """
    from shutil import get_terminal_size
    from textwrap import wrap

    name_width = max((len(str(check["name"])) for check in checks), default=0)
    level_width = max((len(str(check["level"])) for check in checks), default=0)
    indent = level_width + name_width + 4
    width = max(40, get_terminal_size().columns - indent) if sys.stdout.isatty() else 10_000
    lines: list[str] = []
    told = None
    for check in checks:
        level = f"{check['level']:<{level_width}}"
        if colored(app, sys.stdout):
            level = f"{_LEVEL_COLORS.get(check['level'], '')}{level}\x1b[0m"
        first, *more = wrap(harmless(str(check["detail"])), width, break_on_hyphens=False) or [""]
        lines.append(f"{level}  {check['name']:<{name_width}}  {first}")
        if check["hint"] and check["level"] != "ok" and check["hint"] != told:
            told = check["hint"]
            more += wrap(f"-> {harmless(str(check['hint']))}", width, subsequent_indent="   ", break_on_hyphens=False)
        lines += [" " * indent + line for line in more]
    return "\n".join(lines)


_LEVEL_COLORS = {
    "ok": "\x1b[32m",
    "warn": "\x1b[33m",
    "fail": "\x1b[31m",
    "refused": "\x1b[31m",
    "unknown": "\x1b[2m",
}


def event_line(row: Row) -> None:
    """Print one event for people: when, who, what, and the rest as ``key=value``."""
    rest = {k: v for k, v in row.items() if k not in ("time", "event", "name", "uuid", "what") and v is not None}
    more = " ".join(f"{key}={plain(value)}" for key, value in rest.items())
    what = f"{row['event']} {plain(row['what'])}" if row.get("what") else str(row["event"])
    _write(f"{row['time']}  {plain(row['name'])}  {what}  {more}".rstrip() + "\n")
    sys.stdout.flush()


def live_list(
    app: App, look: Callable[[], Sequence[Row]], columns: Sequence[Column], seconds: float, empty: str
) -> None:
    """Show what ``look`` returns as a table that stays in its place, anew every ``seconds``, until Ctrl-C."""
    import time

    from rich.live import Live
    from rich.text import Text

    shown = [column for column in columns if app.output == "wide" or not column.wide]

    def picture() -> Any:
        rows = look()
        if not rows:
            return Text(empty)
        return _rich_table(
            [column.heading for column in shown],
            [[column.cell(row) for column in shown] for row in rows],
            [column.right for column in shown],
        )

    with Live(picture(), console=_console(app, sys.stdout), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(picture(), refresh=True)


def _structured(app: App, data: Any) -> bool:
    if app.output == "json":
        import json

        _write(json.dumps(data, indent=2) + "\n")
        return True
    if app.output == "yaml":
        import yaml

        _write(yaml.safe_dump(data, sort_keys=False, allow_unicode=False))
        return True
    return False


def yaml_documents(rows: Sequence[Row]) -> str:
    """``rows`` as YAML, a document each; nothing in it but printable ASCII."""
    import yaml

    return "---\n".join(yaml.safe_dump(row, sort_keys=False, allow_unicode=False) for row in rows)


def _usable_name(row: Row, key: str) -> str:
    """The name, or the UUID where the name could harm a terminal: what is printed can be used as it is."""
    name = str(row.get(key))
    return str(row["uuid"]) if harmless(name) != name and "uuid" in row else harmless(name)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        sys.stdout.write(text.encode("ascii", "backslashreplace").decode("ascii"))


def _table(app: App, headings: list[str], rows: Sequence[Sequence[str]], right: list[bool]) -> None:
    if sys.stdout.isatty():
        _console(app, sys.stdout).print(_rich_table(headings, rows, right))
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    line = "  ".join(f"{{:{'>' if to_right else '<'}{width}}}" for width, to_right in zip(widths, right, strict=True))
    _write("".join(line.format(*row).rstrip() + "\n" for row in [headings, *rows]))


# The longest value that is never broken over lines: a PCI address, a MAC, a state, an IPv4 address.
SHORT = 17


def _rich_table(headings: list[str], rows: Sequence[Sequence[str]], right: list[bool]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for index, (heading, to_right) in enumerate(zip(headings, right, strict=True)):
        # A short value broken in two can be neither read nor copied: only long texts give way.
        longest = max((len(row[index]) for row in rows), default=0)
        table.add_column(
            heading,
            justify="right" if to_right else "left",
            overflow="fold",
            no_wrap=longest <= SHORT and len(heading) <= SHORT,
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_STATES.get(cell, "")) for cell in row))
    return table


# Bold and the sixteen colours that each terminal theme chooses itself: readable on dark and on light.
_STATES = {
    "running": "green",
    "paused": "yellow",
    "crashed": "red",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "refused": "red",
}


def _console(app: App, stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(
        file=stream,
        no_color=not colored(app, stream),
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=stream.isatty() or None,
    )


def colored(app: App, stream: TextIO) -> bool:
    """Whether colour is wanted on ``stream``: --color, NO_COLOR (https://no-color.org), a terminal."""
    if app.color != "auto":
        return app.color == "always"
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


# ---------------------------------------------------------------- the rest, on stderr


def info(app: App, text: str) -> None:
    """A line for people, on stderr, unless --quiet."""
    if not app.quiet:
        _error_line(text)


def warn(app: App, text: str) -> None:
    """A warning on stderr, unless --quiet."""
    if not app.quiet:
        yellow, reset = ("\x1b[33m", "\x1b[0m") if colored(app, sys.stderr) else ("", "")
        _error_line(f"{yellow}warning:{reset} ", text)


def show_error(app: App, error: KvmctlError, target: str | None = None) -> None:
    """The error on stderr: one line and its hint, or with ``-o json`` one object."""
    if app.output == "json":
        import json

        content = error.as_dict()
        if target is not None:
            content["name"] = target
        sys.stderr.write(json.dumps({"error": content}) + "\n")
        return
    red, reset = ("\x1b[31m", "\x1b[0m") if colored(app, sys.stderr) else ("", "")
    prefix = f"{harmless(target)}: " if target is not None else ""
    _error_line(f"{red}error:{reset} ", prefix + " ".join(error.message.split()))
    if error.hint:
        _error_line("  ", " ".join(error.hint.split()))


def _error_line(*parts: str) -> None:
    safe = "".join(part if index < len(parts) - 1 else harmless(part) for index, part in enumerate(parts))
    try:
        sys.stderr.write(safe + "\n")
        sys.stderr.flush()
    except UnicodeEncodeError:
        sys.stderr.write(safe.encode("ascii", "backslashreplace").decode("ascii") + "\n")


def progress_line(row: Row) -> None:
    """One object on one line of stderr, for a program that follows long work."""
    import json

    sys.stderr.write(json.dumps({"progress": row}) + "\n")
    sys.stderr.flush()


def confirm(app: App, question: str, flag: str = "--yes") -> None:
    """Ask before data is lost. --yes answers; without a terminal the missing flag is named (exit 2)."""
    if app.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageProblem(f"{question} Nobody can be asked here", f"add {flag} to do it without asking")
    sys.stderr.write(harmless(question) + " [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KvmctlError("not done: nobody said yes")


@contextmanager
def progress(app: App, drawn: bool = True) -> Iterator[Progress]:
    """A bar on a terminal, that disappears when the work is done; in a pipe, or where not ``drawn``, only warnings."""

    class Plain(Progress):
        def warn(self, text: str) -> None:
            warn(app, text)

    if app.quiet or not drawn or not sys.stderr.isatty():
        yield Plain()
        return
    from kvmctl.cli.bar import draw

    with draw(_console(app, sys.stderr), lambda text: warn(app, text)) as drawing:
        yield drawing
