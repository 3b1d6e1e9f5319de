"""kvmctl snapshot"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvmctl.cli import output, snapshot_moments
from kvmctl.cli.options import App, complete_vms, confirmed, dry_run, everywhere
from kvmctl.cli.tidying import tidy
from kvmctl.errors import UsageProblem
from kvmctl.model.units import human_size

_COLUMNS = [
    output.Column("name", "NAME"),
    output.Column("parent", "PARENT"),
    output.Column("created", "CREATED", lambda created: _time(created)),
    output.Column("state", "STATE"),
    output.Column("memory", "MEMORY"),
    output.Column("location", "LOCATION"),
    output.Column("current", "CURRENT", lambda current: "*" if current else ""),
]


@click.group()
@everywhere
def snapshot() -> None:
    """Keep moments of a VM and go back to them: create, list, tree, show, revert, delete.

    \b
    Examples:
      kvmctl snapshot create web before-upgrade
      kvmctl snapshot tree web
      kvmctl snapshot revert web before-upgrade
    """


F = TypeVar("F", bound=Callable[..., Any])


def _vm() -> Callable[[F], F]:
    return click.argument("vm", metavar="VM", shell_complete=complete_vms)


@snapshot.command()
@_vm()
@click.argument("name", required=False)
@click.option("--description", metavar="TEXT", help="What this moment is, in your words.")
@click.option("--external", is_flag=True, help="Put the changes from now on into overlays instead of the image.")
@click.option("--disk-only", is_flag=True, help="The disks of a running guest without its memory.")
@click.option("--quiesce", is_flag=True, help="Let the guest agent freeze the file systems meanwhile (--disk-only).")
@dry_run
@everywhere
@click.pass_obj
def create(
    app: App,
    vm: str,
    name: str | None,
    description: str | None,
    external: bool,
    disk_only: bool,
    quiesce: bool,
    dry_run: bool,
) -> None:
    """Keep this moment: the disks, and of a running guest its memory.

    Without NAME one is made from the time (UTC).

    \b
    Examples:
      kvmctl snapshot create web
      kvmctl snapshot create web before-upgrade --description "last good state"
      kvmctl snapshot create db nightly --disk-only --quiesce
    """
    snapshot_moments.keep(
        app, vm, name, description, external=external, disk_only=disk_only, quiesce=quiesce, dry_run=dry_run
    )


@snapshot.command("list")
@_vm()
@everywhere
@click.pass_obj
def list_command(app: App, vm: str) -> None:
    """List the snapshots of a VM, parents before their children.

    \b
    Examples:
      kvmctl snapshot list web
      kvmctl snapshot list web -o json
    """
    from kvmctl.operations import snapshots

    rows = snapshots.listed(app.connect(), vm)
    output.show_list(app, rows, _COLUMNS, empty=f"{vm} has no snapshots; 'kvmctl snapshot create {vm}' takes one")


@snapshot.command()
@_vm()
@everywhere
@click.pass_obj
def tree(app: App, vm: str) -> None:
    """Draw the snapshots of a VM as a tree, with where it stands now.

    \b
    Examples:
      kvmctl snapshot tree web
    """
    from kvmctl.operations import snapshots

    found = snapshots.drawn(app.connect(), vm)
    lines = found.pop("lines")
    output.show_one(app, found, lambda: "\n".join(output.plain(line) for line in lines))


@snapshot.command()
@_vm()
@click.argument("name")
@everywhere
@click.pass_obj
def show(app: App, vm: str, name: str) -> None:
    """Show one snapshot in full.

    \b
    Examples:
      kvmctl snapshot show web before-upgrade
    """
    from kvmctl.operations import snapshots

    found = snapshots.shown(app.connect(), vm, name)
    output.show_one(app, found, lambda: _details(found))


def _time(created: str | None) -> str:
    """As the tree has it: to the second, UTC."""
    return (created or "").replace("T", " ").partition("+")[0]


def _details(row: dict[str, Any]) -> list[tuple[str, Any]]:
    disks = [
        f"{disk['target']}  {disk['source'] or '-'}" + (f", then on {disk['overlay']}" if disk["overlay"] else "")
        for disk in row["disks"]
        if disk["location"] != "no"
    ]
    size = human_size(row["memory_bytes"]) if row["memory_bytes"] is not None else "-"
    return [
        ("name", row["name"]),
        ("description", row["description"] or "-"),
        ("created", f"{_time(row['created'])} UTC"),
        ("state", row["state"]),
        ("kind", snapshot_moments.kind(row)),
        ("current", row["current"]),
        ("parent", row["parent"] or "-"),
        ("children", ", ".join(row["children"]) or "-"),
        ("vm then", f"{row['vcpus'] or '-'} vCPUs, {size}"),
        ("disks", disks or "-"),
        *([("memory file", row["memory_file"])] if row["memory_file"] else []),
    ]


@snapshot.command()
@_vm()
@click.argument("name")
@click.option("--keep", metavar="NAME", help="Keep the present as a snapshot of this name, as a branch of its own.")
@click.option("--discard", is_flag=True, help="Do not keep the present: what was done since is lost.")
@click.option("--running", "after", flag_value="running", help="Let the guest run afterwards, whatever it did then.")
@click.option("--paused", "after", flag_value="paused", help="Leave the guest paused at that moment.")
@dry_run
@everywhere
@click.pass_obj
def revert(app: App, vm: str, name: str, keep: str | None, discard: bool, after: str | None, dry_run: bool) -> None:
    """Go back to a snapshot: disks, memory and definition as they were at that moment.

    The present is first kept in the one slot 'before-revert', so that 'kvmctl snapshot revert VM before-revert'
    (or 'kvmctl undo VM') returns to it; the next revert uses the slot again.

    \b
    Examples:
      kvmctl snapshot revert web before-upgrade
      kvmctl snapshot revert web before-upgrade --keep failed-upgrade
      kvmctl snapshot revert web before-upgrade --discard
    """
    if keep is not None and discard:
        raise UsageProblem("--keep and --discard contradict each other", "give one of them")
    snapshot_moments.go_back(app, vm, name, keep=keep, discard=discard, after=after, dry_run=dry_run)


@snapshot.command()
@_vm()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--children", is_flag=True, help="All that come from it too.")
@click.option("--children-only", is_flag=True, help="All that come from it, but not itself.")
@confirmed
@dry_run
@everywhere
@click.pass_obj
def delete(app: App, vm: str, names: tuple[str, ...], children: bool, children_only: bool, dry_run: bool) -> None:
    """Delete snapshots; the guest itself and the other snapshots stay as they are.

    \b
    Examples:
      kvmctl snapshot delete web before-upgrade
      kvmctl snapshot delete web experiments --children -y
    """
    from kvmctl.operations import snapshot_delete

    hypervisor = app.connect()
    if not dry_run:
        tidy(app, hypervisor, vm)
    plan = snapshot_delete.plan(hypervisor, vm, list(names), children=children, children_only=children_only)
    several = len(names) > 1 or children or children_only
    if dry_run:
        _show_deleted(app, plan.as_dicts(), several, "would delete")
        return
    if plan.gone:
        told = ", ".join(s.shown_name for s in plan.gone)
        output.confirm(app, f"Delete {told} of {plan.vm}? What is only there is lost.")
    with output.progress(app) as progress:
        rows = snapshot_delete.run(hypervisor, plan, progress)
    _show_deleted(app, rows, several, "deleted")


def _show_deleted(app: App, rows: list[dict[str, Any]], several: bool, verb: str) -> None:
    if not several and rows:
        output.show_one(app, rows[0], lambda: f"{verb} snapshot {rows[0]['name']} of {rows[0]['vm']}")
    elif app.machine_readable:
        output.show_list(app, rows, [])
    else:
        for row in rows:
            output.show_text(output.plain(f"{verb} snapshot {row['name']} of {row['vm']}"))
