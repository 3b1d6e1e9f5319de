"""Showing the list of VMs: what ``list`` and ``ps`` do, with click and without."""

from typing import Any

from kvmctl.cli import output, without_click
from kvmctl.cli.app import App
from kvmctl.cli.output import Column
from kvmctl.model.units import human_duration, human_size


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


COLUMNS = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("id", "ID", wide=True, right=True),
    Column("vcpus", "VCPUS", right=True),
    Column("memory_bytes", "MEMORY", human_size, right=True),
    Column("autostart", "AUTOSTART"),
    Column("cpu_percent", "CPU%", _percent, wide=True, right=True),
    Column("uptime_seconds", "UPTIME", human_duration, wide=True, right=True),
    Column("ips", "IPS", wide=True),
    Column("os", "OS", wide=True),
)


def show(app: App, names: tuple[str, ...], *, wide: bool, active: bool) -> None:
    """List the VMs that ``names`` mean (all without any); ``active``: only those that run."""
    from kvmctl.operations import listing

    if wide and app.output == "table":
        app.output = "wide"
    hypervisor = app.connect()
    rows = listing.listing(hypervisor, names, active=active, wide=wide or app.output == "wide")
    empty = None
    if not rows and not app.quiet:
        empty = f"no VM {'runs' if active else 'is defined'} on {hypervisor.uri}"
        hint = listing.elsewhere(hypervisor)
        empty = f"{empty}; {hint}" if hint else empty
        if app.machine_readable and hint:
            output.info(app, empty)
    output.show_list(app, rows, COLUMNS, empty=empty)


def plain(arguments: list[str]) -> tuple[App, tuple[str, ...], bool] | None:
    """(app, names, only active ones) where ``arguments`` are list or ps in the forms that scripts call most.

    None for every other command line, those with an error in them too: click reads them.
    """
    line = without_click.read(arguments)
    if line is None or line.words[:1] not in (("list",), ("ls",), ("ps",)):
        return None
    return line.app, line.words[1:], line.words[0] == "ps"
