"""kvmctl host evacuate"""

from typing import Any

import click

from kvmctl.cli import moving
from kvmctl.cli.moving_options import how_to_move
from kvmctl.cli.options import App, dry_run, everywhere


@click.command()
@click.argument("destination", metavar="DEST")
@click.option("--check", is_flag=True, help="Only look whether each VM could go.")
@how_to_move
@click.option("--running", is_flag=True, help="Leave the VMs that are off where they are.")
@dry_run
@everywhere
@click.pass_obj
def evacuate(app: App, /, destination: str, **options: Any) -> None:
    """Move every VM of this host to another one, each as 'kvmctl migrate' does.

    One after the other, running ones first. What cannot go stays, with the reason; then the exit code
    is 8. All options are for each guest, --timeout too; a VM that is off moves as with --offline.

    \b
    Examples:
      kvmctl host evacuate qemu+ssh://other/system --check
      kvmctl host evacuate qemu+tls://other/system --copy-storage --timeout 10m
      kvmctl host evacuate qemu+ssh://other/system --bandwidth 100M --postcopy auto
    """
    moving.evacuate(app, destination, options)
