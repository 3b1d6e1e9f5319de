"""Writes docs/commands/*.md and docs/man/*.1 from the click commands: ``python docs/generate.py [--check]``.

A page says what ``kvmctl COMMAND --help`` says, so that neither can be wrong alone; tests run it with
``--check``, which writes nothing and fails where a page differs.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from kvmctl import __version__
from kvmctl.cli import ALIASES, COMMANDS, first_page
from kvmctl.cli.root import root

HERE = Path(__file__).resolve().parent
EVERYWHERE = {"-c", "-o", "-q", "--color", "--debug", "-h", "--help"}


@dataclass(frozen=True)
class Page:
    """One command: its words (``("net", "create")``), and what its help has."""

    words: tuple[str, ...]
    command: click.Command

    @property
    def name(self) -> str:
        """As it is typed: ``kvmctl net create``."""
        return " ".join(("kvmctl", *self.words))

    @property
    def file(self) -> str:
        """The name of its files, without the ending."""
        return "-".join(("kvmctl", *self.words))

    def usage(self) -> str:
        """``kvmctl net create [OPTIONS] NAME``."""
        context = click.Context(self.command, info_name=self.name)
        return f"{self.name} {' '.join(self.command.collect_usage_pieces(context))}"

    def options(self) -> list[tuple[str, str]]:
        """(how it is written, what it does) of its own options."""
        context = click.Context(self.command, info_name=self.name)
        found = []
        for parameter in self.command.params:
            if EVERYWHERE & set(parameter.opts) or not isinstance(parameter, click.Option) or parameter.hidden:
                continue
            record = parameter.get_help_record(context)
            if record is not None:
                found.append((record[0], record[1]))
        return found

    def parts(self) -> tuple[str, list[str], str]:
        """(first line, further paragraphs, the block of examples) of its help."""
        text = inspect.cleandoc(self.command.help or "")
        first, _, rest = text.partition("\n\n")
        examples = ""
        paragraphs = []
        for block in re.split(r"\n\s*\n", rest):
            body = block.lstrip("\b").strip("\n")
            if not body.strip():
                continue
            if body.lstrip().startswith("Examples:"):
                examples = inspect.cleandoc(body.partition("Examples:")[2].strip("\n"))
            else:
                paragraphs.append(body if block.startswith("\b") else " ".join(body.split()))
        return " ".join(first.split()), paragraphs, examples


def pages() -> Iterator[Page]:
    """Every command, the ones within groups after their group."""
    for name in COMMANDS:
        context = click.Context(root)
        command = root.get_command(context, name)
        assert command is not None
        yield from _within((name,), command)


def _within(words: tuple[str, ...], command: click.Command) -> Iterator[Page]:
    yield Page(words, command)
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            if not below.hidden:
                yield from _within((*words, name), below)


def markdown(page: Page) -> str:
    """The page for docs/commands."""
    first, paragraphs, examples = page.parts()
    lines = [f"# {page.name}", "", _escaped(first), ""]
    aliases = [alias for alias, name in ALIASES.items() if (name,) == page.words]
    if aliases:
        lines += [f"Also written `kvmctl {'`, `kvmctl '.join(aliases)}`.", ""]
    lines += ["```", page.usage(), "```", ""]
    for paragraph in paragraphs:
        lines += [_escaped(paragraph), ""]
    if isinstance(page.command, click.Group):
        context = click.Context(page.command)
        for name in page.command.list_commands(context):
            below = page.command.get_command(context, name)
            assert below is not None
            short = Page((*page.words, name), below).parts()[0]
            lines.append(f"- [`{page.name} {name}`]({page.file}-{name}.md): {_escaped(short)}")
        lines.append("")
    options = page.options()
    if options:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{_cell(written)}` | {_cell(_escaped(does))} |" for written, does in options]
        lines.append("")
    if examples:
        lines += [
            "Examples:",
            "",
            "```console",
            *(f"$ {line}" if line.startswith("kvmctl") else line for line in examples.splitlines()),
            "```",
            "",
        ]
    lines += ["The [options that work everywhere](README.md#options) do here, too.", ""]
    return "\n".join(lines)


def index(all_pages: list[Page]) -> str:
    """docs/commands/README.md."""
    lines = ["# Commands", "", "Each page says what `kvmctl COMMAND --help` says.", ""]
    sections: dict[str, list[Page]] = {name: [] for name in first_page.SECTIONS}
    for page in all_pages:
        sections[COMMANDS[page.words[0]][0]].append(page)
    for section, members in sections.items():
        lines += [f"## {section}", ""]
        for page in members:
            lines.append(f"- [`{page.name}`]({page.file}.md): {_escaped(page.parts()[0])}")
        lines.append("")
    lines += ["## Options", "", "These work before the command and after it:", "", "| option | |", "|---|---|"]
    lines += [f"| `{_cell(written)}` | {does} |" for written, does in first_page.OPTIONS]
    return "\n".join([*lines, ""])


def manual(page: Page) -> str:
    """The manual page, in man(7)'s language."""
    first, paragraphs, examples = page.parts()
    title = page.file.upper().replace("-", r"\-")
    lines = [
        f'.TH {title} 1 "" "kvmctl {__version__}" "kvmctl"',
        ".SH NAME",
        f"{_roff(page.file)} \\- {_roff(first)}",
        ".SH SYNOPSIS",
        f".B {_roff(page.name)}",
        _roff(page.usage().removeprefix(page.name).strip()),
        ".SH DESCRIPTION",
        _roff(first),
    ]
    for paragraph in paragraphs:
        lines += [".PP", _roff(paragraph)]
    if page.options():
        lines.append(".SH OPTIONS")
        for written, does in page.options():
            lines += [".TP", f".B {_roff(written)}", _roff(does)]
    if examples:
        lines += [".SH EXAMPLES", ".nf", _roff(examples), ".fi"]
    lines += [".SH SEE ALSO", r"\fBkvmctl\fR(1), \fBvirsh\fR(1)", ""]
    return "\n".join(lines)


