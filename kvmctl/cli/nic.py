"""kvmctl nic: the network cards of a VM."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere, timeout
from kvmctl.cli.output import Column

F = TypeVar("F", bound=Callable[..., Any])

VM = click.argument("vm", shell_complete=complete_vms)
MAC = click.argument("mac")


def scope(command: F) -> F:
    """``--live`` and ``--config``: by default both definitions are changed together."""
    command = click.option("--config", is_flag=True, help="Only the saved definition.")(command)
    return click.option("--live", is_flag=True, help="Only the running guest.")(command)


@click.group()
@everywhere
def nic() -> None:
    """List, plug in and pull out a VM's network cards.

    \b
    Examples:
      kvmctl nic list web
      kvmctl nic attach web bridge:br0
      kvmctl nic link web 52:54:00:12:34:56 down
    """


@nic.command("list")
@VM
@everywhere
@click.pass_obj
def list_nics(app: App, vm: str) -> None:
    """List a VM's cards and their addresses.

    \b
    Examples:
      kvmctl nic list web
      kvmctl nic list web -o json
    """
    from kvmctl.operations import nics

    output.show_list(
        app,
        nics.listing(app.connect(), vm),
        [
            Column("mac", "MAC"),
            Column("model", "MODEL"),
            Column("mode", "MODE"),
            Column("source", "SOURCE"),
            Column("target", "TARGET"),
            Column("link_up", "LINK", lambda up: "up" if up else "down"),
            Column("ips", "ADDRESSES"),
            Column("macvtap_mode", "MACVTAP", wide=True),
            Column("reserved", "RESERVED", wide=True),
            Column("live", "LIVE", wide=True),
            Column("saved", "SAVED", wide=True),
        ],
        name="mac",
        empty=f"{vm} has no network cards; 'kvmctl nic attach {vm} nat' plugs one in",
    )


@nic.command()
@VM
@click.argument("network")
@click.option("--nic-model", metavar="MODEL", help="virtio (the default), e1000, e1000e, rtl8139, …")
@scope
@dry_run
@everywhere
@click.pass_obj
def attach(app: App, vm: str, network: str, nic_model: str | None, live: bool, config: bool, dry_run: bool) -> None:
    """Plug a card into a VM, running or not.

    NETWORK is what --net of create takes: nat[:NETWORK], bridge:BR, macvtap:DEV[:MODE], network:NAME or
    user, each with ,model= ,mac= and ,ip=.

    \b
    Examples:
      kvmctl nic attach web nat
      kvmctl nic attach web network:lab,ip=192.168.50.9
      kvmctl nic attach web macvtap:eth1:private,model=e1000e
    """
    from kvmctl.model.nic import parse_nic
    from kvmctl.operations import nics

    hypervisor = app.connect()
    plan = nics.plan_attach(hypervisor, vm, parse_nic(network, nic_model), live=live, config=config)
    for warning in plan.findings.warnings:
        output.warn(app, warning)
    if dry_run:
        if app.output in ("json", "yaml"):
            output.show_one(app, {"vm": plan.vm, "mac": plan.nic.mac, "changed": False, "xml": plan.xml})
        else:
            output.show_text(plan.xml)
        return
    made = {**nics.attach(hypervisor, plan), "changed": True}
    output.show_one(app, made, lambda: f"card {made['mac']} plugged into {made['vm']}", name="mac")
    for note in plan.findings.notes:
        output.info(app, f"note: {note}")


@nic.command()
@VM
@MAC
@scope
@timeout("30s")
@everywhere
@click.pass_obj
def detach(app: App, vm: str, mac: str, live: bool, config: bool, timeout: float) -> None:
    """Pull a card out of a VM, running or not.

    \b
    Examples:
      kvmctl nic detach web 52:54:00:12:34:56
    """
    from kvmctl.operations import nics

    gone = nics.detach(app.connect(), vm, mac, live=live, config=config, timeout=timeout)
    output.show_one(app, gone, lambda: f"card {gone['mac']} pulled out of {gone['vm']}", name="mac")


@nic.command()
@VM
@MAC
@click.argument("state", type=click.Choice(("up", "down")))
@scope
@everywhere
@click.pass_obj
def link(app: App, vm: str, mac: str, state: str, live: bool, config: bool) -> None:
    """Plug a card's cable in (up) or out (down).

    \b
    Examples:
      kvmctl nic link web 52:54:00:12:34:56 down
    """
    from kvmctl.operations import nics

    row = nics.link(app.connect(), vm, mac, up=state == "up", live=live, config=config)
    told = "" if row["changed"] else " already"
    output.show_one(app, row, lambda: f"link of {row['mac']} is {state}{told}", name="mac")
