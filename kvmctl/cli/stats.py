"""kvmctl stats, top"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kvmctl.cli import output
from kvmctl.cli.options import DURATION, App, complete_vms, everywhere
from kvmctl.cli.output import Column
from kvmctl.model.units import human_size

F = TypeVar("F", bound=Callable[..., Any])


def _rate(value: Any) -> str:
    return "-" if value is None else f"{human_size(value)}/s"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("vcpus", "VCPUS", right=True),
    Column("cpu_percent", "CPU%", _percent, right=True),
    Column("memory_bytes", "MEMORY", human_size, right=True),
    Column("memory_used_bytes", "USED", human_size, right=True),
    Column("disk_read_bytes_per_second", "READ", _rate, right=True),
    Column("disk_written_bytes_per_second", "WRITTEN", _rate, right=True),
    Column("net_received_bytes_per_second", "RECEIVED", _rate, right=True),
    Column("net_sent_bytes_per_second", "SENT", _rate, right=True),
    Column("disk_read_bytes", "READ TOTAL", human_size, wide=True, right=True),
    Column("disk_written_bytes", "WRITTEN TOTAL", human_size, wide=True, right=True),
    Column("net_received_bytes", "RECEIVED TOTAL", human_size, wide=True, right=True),
    Column("net_sent_bytes", "SENT TOTAL", human_size, wide=True, right=True),
)
_NOBODY = "no VM runs"


def _interval(default: str) -> Callable[[F], F]:
    return click.option(
        "--interval", type=DURATION, default=default, show_default=True, metavar="TIME", help="The while to look at."
    )


@click.command()
@click.argument("names", nargs=-1, metavar="[VM]...", shell_complete=complete_vms)
@_interval("1s")
@everywhere
@click.pass_obj
def stats(app: App, names: tuple[str, ...], interval: float) -> None:
    """Show what running VMs use: CPU, memory, disks, network.

    CPU% is of one of the host's CPUs. USED is what the guest says, where its balloon driver tells.

    \b
    Examples:
      kvmctl stats
      kvmctl stats web-1 -o json --interval 5s
    """
    from kvmctl.operations import stats as operation

    hypervisor = app.connect()
    wanted = _wanted(hypervisor, names)
    before = operation.sample(hypervisor)
    time.sleep(interval)
    rows = operation.rows(before, operation.sample(hypervisor), wanted)
    output.show_list(app, rows, COLUMNS, empty=_NOBODY)


@click.command()
@click.argument("names", nargs=-1, metavar="[VM]...", shell_complete=complete_vms)
@_interval("2s")
@everywhere
@click.pass_obj
def top(app: App, names: tuple[str, ...], interval: float) -> None:
    """Watch what running VMs use, the busiest first.

    Ctrl-C ends it. Where the output is no terminal it is shown once, as stats does.

    \b
    Examples:
      kvmctl top
      kvmctl top 'web-*' --interval 5s
    """
    from kvmctl.operations import stats as operation

    hypervisor = app.connect()
    wanted = _wanted(hypervisor, names)
    last = operation.sample(hypervisor)

    def look() -> list[dict[str, Any]]:
        nonlocal last
        before, last = last, operation.sample(hypervisor)
        rows = operation.rows(before, last, wanted)
        return sorted(rows, key=lambda row: row["cpu_percent"] or 0.0, reverse=True)

    time.sleep(min(interval, 1.0))
    if app.machine_readable or not sys.stdout.isatty():
        output.show_list(app, look(), COLUMNS, empty=_NOBODY)
        return
    # Ctrl-C is how it is meant to end, so it is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        output.live_list(app, look, COLUMNS, interval, _NOBODY)


def _wanted(hypervisor: Any, names: tuple[str, ...]) -> list[str] | None:
    """The UUIDs meant by ``names``, None for all. Raises NotFound."""
    from kvmctl.operations.selection import matching

    return [hypervisor.find(name).UUIDString() for name in matching(hypervisor, names)] if names else None
