"""kvmctl undo"""

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, confirmed, dry_run, everywhere, timeout
from kvmctl.cli.tidying import tidy


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@timeout("30s")
@confirmed
@dry_run
@everywhere
@click.pass_obj
def undo(app: App, vm: str, timeout: float, dry_run: bool) -> None:
    """Take back the last change of a VM's disks or definition.

    That is the last 'snapshot revert', 'set', 'edit', 'define', 'nic', 'disk', 'pci' or 'usb' command that
    changed something. It says first what it undoes. Cards, disks and devices of the host are plugged into a running
    guest and pulled out of it at once, and so are cables and discs; what else is in the definition counts from its
    next start on. A guest that does not let go of a device within --timeout keeps it, and all stays as it was.
    Undone twice, it is done again.

    \b
    Examples:
      kvmctl undo web
      kvmctl undo web --dry-run
    """
    from kvmctl.operations import undoing

    hypervisor = app.connect()
    if not dry_run:
        tidy(app, hypervisor, vm)
    plan = undoing.plan(hypervisor, vm)
    if dry_run:
        output.show_one(app, plan.as_dict(changed=False), lambda: f"would be {plan.sentence()}")
        return
    output.info(app, plan.sentence())
    if plan.changed_since:
        output.confirm(
            app, f"{plan.vm} was changed since then by something else, which is taken back with it. Undo both?"
        )
    with output.progress(app) as progress:
        row = undoing.run(hypervisor, plan, progress, timeout)
    output.show_one(app, row, lambda: output.plain(f"{row['name']}: undid '{row['command']}'"))
