"""kvmctl events"""

import contextlib
from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, everywhere, timeout


@click.command()
@click.argument("names", nargs=-1, metavar="[VM]...", shell_complete=complete_vms)
@click.option("--event", "kinds", multiple=True, metavar="KIND", help="Only events of this kind (may be repeated).")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@timeout()
@everywhere
@click.pass_obj
def events(app: App, names: tuple[str, ...], kinds: tuple[str, ...], count: int | None, timeout: float | None) -> None:
    """Show what happens to VMs, as it happens.

    With -o json each event is one object on one line. --timeout ends it with success; Ctrl-C too ends it.

    \b
    Examples:
      kvmctl events
      kvmctl events web-1 --event lifecycle -o json
      kvmctl events --count 1 --timeout 1m
    """
    from kvmctl.errors import UsageProblem
    from kvmctl.operations import events as operation
    from kvmctl.operations.selection import matching

    for kind in kinds:
        if kind not in operation.KINDS:
            raise UsageProblem(f"{kind[:40]!a} is no kind of event", f"one of {', '.join(operation.KINDS)}")
    hypervisor = app.connect(events=True)
    wanted = matching(hypervisor, names) if names else []

    def ready() -> None:
        output.info(app, f"waiting for events on {hypervisor.uri}; Ctrl-C ends it")

    # Ctrl-C is how it is meant to end, so it is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        for row in operation.follow(hypervisor, wanted, kinds, timeout=timeout, count=count, ready=ready):
            _show(app, row)


def _show(app: App, row: dict[str, Any]) -> None:
    if app.output == "json":
        output.json_line(row)
    elif app.output == "yaml":
        output.show_one(app, row)
        output.show_text("---")
    else:
        output.event_line(row)
