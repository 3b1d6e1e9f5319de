"""kvmctl version"""

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, everywhere


@click.command()
@everywhere
@click.pass_obj
def version(app: App) -> None:
    """Show the versions of kvmctl, libvirt and the hypervisor.

    \b
    Examples:
      kvmctl version
      kvmctl version -o json
    """
    from kvmctl.operations import version as operation

    row = operation.versions(lambda: app.connect())
    output.show_one(app, row)
