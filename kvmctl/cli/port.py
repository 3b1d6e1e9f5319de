"""kvmctl port: ports of the host that lead to a guest's."""

from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere
from kvmctl.cli.output import Column
from kvmctl.errors import UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor

VM = click.argument("vm", shell_complete=complete_vms)


@click.group()
@everywhere
def port() -> None:
    """Publish ports of guests behind NAT or in user networking on the host.

    \b
    Examples:
      kvmctl port add web 8080:80
      kvmctl port list
      kvmctl port remove web 8080
    """


@port.command()
@VM
@click.argument("forwards", nargs=-1, required=True, metavar="[ADDR:]HOST:GUEST[/udp]...")
@dry_run
@everywhere
@click.pass_obj
def add(app: App, vm: str, forwards: tuple[str, ...], dry_run: bool) -> None:
    """Publish ports of a guest, running or not; open connections are not disturbed.

    Without ADDR a guest behind NAT is published on every address of the host, one in user networking on
    127.0.0.1. Ranges are equally long on both sides: 6000-6010:6000-6010/udp.

    \b
    Examples:
      kvmctl port add web 8080:80
      kvmctl port add web 127.0.0.1:2222:22
      kvmctl port add dns 53:53/udp
    """
    from kvmctl.model.forward import parse_forward, written
    from kvmctl.operations import ports

    wanted = [forward for text in forwards for forward in parse_forward(text)]
    _refuse_twins(wanted)
    hypervisor = app.connect()
    plan = ports.plan_add(hypervisor, vm, wanted)
    if dry_run:
        rows = [{"vm": plan.vm, "forward": written(forward), "via": plan.way.kind} for forward in plan.forwards]
        output.show_list(
            app, rows, [Column("vm", "VM"), Column("forward", "FORWARD"), Column("via", "VIA")], name="forward"
        )
        return
    _show(app, ports.add(hypervisor, plan), f"published already for {plan.vm}")
    if told := ports.what_is_not_kept(plan):
        output.info(app, f"note: {told}")


def _refuse_twins(wanted: list[Any]) -> None:
    from kvmctl.model.forward import written

    seen: dict[tuple[str, str | None, int], Any] = {}
    for forward in wanted:
        key = (forward.protocol, forward.address, forward.host_port)
        if key in seen:
            raise UsageProblem(f"{written(forward)} and {written(seen[key])} want the same port of the host")
        seen[key] = forward


@port.command("list")
@click.argument("vm", required=False, shell_complete=complete_vms)
@everywhere
@click.pass_obj
def list_ports(app: App, vm: str | None) -> None:
    """List published ports, and say which are not in force and why.

    \b
    Examples:
      kvmctl port list
      kvmctl port list web -o json
    """
    from kvmctl.operations import ports

    _show(app, ports.rows(app.connect(), vm), "no published ports; 'kvmctl port add VM HOST:GUEST' publishes one")


def _show(app: App, rows: list[dict[str, Any]], empty: str) -> None:
    output.show_list(
        app,
        rows,
        [
            Column("vm", "VM"),
            Column("protocol", "PROTOCOL"),
            Column("address", "ADDRESS"),
            Column("host_port", "PORT", right=True),
            Column("guest_ip", "GUEST"),
            Column("guest_port", "PORT", right=True),
            Column("active", "ACTIVE"),
            Column("via", "VIA", wide=True),
        ],
        name="host_port",
        empty=empty,
    )
    if not app.machine_readable:
        for reason in dict.fromkeys(f"{row['vm']}: {row['reason']}" for row in rows if row["reason"]):
            output.warn(app, reason)


@port.command()
@VM
@click.argument("forwards", nargs=-1, metavar="FORWARD...")
@click.option("--all", "all_", is_flag=True, help="Every port published for the VM.")
@everywhere
@click.pass_obj
def remove(app: App, vm: str, forwards: tuple[str, ...], all_: bool) -> None:
    """Take published ports back. FORWARD is what was published, or its host port: 8080, 53/udp.

    \b
    Examples:
      kvmctl port remove web 8080
      kvmctl port remove web 127.0.0.1:2222:22
      kvmctl port remove web --all
    """
    from kvmctl.operations import ports

    if bool(forwards) == all_:
        raise UsageProblem("name the forwards to take back, or --all of them", f"'kvmctl port list {vm}' shows them")
    hypervisor = app.connect()
    done = ports.remove(hypervisor, ports.plan_remove(hypervisor, vm, forwards, everything=all_))
    gone = ", ".join(done["removed"])
    output.show_one(
        app, done, lambda: f"{done['vm']}: no longer published: {gone}" if gone else "nothing is published", "vm"
    )


@port.command()
@click.option("--patient", is_flag=True, hidden=True, help="Wait up to a minute for libvirt (used by its hooks).")
@click.option("--settle", is_flag=True, hidden=True, help="Stay until nobody changes rules any more (by its hooks).")
@everywhere
@click.pass_obj
def sync(app: App, patient: bool, settle: bool) -> None:
    """Make the host's firewall rules what the running guests ask for.

    libvirt's hooks do this whenever a guest or network starts or stops ('kvmctl host setup' installs them);
    by hand it is needed only after the firewall was flushed.

    \b
    Examples:
      kvmctl port sync
    """
    from kvmctl.operations import port_settle, ports

    def connect() -> "Hypervisor":
        return ports.patiently(app.connect) if patient else app.connect()

    count = port_settle.settle(connect) if settle else ports.repair(connect())
    output.show_one(
        app, {"active": count}, lambda: f"{count} published port{'' if count == 1 else 's'} in force", "active"
    )
