"""Parameter types and option decorators that commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvmctl.cli.app import OUTPUTS
from kvmctl.cli.app import App as App

F = TypeVar("F", bound=Callable[..., Any])


def _store(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        # Only what was really given counts, so that the option after the command wins over the one
        # before it and an absent one changes nothing.
        if value is not None and value is not False:
            setattr(ctx.find_root().ensure_object(App), attribute, value)

    return callback


def everywhere(command: F) -> F:
    """The options that work before and after every command."""
    return everywhere_and()(command)


def everywhere_and(*formats: str) -> Callable[[F], F]:
    """The same for a command that prints more than the usual formats (``svg``)."""

    def decorate(command: F) -> F:
        for option in reversed(_shared((*OUTPUTS, *formats))):
            command = option(command)
        return command

    return decorate


def _shared(outputs: tuple[str, ...]) -> tuple[Callable[[F], F], ...]:
    return (
        click.option(
            "-c",
            "--connect",
            metavar="URI",
            expose_value=False,
            callback=_store("uri"),
            help="The hypervisor, as a libvirt URI.",
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice(outputs),
            expose_value=False,
            callback=_store("output"),
            help="How to print the result.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_store("quiet"),
            help="No progress, hints or warnings.",
        ),
        click.option(
            "--color",
            type=click.Choice(("auto", "always", "never")),
            expose_value=False,
            callback=_store("color"),
            help="When to use colour (NO_COLOR works too).",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_store("debug"),
            help="Show a traceback when something fails.",
        ),
    )


def confirmed(command: F) -> F:
    """``-y/--yes``, for what loses data. Ask with output.confirm()."""
    return click.option(
        "-y", "--yes", is_flag=True, expose_value=False, callback=_store("yes"), help="Do it without asking."
    )(command)


def dry_run(command: F) -> F:
    """``--dry-run``, passed on as ``dry_run``."""
    return click.option("--dry-run", is_flag=True, help="Print what would happen and touch nothing.")(command)


def targets(what: str = "VM") -> Callable[[F], F]:
    """One or more names or patterns, ``--all`` and ``--parallel``, passed on as ``names``, ``all_``, ``parallel``."""

    def decorate(command: F) -> F:
        command = click.option(
            "--parallel", type=click.IntRange(1, 64), default=1, metavar="N", help="How many to do at once."
        )(command)
        command = click.option("--all", "all_", is_flag=True, help=f"Every {what}.")(command)
        return click.argument(
            "names", nargs=-1, metavar=f"{what}...", shell_complete=complete_vms if what == "VM" else None
        )(command)

    return decorate


def timeout(default: str | None = None) -> Callable[[F], F]:
    """``--timeout``, passed on as seconds (or None)."""
    return click.option(
        "--timeout",
        type=DURATION,
        default=default,
        metavar="TIME",
        show_default=True,
        help="Give up after this long (30s, 2m).",
    )


def complete_vms(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """VM names for the shell's completion: quick, quiet, and nothing at all where libvirt does not answer."""
    from kvmctl.operations.completion import vm_names

    root = ctx.find_root()
    uri = root.obj.uri if isinstance(root.obj, App) else None
    return [name for name in vm_names(uri) if name.startswith(incomplete)]


class Size(click.ParamType):
    """A size in bytes; ``bare`` is what a number without a unit counts."""

    name = "size"

    def __init__(self, bare: int) -> None:
        self.bare = bare

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See units.parse_size()."""
        from kvmctl.model.units import parse_size

        if isinstance(value, int):
            return value
        return parse_size(value, self.bare)


class Duration(click.ParamType):
    """A duration in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See units.parse_duration()."""
        from kvmctl.model.units import parse_duration

        if isinstance(value, (int, float)):
            return float(value)
        return parse_duration(value)


MEMORY = Size(1024**2)
DISK = Size(1024**3)
DURATION = Duration()
