"""kvmctl rename, autostart, protect, unprotect"""

from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.lifecycle import always_waits, run_verb, would
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere, targets

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("new_name", metavar="NEW-NAME")
@always_waits
@dry_run
@everywhere
@click.pass_obj
def rename(app: App, vm: str, new_name: str, dry_run: bool) -> None:
    """Give a VM that is off another name.

    Its disks keep their files' names, its UUID and everything else stay too.

    \b
    Examples:
      kvmctl rename web-1 web-old
    """
    from kvmctl.operations import rename as operation

    hypervisor = app.connect()
    found = operation.plan(hypervisor, vm, new_name)
    if dry_run:
        row = would({**found.row(), "name": found.old}, f"rename it to {found.new}" if found.changes else None)
        output.show_one(app, row, lambda: f"would rename {output.plain(found.old)} to {found.new}")
        return
    row = operation.run(hypervisor, found)
    old = output.plain(found.old)
    output.show_one(
        app, row, lambda: f"{old} renamed to {found.new}" if found.changes else f"{old} has that name already"
    )


def _mark(
    app: App,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    dry: bool,
    mark: tuple[str, bool],
    says: tuple[str, str, str],
) -> None:
    from kvmctl.operations import marks

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = marks.plan(hypervisor, name, *mark)
        if dry:
            return would(found.row(), says[0] if found.changes else None)
        return marks.run(hypervisor, found)

    run_verb(app, names, all_, parallel, do, says[1], says[2])


@click.command()
@targets()
@click.option("--on/--off", "on", default=True, show_default=True, help="Whether it starts with its host.")
@click.option("--disable", is_flag=True, hidden=True, help="As --off, virsh's word.")
@always_waits
@dry_run
@everywhere
@click.pass_obj
def autostart(
    app: App, names: tuple[str, ...], all_: bool, parallel: int, on: bool, disable: bool, dry_run: bool
) -> None:
    """Let VMs start when their host does.

    \b
    Examples:
      kvmctl autostart web-1
      kvmctl autostart --off 'test-*'
    """
    on = on and not disable
    says = (
        ("let it start with its host", "will start with its host", "starts with its host already")
        if on
        else ("no longer start it with its host", "will not start with its host", "does not start with its host")
    )
    _mark(app, names, all_, parallel, dry_run, ("autostart", on), says)


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def protect(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Protect VMs from kvmctl delete.

    \b
    Examples:
      kvmctl protect db-1
    """
    says = ("protect it from delete", "protected", "was protected already")
    _mark(app, names, all_, parallel, dry_run, ("protected", True), says)


@click.command()
@targets()
@always_waits
@dry_run
@everywhere
@click.pass_obj
def unprotect(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Let kvmctl delete remove VMs again.

    \b
    Examples:
      kvmctl unprotect db-1
    """
    says = ("let delete remove it again", "no longer protected", "was not protected")
    _mark(app, names, all_, parallel, dry_run, ("protected", False), says)
