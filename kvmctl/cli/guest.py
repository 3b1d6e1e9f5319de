"""kvmctl cp, ssh"""

import os
import sys
from pathlib import Path

import click

from kvmctl.cli import output
from kvmctl.cli.exec import GuestCommand, words
from kvmctl.cli.options import App, complete_vms, everywhere
from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.model.units import human_size


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@everywhere
@click.pass_obj
def cp(app: App, source: str, destination: str) -> None:
    """Copy a file into a guest or out of it, through its agent.

    A path in the guest is VM:/path; - is standard input or output. The file's permissions go with it.
    A folder: see the examples.

    \b
    Examples:
      kvmctl cp app.conf web-1:/etc/app.conf
      kvmctl cp web-1:/var/log/syslog .
      kvmctl cp web-1:/etc/os-release -
      tar c site | kvmctl exec web-1 -- tar x -C /srv
    """
    from kvmctl.operations import copy

    here, there = copy.place(source), copy.place(destination)
    if (here.vm is None) == (there.vm is None):
        raise UsageProblem("one of the two must be in a guest, as VM:/path, and the other on this machine")
    hypervisor = app.connect()
    with output.progress(app) as shown:
        if here.vm is None:
            mode = copy.check_local(source) if source != "-" else None
            if source == "-":
                row = copy.into(hypervisor, sys.stdin.buffer, source, there, mode, shown)
            else:
                with Path(source).open("rb") as stream:
                    row = copy.into(hypervisor, stream, source, there, mode, shown)
        elif destination == "-":
            copy.stream_out(hypervisor, here, sys.stdout.buffer)
            return
        else:
            row = copy.out_of(hypervisor, here, Path(destination), shown)
    output.show_one(
        app,
        row,
        lambda: f"{row['source']} copied to {row['destination']} ({human_size(row['size_bytes'])})",
        "destination",
    )


@click.command(cls=GuestCommand)
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARG]...]")
@click.option("-l", "--user", metavar="NAME", help="Whom to log in as (the user that create made).")
@click.option("-i", "--identity", type=click.Path(), metavar="FILE", help="The private key to log in with.")
@click.option("--print", "print_", is_flag=True, help="Print the ssh command instead of running it.")
@everywhere
@click.pass_obj
def ssh(app: App, vm: str, command: tuple[str, ...], user: str | None, identity: str | None, print_: bool) -> None:
    """Log in to a guest with the ssh client, or run a command there.

    Goes to the published port where there is one, else to the guest's address; through qemu+ssh it jumps
    over that host. The exit code is ssh's, which is the command's (255: ssh itself failed). A guest's host
    key is kept under the VM's UUID, so that addresses and ports may change hands.

    \b
    Examples:
      kvmctl ssh web-1
      kvmctl ssh web-1 -l root -- systemctl status nginx
    """
    import shlex

    from kvmctl.operations import ssh as operation

    found = operation.plan(app.connect(), vm, user=user, identity=identity, command=words(command))
    if app.output in ("json", "yaml"):
        output.show_one(app, {"name": found.name, "address": found.address, "port": found.port, "command": found.argv})
        return
    if print_:
        output.show_text(shlex.join(found.argv))
        return
    app.close()
    sys.stdout.flush()
    try:
        os.execvp(found.argv[0], found.argv)
    except FileNotFoundError:
        raise KvmctlError("there is no ssh client here", "install openssh-client") from None
