"""kvmctl host evacuate"""

import click

from kvmctl.cli.options import DURATION, App, dry_run, everywhere, timeout


@click.command()
@click.argument("destination", metavar="DEST")
@click.option("--check", is_flag=True, help="Only look whether each VM could go.")
@click.option(
    "--max-downtime", type=DURATION, default="30ms", show_default=True, metavar="TIME", help="For each guest."
)
@timeout()
@click.option("--copy-storage", is_flag=True, help="Copy the disks that the hosts do not share, whole.")
@click.option("--running", is_flag=True, help="Leave the VMs that are off where they are.")
@dry_run
@everywhere
@click.pass_obj
def evacuate(
    app: App,
    destination: str,
    check: bool,
    max_downtime: float,
    timeout: float | None,
    copy_storage: bool,
    running: bool,
    dry_run: bool,
) -> None:
    """Move every VM of this host to another one, each as 'kvmctl migrate' does.

    One after the other, running ones first. What cannot go stays, with the reason; then the exit code
    is 8. --timeout is for each guest.

    \b
    Examples:
      kvmctl host evacuate qemu+ssh://other/system --check
      kvmctl host evacuate qemu+tls://other/system --copy-storage --timeout 10m
    """
    from kvmctl.cli.moving import move_all
    from kvmctl.model.migration import Wish
    from kvmctl.operations import evacuate as operation

    hypervisor = app.connect(events=True)
    wish = Wish(
        destination=destination,
        max_downtime=max_downtime,
        timeout=timeout,
        copy="full" if copy_storage else "none",
    )
    found = [(name, up) for name, up in operation.order(hypervisor) if up or not running]
    move_all(app, hypervisor, {name: operation.wish_for(wish, up) for name, up in found}, check or dry_run)
