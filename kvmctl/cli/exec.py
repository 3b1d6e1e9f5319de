"""kvmctl exec"""

import base64
import os
import stat
import sys
import time
from typing import Any, BinaryIO

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, everywhere, timeout
from kvmctl.errors import UsageProblem

# What -o json keeps of each of stdout and stderr in memory; beyond it "truncated" is true.
_MOST_KEPT = 64 * 1024 * 1024


class GuestCommand(click.Command):
    """Takes what stands after ``--`` as the guest's command, or without one all from the first word after the VM."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with the command's words kept from being read as options."""
        before, left = self._options_of(ctx, args)
        if not left:
            return super().parse_args(ctx, before)
        more, command = self._options_of(ctx, left[1:])
        ctx.meta["kvmctl.command"] = tuple(command)
        return super().parse_args(ctx, [*before, *more, left[0]])

    def _options_of(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """The options that ``args`` begin with, and the rest, without a ``--`` between them."""
        ctx.allow_interspersed_args = False
        parser = self.make_parser(ctx)
        # With its positional arguments the parser would share the rest out among them.
        parser._args.clear()
        _, rest, _ = parser.parse_args(list(args))
        options = args[: len(args) - len(rest)]
        return options[:-1] if options and options[-1] == "--" else options, rest


def words(command: tuple[str, ...]) -> tuple[str, ...]:
    """The guest's command, wherever parse_args() found it."""
    found: tuple[str, ...] = click.get_current_context().meta.get("kvmctl.command", command)
    return found


@click.command("exec", cls=GuestCommand)
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable for the command.")
@click.option("-w", "--workdir", metavar="DIR", help="The folder in the guest to run it in.")
@click.option("-n", "--no-stdin", is_flag=True, help="Pass no input on (as ssh -n).")
@timeout()
@everywhere
@click.pass_obj
def exec_command(
    app: App,
    vm: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str | None,
    no_stdin: bool,
    timeout: float | None,
) -> None:
    """Run a command in a guest, through its agent.

    Input (unless it is a terminal) and output are passed on as they are and as they come, and the
    command's exit code is kvmctl's own: 127 where there is no such command, 128+N for signal N. It runs
    as the agent's user, which is root, without a terminal and without a shell. --timeout kills it (exit 6).

    \b
    Examples:
      kvmctl exec web-1 -- uname -a
      kvmctl exec web-1 -- sh -c 'df -h | tail -1'
      tar c site | kvmctl exec web-1 -- tar x -C /srv
      kvmctl exec web-1 -o json -- systemctl is-active nginx
    """
    from kvmctl.operations import exec as operation

    line = _command_line(words(command), env, workdir)
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    lost: set[str] = set()
    collect = app.output in ("json", "yaml")

    def sink(which: str, stream: BinaryIO) -> Any:
        def keep(data: bytes) -> None:
            if sum(map(len, kept[which])) + len(data) > _MOST_KEPT:
                lost.add(which)
            else:
                kept[which].append(data)

        def pass_on(data: bytes) -> None:
            stream.write(data)
            stream.flush()

        return keep if collect else pass_on

    began = time.monotonic()
    finished = operation.run(
        app.connect(),
        vm,
        line,
        stdin=None if no_stdin else _stdin(),
        stdout=sink("stdout", sys.stdout.buffer),
        stderr=sink("stderr", sys.stderr.buffer),
        timeout=timeout,
    )
    if finished.truncated and not collect:
        output.warn(app, "the guest agent cut the output short at 16 MiB")
    if collect:
        row: dict[str, Any] = {
            "name": vm,
            "exit_code": finished.exit_code,
            "signal": finished.signal,
            **_texts({which: b"".join(pieces) for which, pieces in kept.items()}),
            "truncated": finished.truncated or bool(lost),
            "seconds": round(time.monotonic() - began, 3),
        }
        output.show_one(app, row)
    # A status that 8 bits cannot hold (Windows has 32) must still not look like success.
    click.get_current_context().exit(finished.status if finished.status < 256 else finished.status & 255 or 1)


def _command_line(command: tuple[str, ...], env: tuple[str, ...], workdir: str | None) -> list[str]:
    if not command or not command[0]:
        raise UsageProblem("no command to run is given", "kvmctl exec VM -- COMMAND [ARG]...")
    for setting in env:
        name, equals, _ = setting.partition("=")
        if not equals or not name:
            raise UsageProblem(f"--env {setting[:60]!a} is not NAME=VALUE")
    line = list(command)
    if env:
        line = ["env", *env, *line]
    if workdir is not None:
        line = ["sh", "-c", 'cd -- "$0" && exec "$@"', workdir, *line]
    return line


def _stdin() -> BinaryIO | None:
    """This process's input, unless it is a terminal, closed or /dev/null, where nothing is to come from."""
    try:
        status = os.fstat(0)
    except OSError:
        return None
    if os.isatty(0) or (stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)):
        return None
    return sys.stdin.buffer


def _texts(found: dict[str, bytes]) -> dict[str, Any]:
    """Both outputs as text, or where that would change a byte both in base64, which ``encoding`` tells."""
    try:
        return {**{which: data.decode() for which, data in found.items()}, "encoding": "utf-8"}
    except UnicodeDecodeError:
        encoded = {which: base64.b64encode(data).decode("ascii") for which, data in found.items()}
        return {**encoded, "encoding": "base64"}
