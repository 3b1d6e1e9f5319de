"""kvmctl device: a VM's devices beside disks and cards."""

import click

from kvmctl.cli import output
from kvmctl.cli.nic import VM, scope
from kvmctl.cli.options import App, dry_run, everywhere, timeout
from kvmctl.cli.output import Column
from kvmctl.model.names import harmless


@click.group()
@everywhere
def device() -> None:
    """List, plug in and pull out watchdogs, vsocks, shares and the like.

    \b
    Examples:
      kvmctl device list web
      kvmctl device attach web rng
    """


@device.command("list")
@VM
@everywhere
@click.pass_obj
def list_(app: App, vm: str) -> None:
    """List a VM's devices beside disks and cards.

    \b
    Examples:
      kvmctl device list web
      kvmctl device list web -o json
    """
    from kvmctl.operations import devices

    output.show_list(
        app,
        devices.listing(app.connect(), vm),
        [
            Column("name", "NAME"),
            Column("kind", "KIND", wide=True),
            Column("detail", "DETAIL"),
            Column("live", "RUNNING"),
            Column("saved", "SAVED"),
        ],
        name="name",
        empty=f"{harmless(vm)} has no such device",
    )


@device.command()
@VM
@click.argument("device", metavar="KIND[,OPTION...]")
@scope
@dry_run
@everywhere
@click.pass_obj
def attach(app: App, vm: str, device: str, live: bool, config: bool, dry_run: bool) -> None:
    """Plug a device into a VM, now and for later starts.

    watchdog[,action=A], vsock, rng, serial, parallel, panic, share=DIR:TAG[,driver=virtiofs][,readonly] or
    mdev=UUID[,display=on]. What a running VM cannot take is refused; --config adds it for its next start.

    \b
    Examples:
      kvmctl device attach web rng
      kvmctl device attach web share=/srv/data:data --config
      kvmctl device attach web mdev=4b20d080-1b54-4048-85b3-a6a62d165c01
    """
    from kvmctl.model.extras import parse_device
    from kvmctl.operations import devices

    hypervisor = app.connect()
    plan = devices.plan_attach(hypervisor, vm, parse_device(device), live=live, config=config)
    if dry_run:
        row = {"vm": plan.name, "kind": plan.kind, "device": None, "live": plan.affect.live}
        row |= {"config": plan.affect.config, "dry_run": True, "xml": plan.xml()}
        output.show_one(app, row, plan.xml, name="vm")
        return
    row = devices.run_attach(hypervisor, plan)
    output.show_one(
        app, row, lambda: f"{row['device']} added to {harmless(plan.name)}, {plan.affect.words}", name="device"
    )


@device.command()
@VM
@click.argument("device")
@scope
@timeout("30s")
@dry_run
@everywhere
@click.pass_obj
def detach(app: App, vm: str, device: str, live: bool, config: bool, timeout: float, dry_run: bool) -> None:
    """Pull a device out of a VM.

    DEVICE is a name in 'kvmctl device list', or its kind where there is one of it.

    \b
    Examples:
      kvmctl device detach web rng1
      kvmctl device detach web share=data --config
    """
    from kvmctl.operations import devices

    hypervisor = app.connect()
    plan = devices.plan_detach(hypervisor, vm, device, live=live, config=config)
    if dry_run:
        row = {"vm": plan.name, "kind": plan.kind, "device": harmless(plan.device), "live": plan.live is not None}
        row |= {"config": plan.saved is not None, "dry_run": True, "xml": plan.xml()}
        output.show_one(app, row, plan.xml, name="vm")
        return
    row = devices.run_detach(hypervisor, plan, timeout)
    output.show_one(
        app, row, lambda: f"{row['device']} taken from {harmless(plan.name)}, {plan.affect.words}", name="device"
    )
