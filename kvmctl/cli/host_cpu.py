"""kvmctl host cpu"""

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, everywhere
from kvmctl.errors import Refused


@click.group()
def cpu() -> None:
    """Compare the CPUs of hosts."""


@cpu.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@everywhere
@click.pass_obj
def compare(app: App, a: str, b: str) -> None:
    """Say whether guests of host A run on host B, and with which CPU.

    A and B are libvirt URIs, or files with <cpu>, <host> or <capabilities> XML ('virsh capabilities'
    prints one). The exit code is 7 where no CPU runs on both.

    \b
    Examples:
      kvmctl host cpu compare qemu:///system qemu+ssh://other/system
      kvmctl host cpu compare old-host.xml new-host.xml -o json
    """
    from kvmctl.preflight import cpu_compare

    found = cpu_compare.compare(cpu_compare.cpu_of(a), cpu_compare.cpu_of(b))

    def read() -> str:
        if found.as_is:
            return "Guests with the whole of A's CPU run on B."
        if not found.migratable:
            return f"No guest moves from A to B: {found.reason}."
        return f"Only with the baseline below: {found.reason}.\n{found.baseline}".rstrip()

    output.show_one(app, found.as_dict(), read)
    if not found.migratable:
        click.get_current_context().exit(Refused.exit_code)
