"""kvmctl undo"""

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@dry_run
@everywhere
@click.pass_obj
def undo(app: App, vm: str, dry_run: bool) -> None:
    """Take back the last 'snapshot revert', 'set' or 'edit' of a VM.

    It says first what it undoes. Undone twice, it is done again.

    \b
    Examples:
      kvmctl undo web
      kvmctl undo web --dry-run
    """
    from kvmctl.operations import undoing

    hypervisor = app.connect()
    plan = undoing.plan(hypervisor, vm)
    if dry_run:
        output.show_one(app, plan.as_dict(changed=False), lambda: f"would be {plan.sentence()}")
        return
    output.info(app, plan.sentence())
    with output.progress(app) as progress:
        row = undoing.run(hypervisor, plan, progress)
    output.show_one(app, row, lambda: output.plain(f"{row['name']}: undid '{row['command']}'"))
