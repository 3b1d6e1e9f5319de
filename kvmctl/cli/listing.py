"""kvmctl list, ps, info"""

from typing import Any

import click

from kvmctl.cli import listing_rows, output
from kvmctl.cli.options import App, complete_vms, everywhere
from kvmctl.model.units import human_duration, human_size


@click.command("list")
@click.argument("names", nargs=-1, metavar="[VM]...", shell_complete=complete_vms)
@click.option("--wide", is_flag=True, help="Addresses, OS, uptime and CPU use too (also in JSON).")
@everywhere
@click.pass_obj
def list_command(app: App, names: tuple[str, ...], wide: bool) -> None:
    """List the VMs, running or not.

    CPU% is of one of the host's CPUs: a VM with two busy vCPUs has 200.

    \b
    Examples:
      kvmctl list
      kvmctl list 'web-*' -o wide
      kvmctl list -o json --wide
    """
    listing_rows.show(app, names, wide=wide, active=False)


@click.command()
@click.argument("names", nargs=-1, metavar="[VM]...", shell_complete=complete_vms)
@click.option("--wide", is_flag=True, help="Addresses, OS, uptime and CPU use too (also in JSON).")
@everywhere
@click.pass_obj
def ps(app: App, names: tuple[str, ...], wide: bool) -> None:
    """List the VMs that run (or are paused).

    \b
    Examples:
      kvmctl ps
      kvmctl ps -o wide
      kvmctl ps -o name | xargs kvmctl stop
    """
    listing_rows.show(app, names, wide=wide, active=True)


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@everywhere
@click.pass_obj
def info(app: App, vm: str) -> None:
    """Show all there is to know of one VM.

    \b
    Examples:
      kvmctl info web-1
      kvmctl info web-1 -o json
    """
    from kvmctl.operations import info as operation

    row = operation.info(app.connect(), vm)
    output.show_one(app, row, lambda: _lines(row))


def _lines(row: dict[str, Any]) -> list[tuple[str, Any]]:
    state = row["state"] + (" (state saved)" if row["managed_save"] else "")
    state += f", up {human_duration(row['uptime_seconds'])}" if row["uptime_seconds"] is not None else ""
    state += f", {row['cpu_percent']:.1f}% CPU" if row["cpu_percent"] is not None else ""
    memory = human_size(row["memory_bytes"])
    if row["max_memory_bytes"] != row["memory_bytes"]:
        memory += f" of {human_size(row['max_memory_bytes'])}"
    vcpus = str(row["vcpus"]) + (f" of {row['max_vcpus']}" if row["max_vcpus"] != row["vcpus"] else "")
    lines: list[tuple[str, Any]] = [
        ("name", row["name"]),
        ("title", row["title"]),
        ("description", (row["description"] or "").split("\n")),
        ("uuid", row["uuid"]),
        ("state", state),
        ("vcpus", vcpus),
        ("memory", memory),
        ("machine", " ".join(filter(None, (row["accel"], row["arch"], row["machine"], row["firmware"])))),
        ("cpu", row["cpu"]),
        ("os", row["os"]),
        ("addresses", row["ips"]),
        ("agent", row["agent"] or "no channel"),
        ("autostart", _autostart(row)),
        ("protected", row["protected"]),
        ("persistent", row["persistent"]),
        ("disks", [line for disk in row["disks"] for line in (_disk(disk), *_chain(disk))]),
        ("nics", [_nic(nic) for nic in row["nics"]]),
        ("pci", [" ".join(str(v) for v in (p["address"], p["model"] or "")) for p in row["pci"]]),
        ("ports", [_port(port) for port in row["ports"]]),
        ("graphics", [_graphics(graphics) for graphics in row["graphics"]]),
        ("snapshots", row["snapshots"]),
    ]
    return [(label, value) for label, value in lines if value not in (None, [], [""], "")]


def _autostart(row: dict[str, Any]) -> str:
    if row["autostart_order"] is None:
        return "yes" if row["autostart"] else "no"
    delay = row["autostart_delay_seconds"]
    order = f"start order {row['autostart_order']}" + (f", {human_duration(delay)} before the next" if delay else "")
    return f"yes, {order}" if row["autostart"] else f"no ({order}: only once 'kvmctl host setup' was run)"


def _disk(disk: dict[str, Any]) -> str:
    size = f"{human_size(disk['allocation_bytes'])} of {human_size(disk['capacity_bytes'])}"
    parts = (disk["target"], disk["bus"], disk["format"], disk["source"] or "empty", size if disk["source"] else "")
    return "  ".join(part for part in parts if part)


def _chain(disk: dict[str, Any]) -> list[str]:
    parts = [disk["source"], *disk["backing_chain"]]
    return [
        f"{' ' * (len(disk['target']) + 2 * depth)}└─ on {path}"
        + (", in a circle" if path in parts[: depth + 1] else "")
        for depth, path in enumerate(disk["backing_chain"])
    ]


def _nic(nic: dict[str, Any]) -> str:
    where = f"{nic['mode']}:{nic['source']}" if nic["source"] else nic["mode"]
    parts = (
        nic["mac"],
        nic["model"],
        where,
        nic["target"],
        " ".join(nic["ips"]),
        "" if nic["link_up"] else "link down",
    )
    return "  ".join(part for part in parts if part)


def _port(port: dict[str, Any]) -> str:
    return f"{port['address'] or '127.0.0.1'}:{port['host_port']} -> {port['guest_port']}/{port['protocol']}"


def _graphics(graphics: dict[str, Any]) -> str:
    port = graphics["port"]
    return str(graphics["type"]) + (f" {graphics['listen'] or '127.0.0.1'}:{port}" if port else "")
