"""kvmctl delete"""

from typing import Any, Literal

import click

from kvmctl.cli import output, targets
from kvmctl.cli.options import App, confirmed, dry_run, everywhere
from kvmctl.cli.options import targets as vms


@click.command()
@vms()
@click.option(
    "--storage",
    type=click.Choice(("own", "all", "none")),
    default="own",
    show_default=True,
    help="Which disks go: those kvmctl made, all that no other VM uses, or none.",
)
@confirmed
@dry_run
@everywhere
@click.pass_obj
def delete(
    app: App, names: tuple[str, ...], all_: bool, parallel: int, storage: Literal["own", "all", "none"], dry_run: bool
) -> None:
    """Delete VMs, with what kvmctl made for them: disks, seed, NVRAM, TPM state, snapshots, ports.

    What kvmctl did not make stays, unless --storage all. A running VM is powered off.

    \b
    Examples:
      kvmctl delete web
      kvmctl delete 'test-*' --yes
      kvmctl delete old --storage none
      kvmctl delete web --dry-run
    """
    from kvmctl.operations import delete as operation

    hypervisor = app.connect()
    chosen, several = targets.resolve(hypervisor, names, all_)
    if dry_run:

        def show(name: str) -> dict[str, Any]:
            plan = operation.plan(hypervisor, name, storage)
            return {"name": plan.name, "uuid": plan.uuid, "dry_run": True, "steps": plan.steps()}

        targets.for_each(app, chosen, several, show, lambda row: "\n".join(f"would {step}" for step in row["steps"]))
        return
    if not several and len(chosen) == 1:
        # What is not there, or protected, is said before anybody is asked.
        operation.plan(hypervisor, chosen[0], storage)
    if chosen:
        what = f"{', '.join(chosen[:8])}{' …' if len(chosen) > 8 else ''}"
        output.confirm(app, f"Delete {what} and {'its' if len(chosen) == 1 else 'their'} data?")

    with output.progress(app) as progress:

        def act(name: str) -> dict[str, Any]:
            row = operation.run(hypervisor, operation.plan(hypervisor, name, storage), progress)
            for warning in row["warnings"]:
                output.warn(app, warning)
            return row

        targets.for_each(app, chosen, several, act, _sentence, parallel)


def _sentence(row: dict[str, Any]) -> str:
    kept = f"; kept {', '.join(row['kept'])}" if row["kept"] else ""
    return f"deleted {row['name']}{kept}"
