"""kvmctl usb"""

import click

from kvmctl.cli import output
from kvmctl.cli.nic import scope
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere, timeout
from kvmctl.cli.output import Column
from kvmctl.model.names import harmless


@click.group()
@everywhere
def usb() -> None:
    """List the host's USB devices and pass them to VMs.

    \b
    Examples:
      kvmctl usb list
      kvmctl usb attach web 046d:c52b
    """


@usb.command("list")
@everywhere
@click.pass_obj
def list_(app: App) -> None:
    """List the host's USB devices and which VM has them.

    \b
    Examples:
      kvmctl usb list
      kvmctl usb list -o json
    """
    from kvmctl.operations import usb as operation

    output.show_list(
        app,
        operation.listing(app.connect()),
        [
            Column("address", "BUS:DEVICE"),
            Column("vendor_id", "VENDOR ID"),
            Column("product_id", "PRODUCT ID"),
            Column("vendor", "VENDOR"),
            Column("product", "PRODUCT"),
            Column("assignable", "ASSIGNABLE"),
            Column("used_by", "USED BY"),
            Column("reason", "REASON"),
            Column("driver", "DRIVER", wide=True),
        ],
        name="address",
        empty="the host has no USB device",
    )


@usb.command()
@click.argument("vm", shell_complete=complete_vms)
@click.argument("device")
@scope
@dry_run
@everywhere
@click.pass_obj
def attach(app: App, vm: str, device: str, live: bool, config: bool, dry_run: bool) -> None:
    """Pass a USB device of the host to a VM, now and for later starts.

    DEVICE is VENDOR:PRODUCT, which stays when it is plugged in anew, or BUS:DEVICE.

    \b
    Examples:
      kvmctl usb attach web 046d:c52b
      kvmctl usb attach web 001:004 --live
    """
    from kvmctl.model.usb import UsbSelector
    from kvmctl.operations import usb as operation

    selector = UsbSelector.parse(device)
    hypervisor = app.connect()
    plan = operation.plan_attach(hypervisor, vm, selector, live=live, config=config)
    if dry_run:
        row = {**plan.row(), "dry_run": True, "xml": plan.xml()}
        output.show_one(app, row, lambda: plan.xml() or "nothing to do", name="vm")
        return
    row = operation.run_attach(hypervisor, plan)
    done = f"{row['device']} ({row['ids']}) passed to {harmless(plan.name)}, {plan.affect.words}"
    same = f"{harmless(plan.name)} has {row['device']} already"
    output.show_one(app, row, lambda: done if row["changed"] else same, name="vm")


@usb.command()
@click.argument("vm", shell_complete=complete_vms)
@click.argument("device")
@scope
@timeout("30s")
@dry_run
@everywhere
@click.pass_obj
def detach(app: App, vm: str, device: str, live: bool, config: bool, timeout: float, dry_run: bool) -> None:
    """Take a USB device from a VM and give it back to the host.

    \b
    Examples:
      kvmctl usb detach web 046d:c52b
    """
    from kvmctl.model.usb import UsbSelector
    from kvmctl.operations import usb as operation

    selector = UsbSelector.parse(device)
    hypervisor = app.connect()
    plan = operation.plan_detach(hypervisor, vm, selector, live=live, config=config)
    if dry_run:
        output.show_one(app, {**plan.row(), "dry_run": True, "xml": plan.xml()}, plan.xml, name="vm")
        return
    row = operation.run_detach(hypervisor, plan, timeout)
    output.show_one(
        app, row, lambda: f"{row['device']} taken from {harmless(plan.name)}, {plan.affect.words}", name="vm"
    )
