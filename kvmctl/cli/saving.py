"""kvmctl save, restore"""

from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.lifecycle import always_waits, quiet_progress, run_verb, wait_option, waited, would
from kvmctl.cli.options import App, confirmed, dry_run, everywhere, targets, timeout
from kvmctl.errors import UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


@click.command()
@targets()
@always_waits
@confirmed
@dry_run
@everywhere
@click.pass_obj
def save(app: App, names: tuple[str, ...], all_: bool, parallel: int, dry_run: bool) -> None:
    """Save running VMs' state to disk and stop them.

    'kvmctl start' (or restore) lets them run on from there. With one VM, a last argument with a '/' in it
    names the file to save to, on the hypervisor's host; without one libvirt keeps the state itself.

    \b
    Examples:
      kvmctl save web-1
      kvmctl save web-1 /var/lib/libvirt/save/web-1.sav
      kvmctl save --all --parallel 2
    """
    from kvmctl.operations import saving

    path = names[-1] if names and "/" in names[-1] else None
    if path is not None:
        names = names[:-1]
        if len(names) != 1 or all_ or any(c in names[0] for c in "*?["):
            raise UsageProblem("a file goes with exactly one VM", "kvmctl save VM FILE")

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = saving.plan_save(hypervisor, name, path)
        if dry_run:
            return would(found.row(found.state, changed=False), found.does)
        if found.path is not None and saving.is_there(hypervisor, found.path):
            output.confirm(app, f"{found.path} exists and would be overwritten. Go on?")
        with quiet_progress(app, parallel) as shown:
            return saving.save(hypervisor, found, shown)

    run_verb(app, names, all_, parallel, do, "saved", "was saved already")


@click.command()
@targets()
@click.option("--paused", is_flag=True, help="Leave it paused where it was saved.")
@wait_option
@timeout("5m")
@dry_run
@everywhere
@click.pass_obj
def restore(
    app: App,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    paused: bool,
    wait: str | None,
    timeout: float,
    dry_run: bool,
) -> None:
    """Let saved VMs run on.

    A name with a '/' in it is a file on the hypervisor's host that 'kvmctl save VM FILE' wrote.

    \b
    Examples:
      kvmctl restore web-1
      kvmctl restore /var/lib/libvirt/save/web-1.sav
    """
    from kvmctl.operations import saving

    if paused and wait:
        raise UsageProblem("--wait waits for a guest that runs, which --paused keeps it from")

    def do(hypervisor: "Hypervisor", name: str) -> dict[str, Any]:
        found = saving.plan_restore(hypervisor, name)
        if dry_run:
            return would(found.row(found.state, changed=False), found.does)
        row = saving.restore(hypervisor, found, paused=paused)
        return waited(app, hypervisor, row, wait, timeout, parallel)

    run_verb(app, names, all_, parallel, do, "runs on", "was running already", events=wait is not None)
