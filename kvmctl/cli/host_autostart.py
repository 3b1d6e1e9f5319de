"""kvmctl host autostart"""

import time
from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, dry_run, everywhere
from kvmctl.model.units import human_duration


@click.command()
@click.option("--boot", is_flag=True, help="Only those for which it has not been done since the host booted.")
@dry_run
@everywhere
@click.pass_obj
def autostart(app: App, boot: bool, dry_run: bool) -> None:
    """Start the VMs that have a start order, one after the other.

    'kvmctl set VM --autostart-order N --autostart-delay TIME' gives a VM one. libvirt's hook, which 'kvmctl host
    setup' installs, does this when the host has booted. What does not start is no reason not to start the next.

    \b
    Examples:
      kvmctl host autostart --dry-run
      kvmctl host autostart
    """
    from kvmctl.cli.targets import for_each
    from kvmctl.operations import start_order as operation

    hypervisor = app.connect()
    found = {one.name: one for one in operation.due(hypervisor, boot=boot)}
    before: list[int] = []

    def act(name: str) -> dict[str, Any]:
        one = found[name]
        if dry_run:
            return {"name": name, "order": one.start.order, "delay_seconds": one.start.delay, "dry_run": True}
        if before and before[-1]:
            time.sleep(before[-1])
        before.append(one.start.delay)
        row = operation.start(hypervisor, one)
        for warning in row["warnings"]:
            output.warn(app, f"{output.plain(name)}: {warning}")
        return row

    def sentence(row: dict[str, Any]) -> str:
        name, pause = output.plain(row["name"]), row["delay_seconds"]
        wait = f", then waits {human_duration(pause)}" if pause else ""
        if "dry_run" in row:
            return f"{row['order']}: would start {name}{wait}"
        return f"{row['order']}: {name} {'started' if row['changed'] else 'runs already'}"

    if not found:
        output.info(app, "no VM is waiting to be started in an order")
    for_each(app, list(found), True, act, sentence)
