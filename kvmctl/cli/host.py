"""kvmctl host"""

import click

from kvmctl.cli.host_cpu import cpu


@click.group()
def host() -> None:
    """Check and set up the host, and show what it gives."""


host.add_command(cpu)
