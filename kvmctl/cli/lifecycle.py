"""kvmctl start, stop, reboot, reset, destroy, suspend, resume"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvmctl.cli import output
from kvmctl.cli.options import DURATION, App, confirmed, dry_run, everywhere, targets, timeout
from kvmctl.cli.tidying import tidy

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor
    from kvmctl.operations.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])
CONDITIONS = ("running", "agent", "ip", "ssh", "cloud-init")


def wait_option(command: F) -> F:
    """``--wait [CONDITION]``, passed on as ``wait`` (None without it)."""
    return click.option(
        "--wait",
        type=click.Choice(CONDITIONS),
        is_flag=False,
        flag_value="running",
        metavar="[CONDITION]",
        help=f"Wait until the guest is so far: {', '.join(CONDITIONS)} (running where none is said).",
    )(command)


def always_waits(command: F) -> F:
    """``--wait``, taken by what waits for its end in any case, so that a script may say it everywhere."""
    return click.option(
        "--wait", is_flag=True, expose_value=False, help="Wait for the end, which this does in any case."
    )(command)


def run_verb(
    app: App,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    do: Callable[["Hypervisor", str], dict[str, Any]],
    said: str,
    already: str,
    *,
    events: bool = False,
) -> None:
    """Do it to each VM named; ``said`` and ``already`` complete the sentence "NAME …"."""
    from kvmctl.cli.targets import for_each, resolve

    hypervisor = app.connect(events=events)
    found, several = resolve(hypervisor, names, all_)

    def act(name: str) -> dict[str, Any]:
        row = do(hypervisor, name)
        for warning in row.pop("warnings", ()):
            output.warn(app, f"{row['name']}: {warning}")
        return row

    def sentence(row: dict[str, Any]) -> str:
        name = output.plain(row["name"])
        if "would" in row:
            return f"{name}: would {row['would']}" if row["would"] else f"{name} {already}, nothing to do"
        if row.get("forced"):
            return f"{name} powered off by force"
        told = f"{name} {said}" if row["changed"] else f"{name} {already}"
        return f"{told}; {output.plain(row['found'])}" if row.get("found") else told

    for_each(app, found, several, act, sentence, parallel)


def would(row: dict[str, Any], does: str | None) -> dict[str, Any]:
    """The row of a dry run: nothing changed, ``would`` says what would be done (None: nothing)."""
    return {**row, "changed": False, "would": does}


def quiet_progress(app: App, parallel: int) -> AbstractContextManager["Progress"]:
    """The progress line, unless several are at work at once and would fight for it."""
    from kvmctl.operations.progress import Progress

    return output.progress(app) if parallel == 1 else nullcontext(Progress())


def waited(
    app: App, hypervisor: "Hypervisor", row: dict[str, Any], wait: str | None, timeout: float, parallel: int
) -> dict[str, Any]:
    """The row with ``state`` as it is after waiting for ``wait``, and what was found; None waits for nothing."""
    if wait is None:
        return row
    from kvmctl.operations.lifecycle import state_of
    from kvmctl.operations.waiting import wait_for

    domain = hypervisor.find(row["uuid"])
    with quiet_progress(app, parallel) as shown:
        reached = wait_for(hypervisor, domain, wait, timeout, shown)
    return {**row, "state": state_of(domain), "waited_seconds": reached.seconds, "found": reached.detail}


def _simple(
    app: App, verb: str, names: tuple[str, ...], all_: bool, parallel: int, dry: bool, said: str, already: str
) -> None:
    from kvmctl.operations import lifecycle

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = lifecycle.plan(hypervisor, verb, name)
        return would(found.row(), found.does) if dry else lifecycle.act(hypervisor, found)

    run_verb(app, names, all_, parallel, do, said, already)


@click.command()
@targets()
@click.option("--paused", is_flag=True, help="Leave it paused at its first instruction.")
@click.option("--strict", is_flag=True, help="Refuse where the host would promise more than it should.")
@click.option("--fresh", is_flag=True, help="Boot even if it has a saved state, which is lost (asks first).")
@wait_option
@timeout("5m")
@confirmed
@dry_run
@everywhere
@click.pass_obj
def start(
    app: App,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    paused: bool,
    strict: bool,
    fresh: bool,
    wait: str | None,
    timeout: float,
    dry_run: bool,
) -> None:
    """Start VMs, or let saved ones run on.

    A VM that was saved (kvmctl save) runs on from there. --timeout is how long --wait waits.

    \b
    Examples:
      kvmctl start web-1
      kvmctl start web-1 --wait ssh --timeout 2m
      kvmctl start --all --parallel 4
    """
    from kvmctl.errors import UsageProblem
    from kvmctl.operations import lifecycle

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        if not dry_run:
            tidy(app, hypervisor, name)
        found = lifecycle.plan(hypervisor, "start", name)
        if dry_run:
            return would(found.row(), found.does)
        if fresh and found.does and lifecycle.has_saved_state(found):
            output.confirm(app, f"{found.name} has a saved state, which starting it fresh throws away. Go on?")
        row = lifecycle.start(hypervisor, found, paused=paused, fresh=fresh, strict=strict)
        return waited(app, hypervisor, row, wait, timeout, parallel)

    if paused and wait:
        raise UsageProblem("--wait waits for a guest that runs, which --paused keeps it from")
    run_verb(app, names, all_, parallel, do, "started", "was running already", events=wait is not None)


@click.command()
@targets()
@click.option(
    "--timeout", type=DURATION, default="2m", show_default=True, metavar="TIME", help="How long the guest may take."
)
@click.option("--force", is_flag=True, help="Power it off where it has not shut down within --timeout.")
@click.option(
    "--mode",
    type=click.Choice(("auto", "acpi", "agent")),
    default="auto",
    show_default=True,
    help="Ask through the guest agent or the power button; auto: the agent where it answers.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Whether to wait until it is off.")
@dry_run
@everywhere
@click.pass_obj
def stop(
    app: App,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    timeout: float,
    force: bool,
    mode: str,
    wait: bool,
    dry_run: bool,
) -> None:
    """Ask guests to shut down, and wait until they are off.

    \b
    Examples:
      kvmctl stop web-1
      kvmctl stop web-1 --timeout 30s --force
      kvmctl stop --all --parallel 8
    """
    from kvmctl.errors import UsageProblem
    from kvmctl.operations import lifecycle

    if force and not wait:
        raise UsageProblem("--force acts when --timeout has run out, so it does not go with --no-wait")

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = lifecycle.plan(hypervisor, "stop", name, force=force)
        if dry_run:
            return would(found.row(), found.does)
        with quiet_progress(app, parallel) as shown:
            return lifecycle.stop(hypervisor, found, timeout=timeout, force=force, mode=mode, wait=wait, progress=shown)

    said = "stopped" if wait else "was asked to shut down"
    run_verb(app, names, all_, parallel, do, said, "was off already", events=True)


@click.command()
@targets()
@wait_option
@timeout("5m")
@dry_run
@everywhere
@click.pass_obj
def reboot(
    app: App, names: tuple[str, ...], all_: bool, parallel: int, wait: str | None, timeout: float, dry_run: bool
) -> None:
    """Ask guests to reboot.

    \b
    Examples:
      kvmctl reboot web-1
      kvmctl reboot web-1 --wait ssh
    """
    from kvmctl.operations import lifecycle

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = lifecycle.plan(hypervisor, "reboot", name)
        if dry_run:
            return would(found.row(), found.does)
        if wait is None:
            return lifecycle.act(hypervisor, found)
        with quiet_progress(app, parallel) as shown:
            row = lifecycle.reboot(hypervisor, found, timeout, shown)
        return waited(app, hypervisor, row, wait, timeout, parallel)

    said = "was asked to reboot" if wait is None else "rebooted"
    run_verb(app, names, all_, parallel, do, said, "is rebooting", events=wait is not None)


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def reset(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Press the reset button: a reboot that does not ask the guest.

    What the guest has not written to its disks yet is lost, as on a real machine.

    \b
    Examples:
      kvmctl reset web-1
    """
    _simple(app, "reset", names, all_, parallel, dry_run, "was reset", "was reset")


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def destroy(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Power VMs off at once, without asking the guest.

    Their disks and definitions stay. What a guest has not written to its disks yet is lost, as when a
    real machine's plug is pulled; 'kvmctl stop' lets it shut down.

    \b
    Examples:
      kvmctl destroy web-1
      kvmctl destroy 'test-*'
    """
    _simple(app, "destroy", names, all_, parallel, dry_run, "powered off", "was off already")


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def suspend(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Pause VMs: they keep their memory and use no CPU.

    \b
    Examples:
      kvmctl suspend web-1
      kvmctl pause 'web-*'
    """
    _simple(app, "suspend", names, all_, parallel, dry_run, "paused", "was paused already")


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def resume(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Let paused VMs run on, or wake sleeping ones.

    \b
    Examples:
      kvmctl resume web-1
      kvmctl resume --all
    """
    _simple(app, "resume", names, all_, parallel, dry_run, "runs on", "was running already")
