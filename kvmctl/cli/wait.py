"""kvmctl wait"""

from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, everywhere, targets, timeout

# As operations.waiting.CONDITIONS; a test compares them, so that --help need not import libvirt.
CONDITIONS = ("running", "stopped", "agent", "ip", "ssh", "cloud-init", "deleted")


@click.command("wait")
@targets()
@click.option(
    "--for",
    "condition",
    type=click.Choice(CONDITIONS),
    required=True,
    metavar="CONDITION",
    help=f"What to wait for: {', '.join(CONDITIONS)}.",
)
@timeout("5m")
@everywhere
@click.pass_obj
def wait_command(app: App, names: tuple[str, ...], all_: bool, parallel: int, condition: str, timeout: float) -> None:
    """Wait until VMs are so far.

    agent: the guest agent answers. ip: the guest has an address. ssh: an SSH server greets, on the
    published port, on the guest's address, or by the guest agent's word where neither is reached from
    here. cloud-init: it has finished, without errors. A VM that is off or stops meanwhile ends the wait
    at once (exit 4); exit 6 says that --timeout ran out.

    \b
    Examples:
      kvmctl wait web-1 --for ssh
      kvmctl wait 'web-*' --for cloud-init --timeout 10m --parallel 4
      kvmctl wait web-1 --for deleted
    """
    from kvmctl.cli.lifecycle import quiet_progress
    from kvmctl.cli.targets import for_each, resolve
    from kvmctl.connection import translated
    from kvmctl.errors import NotFound
    from kvmctl.operations.lifecycle import state_of
    from kvmctl.operations.waiting import wait_for

    hypervisor = app.connect(events=True)
    found, several = resolve(hypervisor, names, all_)

    def act(name: str) -> dict[str, Any]:
        try:
            domain = hypervisor.find(name)
        except NotFound:
            if condition != "deleted":
                raise
            return {"name": name, "uuid": None, "state": None, "condition": condition, "seconds": 0.0, "found": None}
        with translated(hypervisor.uri):
            shown_name, uuid = domain.name(), domain.UUIDString()
        with quiet_progress(app, parallel) as shown:
            reached = wait_for(hypervisor, domain, condition, timeout, shown)
        with translated(hypervisor.uri):
            state = state_of(domain) if condition != "deleted" else None
        return {
            "name": shown_name,
            "uuid": uuid,
            "state": state,
            "condition": condition,
            "seconds": reached.seconds,
            "found": reached.detail,
        }

    def sentence(row: dict[str, Any]) -> str:
        said = {
            "running": "is running",
            "stopped": "is off",
            "agent": "has its guest agent",
            "ip": "has an address",
            "ssh": "answers SSH",
            "cloud-init": "has finished cloud-init",
            "deleted": "is deleted",
        }[condition]
        where = f": {output.plain(row['found'])}" if row["found"] else ""
        return f"{output.plain(row['name'])} {said}{where} (after {row['seconds']:.1f} s)"

    for_each(app, found, several, act, sentence, parallel)
