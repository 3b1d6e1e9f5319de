"""The root command, and the only place where an error becomes an exit code.

Commands are loaded when they run, by the table COMMANDS.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from kvmctl import __version__
from kvmctl.cli import ALIASES, COMMANDS, first_page
from kvmctl.cli.options import App, everywhere
from kvmctl.errors import Interrupted, KvmctlError, Partial, UsageProblem


class Root(click.Group):
    """Finds commands in COMMANDS, without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, in the order of COMMANDS; aliases are left out."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of ``cmd_name`` and take the command from it."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        from importlib import import_module

        module = import_module(f"kvmctl.cli.{COMMANDS[name][1]}")
        command = getattr(module, f"{name}_command", None) or getattr(module, name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest names where there is no such command."""
        name = args[0]
        if name not in COMMANDS and name not in ALIASES and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, [*COMMANDS, *ALIASES], n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "'kvmctl --help' lists the commands"
            raise UsageProblem(f"no command {name[:60]!a}", hint)
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """The first page, by sections."""
        return first_page.text().rstrip()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kvmctl", message="%(prog)s %(version)s")
@everywhere
def root() -> None:
    """Run KVM virtual machines through libvirt. The page that people see is first_page.text()."""


def run(arguments: list[str]) -> int:
    """Run the command line ``arguments`` and return the exit code."""
    app = App()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = root.main(args=arguments, prog_name="kvmctl", obj=app, standalone_mode=False)
        sys.stdout.flush()
        # click returns the code of ctx.exit() here, and otherwise what the command returned: nothing.
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        return _reader_left()
    except (click.Abort, KeyboardInterrupt):
        return _report(app, arguments, Interrupted("interrupted"))
    except click.ClickException as wrong:
        return _report(app, arguments, _from_click(wrong))
    except Partial as error:
        # Every target's own error was shown when it happened.
        return error.exit_code
    except KvmctlError as error:
        return _report(app, arguments, error)
    except Exception as error:  # noqa: BLE001 - the one boundary: nothing leaves it as a traceback
        return _report(app, arguments, _from_outside(error, app))
    finally:
        app.close()


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted("interrupted (SIGTERM)")


def _reader_left() -> int:
    # Whoever read stdout has gone (| head): not an error, and nobody is left to tell.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 0


def _from_click(wrong: click.ClickException) -> KvmctlError:
    if isinstance(wrong, click.FileError):
        return UsageProblem(wrong.format_message())
    if isinstance(wrong, click.UsageError):
        command = wrong.ctx.command_path if wrong.ctx else "kvmctl"
        message = " ".join(wrong.format_message().split()).rstrip(".")
        return UsageProblem(message[:1].lower() + message[1:], f"see '{command} --help'")
    return KvmctlError(wrong.format_message())


def _from_outside(error: Exception, app: App) -> KvmctlError:
    libvirt = sys.modules.get("libvirt")
    if libvirt is not None and isinstance(error, libvirt.libvirtError):
        from kvmctl.connection import explain

        found = explain(error, app.uri)
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        found = KvmctlError(f"{where}{error.strerror}")
    else:
        found = KvmctlError(
            f"unexpected {type(error).__name__}: {error}", "--debug shows where; please report it with that"
        )
    found.__cause__ = error
    return found


def _report(app: App, arguments: list[str], error: KvmctlError) -> int:
    from kvmctl.cli import output

    if app.output == "table":
        # The command line may have failed before its -o was read.
        app.output = output.wanted(arguments)
    if app.debug or "--debug" in arguments:
        import traceback

        cause: Any = error if error.__traceback__ else (error.__cause__ or error)
        sys.stderr.write("".join(traceback.format_exception(cause)))
    output.show_error(app, error)
    return error.exit_code