def main_manual(all_pages: list[Page]) -> str:
    """kvmctl(1)."""
    lines = [
        f'.TH KVMCTL 1 "" "kvmctl {__version__}" "kvmctl"',
        ".SH NAME",
        r"kvmctl \- run KVM virtual machines through libvirt",
        ".SH SYNOPSIS",
        r".B kvmctl",
        r"[OPTIONS] COMMAND [ARGS]...",
        ".SH DESCRIPTION",
        _roff(first_page.INTRODUCTION[0]),
        ".SH OPTIONS",
    ]
    for written, does in first_page.OPTIONS:
        lines += [".TP", f".B {_roff(written)}", _roff(does)]
    lines.append(".SH COMMANDS")
    for page in all_pages:
        lines += [".TP", rf"\fB{_roff(page.file)}\fR(1)", _roff(page.parts()[0])]
    lines += [
        ".SH EXIT STATUS",
        "0 done, 1 failure, 2 usage, 3 not found, 4 conflict, 5 connection, 6 timeout, "
        "7 refused, 8 partial, 130 interrupted.",
        ".SH ENVIRONMENT",
        ".TP",
        ".B LIBVIRT_DEFAULT_URI",
        "The hypervisor, where -c names none.",
        ".TP",
        ".B NO_COLOR",
        "No colour.",
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*") if "`" not in text else text


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(r"\&" + line if line.startswith((".", "'")) else line for line in escaped.splitlines())


def wanted() -> dict[Path, str]:
    """Every file and what shall stand in it."""
    all_pages = list(pages())
    files = {HERE / "commands" / "README.md": index(all_pages), HERE / "man" / "kvmctl.1": main_manual(all_pages)}
    for page in all_pages:
        files[HERE / "commands" / f"{page.file}.md"] = markdown(page)
        files[HERE / "man" / f"{page.file}.1"] = manual(page)
    return files


def differences() -> list[Path]:
    """The files that are missing, different, or there though no command has them."""
    files = wanted()
    there = {*(HERE / "commands").glob("*.md"), *(HERE / "man").glob("*.1")}
    return sorted(
        {path for path, text in files.items() if not path.is_file() or path.read_text() != text} | (there - set(files))
    )


def main() -> None:
    """Write them, or check them."""
    if sys.argv[1:] == ["--check"]:
        wrong = differences()
        if wrong:
            raise SystemExit("run 'python docs/generate.py': " + ", ".join(path.name for path in wrong))
        return
    for path in differences():
        path.unlink(missing_ok=True)
    for path, text in wanted().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
