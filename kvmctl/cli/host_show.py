"""kvmctl host info, kvmctl host overcommit"""

from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, dry_run, everywhere
from kvmctl.cli.output import Column, Row
from kvmctl.errors import UsageProblem
from kvmctl.model.units import human_size


@click.command()
@everywhere
@click.pass_obj
def info(app: App) -> None:
    """Show the host: its CPUs and memory, versions, guests, networks and storage pools.

    \b
    Examples:
      kvmctl host info
      kvmctl host info -c qemu+ssh://root@server/system -o json
    """
    from kvmctl.operations import host_info

    row = host_info.info(app.connect())
    output.show_one(app, row, lambda: _info_lines(row), name="hostname")


def _info_lines(row: Row) -> list[tuple[str, Any]]:
    free = row["memory_available_bytes"] if row["memory_available_bytes"] is not None else row["memory_free_bytes"]
    networks = [f"{n['name']} ({'active' if n['active'] else 'inactive'})" for n in row["networks"]]
    pools = [
        f"{p['name']} ({human_size(p['available_bytes']) + ' free' if p['active'] else 'inactive'}, {p['path'] or '-'})"
        for p in row["pools"]
    ]
    return [
        ("hostname", row["hostname"]),
        ("uri", row["uri"]),
        ("versions", f"libvirt {row['libvirt']}, {row['hypervisor']} {row['hypervisor_version']}"),
        ("accelerator", row["accel"]),
        ("cpu", f"{row['cpu_model'] or 'unknown'} ({row['arch']})"),
        (
            "cpus",
            f"{row['cpus']}: {row['sockets']} sockets x {row['cores_per_socket']} cores x "
            f"{row['threads_per_core']} threads, {row['numa_nodes']} NUMA nodes",
        ),
        ("memory", f"{human_size(row['memory_bytes'])}, {human_size(free)} available"),
        ("guests", f"{row['guests_running']} running of {row['guests']}"),
        ("architectures", row["architectures"] and ", ".join(row["architectures"])),
        ("networks", networks),
        ("pools", pools),
    ]


@click.command()
@click.option("--reclaim", is_flag=True, help="Ask running guests' balloons for the memory they can spare.")
@dry_run
@everywhere
@click.pass_obj
def overcommit(app: App, reclaim: bool, dry_run: bool) -> None:
    """Show what guests were promised, what they use, and what the host has.

    Guests that are off count for nothing but the "all started" figures. --reclaim lowers the balloons of running
    guests to what they use and some spare; their definitions stay, and a restart gives all back.

    \b
    Examples:
      kvmctl host overcommit
      kvmctl host overcommit --reclaim --dry-run
      kvmctl host overcommit -o json
    """
    from kvmctl.operations import overcommit as operation

    if dry_run and not reclaim:
        raise UsageProblem("--dry-run goes with --reclaim; without it nothing is changed anyway")
    hypervisor = app.connect()
    found = operation.look(hypervisor)
    if not reclaim:
        row = found.as_dict()
        if app.machine_readable:
            output.show_one(app, row, name="memory_ratio")
        else:
            _show(app, row)
        return
    from kvmctl.operations import reclaim as reclaiming

    wishes = reclaiming.plan(found)
    if dry_run:
        rows = [
            {"name": w.guest.name, "from_bytes": w.guest.memory_bytes, "to_bytes": w.to, "reason": w.reason}
            for w in wishes
        ]
        output.show_list(
            app, rows, [c for c in _RECLAIM if c.key in rows[0]] if rows else _RECLAIM, empty="No guest runs."
        )
        return
    with output.progress(app) as progress:
        result = reclaiming.run(hypervisor, wishes, progress)
    if app.machine_readable:
        output.show_one(app, result)
        return
    output.show_list(app, result["guests"], _RECLAIM, empty="No guest runs.")
    before, after = result["host_available_before_bytes"], result["host_available_after_bytes"]
    output.show_text(f"\nThe host's available memory: {human_size(before)} before, {human_size(after)} now.")


_RECLAIM = [
    Column("name", "NAME"),
    Column("from_bytes", "FROM", human_size, right=True),
    Column("to_bytes", "TO", human_size, right=True),
    Column("now_bytes", "NOW", human_size, right=True),
    Column("resident_before_bytes", "ON HOST BEFORE", human_size, right=True),
    Column("resident_after_bytes", "AND NOW", human_size, right=True),
    Column("reason", "REASON"),
]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


_GUESTS = [
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("vcpus", "VCPUS", right=True),
    Column("cpu_percent", "CPU", _percent, right=True),
    Column("memory_bytes", "PROMISED", human_size, right=True),
    Column("resident_bytes", "ON HOST", human_size, right=True),
    Column("used_bytes", "USED", human_size, right=True),
    Column("spare_bytes", "SPARE", human_size, right=True),
    Column("ballooned_bytes", "BALLOON", human_size, wide=True, right=True),
    Column("memory_max_bytes", "MAXIMUM", human_size, wide=True, right=True),
]


def _show(app: App, row: Row) -> None:
    ksm = row["ksm"]
    state = {True: "on", False: "off", None: "unknown"}[ksm["on"]]
    memory_ = (
        f"{human_size(row['memory_allocated_bytes'])} promised, {human_size(row['memory_bytes'])} there "
        f"({row['memory_ratio']:.2f}); guests hold {human_size(row['memory_resident_bytes'])}, "
        f"{human_size(row['memory_available_bytes'])} available"
    )
    lines: list[tuple[str, Any]] = [
        (
            "CPUs",
            f"{row['vcpus_allocated']} vCPUs promised, {row['cpus']} CPUs there ({row['cpu_ratio']:.2f}); "
            f"{_percent(row['cpu_percent'])} busy",
        ),
        ("memory", memory_),
        ("all started", f"{row['vcpus_defined']} vCPUs, {human_size(row['memory_defined_bytes'])}"),
        ("swap", f"{human_size(row['swap_used_bytes'])} used of {human_size(row['swap_bytes'])}"),
        ("KSM", f"{state}, saves {human_size(ksm['saved_bytes'])}"),
    ]
    output.show_one(app, row, lambda: lines)
    if row["guests"]:
        output.show_text("")
        output.show_list(app, row["guests"], _GUESTS)
    for text in row["warnings"]:
        output.warn(app, text)
