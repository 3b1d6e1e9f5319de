"""kvmctl pci"""

from pathlib import Path
from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.nic import scope
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere, timeout
from kvmctl.cli.output import Column
from kvmctl.model.names import harmless

COLUMNS = [
    Column("address", "ADDRESS"),
    Column("class", "CLASS", wide=True),
    Column("vendor", "VENDOR", wide=True),
    Column("product", "PRODUCT"),
    Column("vendor_id", "VENDOR ID", wide=True),
    Column("product_id", "PRODUCT ID", wide=True),
    Column("driver", "DRIVER"),
    Column("iommu_group", "GROUP", right=True),
    Column("group_members", "MEMBERS", wide=True),
    Column("physical_function", "VF OF", wide=True),
    Column("virtual_functions", "VFS", wide=True),
    Column("assignable", "ASSIGNABLE", read=lambda value: "unknown" if value is None else "yes" if value else "no"),
    Column("used_by", "USED BY"),
    Column("reason", "REASON"),
]


MDEV_COLUMNS = [
    Column("uuid", "UUID"),
    Column("type", "TYPE"),
    Column("name", "NAME"),
    Column("parent", "PARENT"),
    Column("device_api", "API", wide=True),
    Column("iommu_group", "GROUP", right=True),
    Column("driver", "DRIVER", wide=True),
    Column("available", "CAN BE MADE", right=True),
    Column("used_by", "USED BY"),
]


@click.group()
@everywhere
def pci() -> None:
    """List the host's PCI devices and pass them to VMs.

    \b
    Examples:
      kvmctl pci list
      kvmctl pci attach web 01:00.0
    """


@pci.command("list")
@click.option("--assignable", is_flag=True, help="Only those that can be passed to a VM now.")
@click.option("--mdev", is_flag=True, help="The mediated devices instead, and the kinds that can be made.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Judge the host whose sys/ and proc/ are below DIR, without libvirt.",
)
@everywhere
@click.pass_obj
def list_(app: App, assignable: bool, mdev: bool, root: Path | None) -> None:
    """List the host's PCI devices, which can be passed to a VM, and why the others cannot.

    \b
    Examples:
      kvmctl pci list
      kvmctl pci list --assignable -o wide
      kvmctl -c qemu+ssh://host/system pci list -o json
      kvmctl pci list --mdev
    """
    from kvmctl.operations import pci_host

    if mdev:
        _list_mdev(app, root)
        return
    judge = pci_host.judge_tree(root) if root is not None else pci_host.judge_host(app.connect())
    rows = [row for row in pci_host.rows(judge) if row["assignable"] or not assignable]
    output.show_list(
        app, rows, COLUMNS, name="address", empty="no PCI device can be passed to a VM" if assignable else None
    )


def _list_mdev(app: App, root: Path | None) -> None:
    from kvmctl.operations import mdev as operation

    rows = operation.listing_of_tree(root) if root is not None else operation.listing(app.connect())
    output.show_list(
        app, rows, MDEV_COLUMNS, name="uuid", empty="no device of this host can be shared as mediated devices"
    )


@pci.command("attach")
@click.argument("vm", shell_complete=complete_vms)
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@click.option("--group", is_flag=True, help="Pass the whole IOMMU group of each device.")
@click.option("--vf", is_flag=True, help="Pass a free virtual function (SR-IOV) of each device.")
@click.option(
    "--force", is_flag=True, help="Even if a stopped VM has it too, or it is unknown whether the host needs it."
)
@scope
@dry_run
@everywhere
@click.pass_obj
def attach(
    app: App,
    vm: str,
    devices: tuple[str, ...],
    group: bool,
    vf: bool,
    force: bool,
    live: bool,
    config: bool,
    dry_run: bool,
) -> None:
    """Pass PCI devices of the host to a VM, now and for later starts.

    DEVICE is an address (0000:01:00.0 or 01:00.0) or VENDOR:PRODUCT, which takes a free one of that kind.
    libvirt gives it to vfio-pci when the guest runs, and back to its driver afterwards.

    \b
    Examples:
      kvmctl pci attach web 01:00.0
      kvmctl pci attach web 10de:2204 --group
      kvmctl pci attach web 03:00.0 --vf --config
    """
    from kvmctl.operations import pci as operation

    hypervisor = app.connect()
    plan = operation.plan_attach(hypervisor, vm, _selectors(devices, vf, group), live=live, config=config, force=force)
    for warning in plan.warnings:
        output.warn(app, warning)
    if dry_run:
        output.show_one(
            app, {**plan.row(), "dry_run": True, "xml": plan.xml()}, lambda: plan.xml() or "nothing to do", name="vm"
        )
        return
    row = operation.run_attach(hypervisor, plan)
    done = f"{', '.join(row['devices'])} passed to {harmless(plan.name)}, {plan.affect.words}"
    same = f"{harmless(plan.name)} has {', '.join(row['devices'])} already"
    output.show_one(app, row, lambda: done if row["changed"] else same, name="vm")


@pci.command("detach")
@click.argument("vm", shell_complete=complete_vms)
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@click.option("--group", is_flag=True, help="Take back all that the VM has of each device's IOMMU group.")
@scope
@timeout("30s")
@dry_run
@everywhere
@click.pass_obj
def detach(
    app: App, vm: str, devices: tuple[str, ...], group: bool, live: bool, config: bool, timeout: float, dry_run: bool
) -> None:
    """Take PCI devices from a VM and give them back to the host.

    \b
    Examples:
      kvmctl pci detach web 01:00.0
      kvmctl pci detach web 10de:2204 --group --config
    """
    from kvmctl.operations import pci as operation

    hypervisor = app.connect()
    plan = operation.plan_detach(hypervisor, vm, _selectors(devices, False, group), live=live, config=config)
    if dry_run:
        output.show_one(app, {**plan.row(), "dry_run": True, "xml": plan.xml()}, plan.xml, name="vm")
        return
    with output.progress(app) as progress:
        row = operation.run_detach(hypervisor, plan, timeout, progress)

    def sentence() -> str:
        held = [f"{address} ({driver or 'no driver'})" for address, driver in row["drivers"].items()]
        return f"{', '.join(held)} taken from {harmless(plan.name)}, {plan.affect.words}"

    output.show_one(app, row, sentence, name="vm")


def _selectors(devices: tuple[str, ...], vf: bool, group: bool) -> list[Any]:
    from kvmctl.model.pci import PciSelector

    options = (",vf" if vf else "") + (",group" if group else "")
    return [PciSelector.parse(device + options) for device in devices]
