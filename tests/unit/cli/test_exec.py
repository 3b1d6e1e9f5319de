import click
import pytest

from kvmctl.cli.exec import GuestCommand, exec_command, words


def parsed(*arguments: str) -> tuple[dict[str, object], tuple[str, ...]]:
    assert isinstance(exec_command, GuestCommand)
    with exec_command.make_context("exec", list(arguments)) as context:
        return context.params, words(context.params["command"])


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("vm", "--", "ls", "-l"), ("ls", "-l")),
        (("vm", "ls", "-l"), ("ls", "-l")),
        (("-n", "vm", "ls", "--", "x"), ("ls", "--", "x")),
        (("-n", "--", "vm", "ls"), ("ls",)),
        (("vm", "-n", "ls", "-n"), ("ls", "-n")),
        (("vm", "-o", "json", "--", "sh", "-c", "a -- b"), ("sh", "-c", "a -- b")),
        (("vm", "--", "--", "x"), ("--", "x")),
    ],
)
def test_where_the_guests_command_begins(arguments: tuple[str, ...], command: tuple[str, ...]) -> None:
    params, found = parsed(*arguments)
    assert params["vm"] == "vm"
    assert found == command
    assert params["no_stdin"] is ("-n" in arguments[:2])


def test_an_unknown_option_before_the_command_is_an_error() -> None:
    with pytest.raises(click.UsageError):
        parsed("vm", "--nonsense", "ls")
