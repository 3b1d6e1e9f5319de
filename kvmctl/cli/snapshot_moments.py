"""Keeping a moment and going back to one: what ``snapshot create`` and ``revert`` do, with click and without."""

from collections.abc import Callable
from typing import Any

from kvmctl.cli import output, without_click
from kvmctl.cli.app import App
from kvmctl.cli.tidying import tidy


def keep(
    app: App,
    vm: str,
    name: str | None,
    description: str | None = None,
    *,
    external: bool = False,
    disk_only: bool = False,
    quiesce: bool = False,
    dry_run: bool = False,
) -> None:
    """Take a snapshot, or with ``dry_run`` say what would be taken."""
    connected = app.connect_ahead()
    from kvmctl.operations import snapshot_create

    hypervisor = connected.result()
    if not dry_run:
        tidy(app, hypervisor, vm)
    plan = snapshot_create.plan(
        hypervisor, vm, name, description=description, external=external, disk_only=disk_only, quiesce=quiesce
    )
    if dry_run:
        row = plan.as_dict()
        output.show_one(app, row, lambda: f"would take {kind(row)} snapshot {row['name']} of {vm}:\n{row['xml']}")
        return
    with output.progress(app) as progress:
        made = snapshot_create.run(hypervisor, plan, progress)
    output.show_one(app, made, lambda: f"{made['name']}: {kind(made)} snapshot of {vm} ({made['state']})")


def go_back(
    app: App,
    vm: str,
    name: str,
    *,
    keep: str | None = None,
    discard: bool = False,
    after: str | None = None,
    dry_run: bool = False,
) -> None:
    """Revert to a snapshot, or with ``dry_run`` say what that would do."""
    connected = app.connect_ahead()
    from kvmctl.operations import snapshot_revert

    hypervisor = connected.result()
    if not dry_run:
        tidy(app, hypervisor, vm)
    plan = snapshot_revert.plan(hypervisor, vm, name, keep=keep, discard=discard, after=after)
    if dry_run:
        row = plan.as_dict()
        output.show_one(app, row, lambda: _would_revert(row))
        return
    with output.progress(app) as progress:
        done = snapshot_revert.run(hypervisor, plan, progress)
    output.show_one(app, done, lambda: _reverted(done))


def kind(row: dict[str, Any]) -> str:
    """Which kind of snapshot it is, in words."""
    return f"{row['location']}{' memory' if row['memory'] else ''}"


def _would_revert(row: dict[str, Any]) -> str:
    kept = f"the present would be kept as {row['kept_as']}" if row["kept_as"] else "the present would be lost"
    replaced = ", in the place of what is there now" if row["replaces"] else ""
    return f"{row['vm']} would be at {row['name']} ({row['state']}); {kept}{replaced}"


def _reverted(row: dict[str, Any]) -> str:
    kept = f"; the present was kept as {row['kept_as']}" if row["kept_as"] else ""
    return f"{row['vm']} is at {row['name']} ({row['state']}){kept}"


def plain(arguments: list[str]) -> tuple[App, Callable[[], None]] | None:
    """(app, what to do) for ``snapshot create VM [NAME]`` and ``snapshot revert VM NAME [--discard]``.

    None for every other command line, those with an error in them too: click reads them.
    """
    line = without_click.read(arguments, ("--discard",))
    if line is None or line.words[:1] != ("snapshot",):
        return None
    app, discard = line.app, "--discard" in line.flags
    match line.words[1:]:
        case ("create", vm) if not discard:
            return app, lambda: keep(app, vm, None)
        case ("create", vm, name) if not discard:
            return app, lambda: keep(app, vm, name)
        case ("revert", vm, name):
            return app, lambda: go_back(app, vm, name, discard=discard)
    return None
