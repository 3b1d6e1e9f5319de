"""kvmctl migrate"""

from typing import Any

import click

from kvmctl.cli import moving, output
from kvmctl.cli.moving_options import how_to_move
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere
from kvmctl.errors import UsageProblem


@click.command()
@click.argument("vm", shell_complete=complete_vms)
@click.argument("destination", metavar="[DEST]", required=False)
@click.option("--check", is_flag=True, help="Only look at both hosts and say whether it would work.")
@how_to_move
@click.option("--offline", is_flag=True, help="Move the definition (and disks) of a VM that is off.")
@click.option("--abort", is_flag=True, help="Cancel the migration of this VM that is under way.")
@click.option("--recover", is_flag=True, help="Put right what an earlier, killed migration left.")
@dry_run
@everywhere
@click.pass_obj
def migrate(app: App, /, vm: str, destination: str | None, **options: Any) -> None:
    """Move a VM to another host while it runs, and say how long it paused.

    DEST is the other host's libvirt URI. Both hosts are looked at first; nothing is begun that is known
    to fail. Whatever happens, exactly one guest remains, and the message says where. A pattern moves
    several, one after the other.

    \b
    Examples:
      kvmctl migrate web-1 qemu+ssh://other/system --check
      kvmctl migrate web-1 qemu+ssh://other/system
      kvmctl migrate 'web-*' qemu+tls://other/system --copy-storage --timeout 10m
      kvmctl migrate web-1 qemu+ssh://other/system --recover
    """
    if options["abort"] or options["recover"]:
        _repair(app, vm, destination, options)
        return
    if destination is None:
        raise UsageProblem("where to? DEST is missing", "like 'kvmctl migrate VM qemu+ssh://host/system'")
    code = moving.move(app, vm, destination, options)
    if code:
        click.get_current_context().exit(code)


def _repair(app: App, vm: str, destination: str | None, options: dict[str, Any]) -> None:
    from kvmctl.operations import migrate_recover

    if options["abort"] and options["recover"]:
        raise UsageProblem("give --abort or --recover, not both")
    hypervisor = app.connect(events=True)
    if options["abort"]:
        row = migrate_recover.abort(hypervisor, vm)
        said = "its migration is cancelled" if row["changed"] else "is not being migrated"
        output.show_one(app, row, lambda: f"{output.plain(row['name'])}: {said}, it is {row['state']}")
        return
    with output.progress(app) as progress:
        row = migrate_recover.recover(hypervisor, vm, destination, progress)
    output.show_one(app, row, lambda: f"{output.plain(row['name'])}: {row['sentence']}")
