"""What holds for every command, whatever it does."""

import inspect
import re
import shlex
from collections.abc import Iterator

import click
import pytest

from kvmctl.cli import ALIASES, COMMANDS
from kvmctl.cli.options import App
from kvmctl.cli.root import root, run


def tree() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand with its whole name."""

    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for child in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), child)
                assert found is not None, f"{name} lists {child} and has none"
                yield from below(f"{name} {child}", found)

    context = click.Context(root)
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        yield from below(name, command)


ALL = dict(tree())
LEAVES = {name: command for name, command in ALL.items() if not isinstance(command, click.Group)}


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_is_the_commands_own(name: str) -> None:
    assert COMMANDS[name][2] == (ALL[name].help or "").splitlines()[0]


@pytest.mark.parametrize("name", ALL)
def test_every_command_explains_itself(name: str) -> None:
    first = (ALL[name].help or "").splitlines()[0]
    assert first.endswith((".", ".)")), first
    assert first[0].isupper()
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts[-1]} has no help"


def examples(command: click.Command) -> list[str]:
    """The command lines of a help text's block "Examples:", continued lines joined."""
    text = inspect.cleandoc(command.help or "")
    block = re.search(r"^\x08\nExamples:\n((?:[ ]+.*\n?)+)", text, re.MULTILINE)
    joined = block[1].replace("\\\n", " ") if block else ""
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("kvmctl ")]


def parse(arguments: list[str]) -> click.Command:
    """Parse a command line to the end, types of options and all, and return its command; nothing runs."""
    command: click.Command = root
    context = root.make_context("kvmctl", list(arguments), obj=App())
    while isinstance(command, click.Group):
        # Where a group keeps the words it has not read; click 8.2 renamed it.
        kept = vars(context).get("_protected_args") or vars(context).get("protected_args") or []
        name, found, rest = command.resolve_command(context, [*kept, *context.args])
        assert found is not None
        context = found.make_context(name, rest, parent=context)
        command = found
    return command


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_shows_examples_that_parse(name: str) -> None:
    lines = examples(LEAVES[name])
    assert lines
    meant = []
    for line in lines:
        words = shlex.split(line, comments=True)
        end = next((index for index, word in enumerate(words) if word in ("|", ">", "<", "&&", ";", "2>")), len(words))
        meant.append(parse(words[1:end]))
    assert LEAVES[name] in meant


@pytest.mark.parametrize("name", LEAVES)
def test_the_options_for_everywhere_are_everywhere(name: str) -> None:
    options = {option for parameter in LEAVES[name].params for option in parameter.opts}
    assert {"-c", "--connect", "-o", "--output", "-q", "--quiet", "--color", "--debug"} <= options


@pytest.mark.parametrize("name", ALL)
def test_help_exits_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Usage: kvmctl")
    assert told.err == ""


@pytest.mark.parametrize("name", LEAVES)
def test_an_unknown_option_is_one_line_and_exit_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--no-such-option"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    message, hint = told.err.splitlines()
    assert message.startswith("error: ") and "--no-such-option" in message
    assert "--help" in hint


def test_root_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (section, _module, text) in COMMANDS.items():
        assert re.search(rf"^  {name}\b", out, re.MULTILINE), name
        assert f"{section}:" in out
        assert text.split()[0] in out


def test_aliases_lead_somewhere() -> None:
    context = click.Context(root)
    for alias, name in ALIASES.items():
        assert alias not in COMMANDS
        if name in COMMANDS:
            assert root.get_command(context, alias) is root.get_command(context, name)


def test_a_typing_error_is_told_the_nearest_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lsit"]) == 2
    assert "did you mean list" in capsys.readouterr().err


def test_a_hostile_command_name_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["\x1b[2J\u202e\u009b"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\u202e" not in err and "\u009b" not in err
