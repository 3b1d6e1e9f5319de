"""kvmctl clone"""

from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere
from kvmctl.cli.tidying import tidy
from kvmctl.errors import UsageProblem


@click.command()
@click.argument("source", metavar="SRC", shell_complete=complete_vms)
@click.argument("name", metavar="DST")
@click.option("--full", is_flag=True, help="Copy every byte, so that the copy stands on nothing of the source.")
@click.option("--live", is_flag=True, help="Fork a running VM with its memory.")
@click.option("--count", type=click.IntRange(1, 256), metavar="N", help="Make N copies: DST-1 to DST-N.")
@click.option("--start", is_flag=True, help="Start the copies.")
@click.option("--keep-identity", is_flag=True, help="Change nothing inside: machine-id, host keys, host name stay.")
@click.option("--pool", metavar="POOL", help="Put the copies' disks into this storage pool.")
@dry_run
@everywhere
@click.pass_obj
def clone(
    app: App,
    source: str,
    name: str,
    full: bool,
    live: bool,
    count: int | None,
    start: bool,
    keep_identity: bool,
    pool: str | None,
    dry_run: bool,
) -> None:
    """Copy a VM, running or not: linked (copy-on-write) unless --full.

    The copy gets a new UUID, new MAC addresses, and inside a new machine-id, SSH host keys and host name.
    A running source goes on; its disks are frozen at one moment.

    \b
    Examples:
      kvmctl clone web web2
      kvmctl clone web worker --count 4 --start
      kvmctl clone web archive --full
      kvmctl clone web fork --live
    """
    from kvmctl.operations import clone as operation
    from kvmctl.operations import clone_live, clone_plan

    if full and live:
        raise UsageProblem("--full and --live do not go together", "a live copy is always linked")
    hypervisor = app.connect(events=live)
    if not dry_run:
        tidy(app, hypervisor, source)
    plan = clone_plan.plan(
        hypervisor,
        source,
        name,
        mode="full" if full else "live" if live else "linked",
        count=count,
        start=start,
        keep_identity=keep_identity,
        pool=pool,
    )
    if dry_run:
        rows = plan.as_dicts()
        _show(app, rows, count is not None, lambda row: f"would make {_sentence(row)}\n{row['xml']}")
        return
    for note in plan.notes:
        output.warn(app, note)
    with output.progress(app) as progress:
        rows = clone_live.run(hypervisor, plan, progress) if live else operation.run(hypervisor, plan, progress)
    for row in rows:
        for warning in row.get("warnings", []):
            output.warn(app, warning)
    _show(app, rows, count is not None, _sentence)


def _sentence(row: dict[str, Any]) -> str:
    took = f" in {row['seconds']:.1f} s" if "seconds" in row else ""
    pause = f", {row['source']} was paused for {row['pause_ms']} ms" if row.get("pause_ms") is not None else ""
    return output.plain(f"{row['name']}: {row['mode']} clone of {row['source']}{took}{pause}")


def _show(app: App, rows: list[dict[str, Any]], several: bool, sentence: Any) -> None:
    if not several:
        output.show_one(app, rows[0], lambda: sentence(rows[0]))
    elif app.machine_readable:
        output.show_list(app, rows, [])
    else:
        for row in rows:
            output.show_text(sentence(row))
