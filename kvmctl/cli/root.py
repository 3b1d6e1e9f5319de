"""The root command. Commands are loaded when they run, by the table COMMANDS."""

import click

from kvmctl import __version__
from kvmctl.cli import ALIASES, COMMANDS, boundary, first_page
from kvmctl.cli.app import App
from kvmctl.cli.options import everywhere
from kvmctl.errors import KvmctlError, UsageProblem


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

    def command() -> int:
        try:
            code = root.main(args=arguments, prog_name="kvmctl", obj=app, standalone_mode=False)
        except click.exceptions.Exit as done:
            return done.exit_code
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as wrong:
            raise _from_click(wrong) from wrong
        # click returns the code of ctx.exit() here, and otherwise what the command returned: nothing.
        return code if isinstance(code, int) else 0

    return boundary.guarded(app, arguments, command)


def _from_click(wrong: click.ClickException) -> KvmctlError:
    if isinstance(wrong, click.FileError):
        return UsageProblem(wrong.format_message())
    if isinstance(wrong, click.UsageError):
        command = wrong.ctx.command_path if wrong.ctx else "kvmctl"
        message = " ".join(wrong.format_message().split()).rstrip(".")
        return UsageProblem(message[:1].lower() + message[1:], f"see '{command} --help'")
    return KvmctlError(wrong.format_message())
