"""kvmctl set"""

from typing import TYPE_CHECKING, Any, Literal

import click

from kvmctl.cli import output
from kvmctl.cli.create import WithMaximum
from kvmctl.cli.lifecycle import always_waits
from kvmctl.cli.options import MEMORY, App, dry_run, everywhere, targets
from kvmctl.cli.tuning_options import tuning_options
from kvmctl.errors import UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


@click.command("set")
@targets()
@click.option("--vcpus", type=WithMaximum(click.IntRange(1, 16384), "vCPUs"), metavar="N[,max=M]", help="vCPUs.")
@click.option("--memory", type=WithMaximum(MEMORY, "bytes"), metavar="SIZE[,max=SIZE]", help="Memory.")
@click.option("--title", metavar="TEXT", help="A short title; empty takes it away.")
@click.option("--description", metavar="TEXT", help="A description; empty takes it away.")
@click.option("--autostart/--no-autostart", default=None, help="Whether it starts with its host.")
@tuning_options
@click.option("--cpu", metavar="MODE|MODEL", help="host-model, maximum, a model …; for the next start.")
@click.option("--disk-limit", "disk_limits", multiple=True, metavar="TARGET,iops=N,bps=SIZE", help="0 takes one away.")
@click.option("--net-limit", "net_limits", multiple=True, metavar="MAC,in=SIZE,out=SIZE", help="Rates; 0: none.")
@click.option("--strict", is_flag=True, help="Refuse where the host would promise more than it should.")
@click.option("--live", is_flag=True, help="Only for the run, not for the next start.")
@click.option("--config", is_flag=True, help="Only for the next start, not for the run.")
@always_waits
@dry_run
@everywhere
@click.pass_obj
def set_command(
    app: App,
    /,
    names: tuple[str, ...],
    all_: bool,
    parallel: int,
    vcpus: tuple[int, int | None] | None,
    memory: tuple[int, int | None] | None,
    title: str | None,
    description: str | None,
    autostart: bool | None,
    strict: bool,
    live: bool,
    config: bool,
    dry_run: bool,
    **tuned: Any,
) -> None:
    """Change a VM's CPUs, memory, limits, boot order, title or autostart.

    Without --live or --config a running VM is changed at once and for its next start, both or neither.
    A running VM can have no more vCPUs and memory than the maximum it was started with; --config raises
    that for the next start.

    \b
    Examples:
      kvmctl set web-1 --memory 4G
      kvmctl set web-1 --vcpus 4,max=8 --config
      kvmctl set 'web-*' --title "Web server" --autostart
      kvmctl set web-1 --pin 0:2 --pin 1:3 --disk-limit vda,iops=500
      kvmctl set web-1 --numa 2 --hugepages --config
      kvmctl set web-1 --boot cdrom,disk --cpu host-passthrough --config
    """

    from kvmctl.cli.targets import for_each, resolve
    from kvmctl.model.tuned import from_words
    from kvmctl.operations import settings as operation

    if live and config:
        raise UsageProblem("--live and --config exclude each other", "leave both out to set both")
    wanted = operation.Settings(
        vcpus=vcpus[0] if vcpus else None,
        max_vcpus=vcpus[1] if vcpus else None,
        memory_bytes=memory[0] if memory else None,
        max_memory_bytes=memory[1] if memory else None,
        title=title,
        description=description,
        autostart=autostart,
        tuning=from_words(tuned)._replace(cpu=tuned["cpu"]),
    )
    if autostart and tuned["autostart_order"]:
        raise UsageProblem(
            "--autostart and --autostart-order exclude each other", "the order alone lets it start with its host"
        )
    if wanted == operation.Settings():
        raise UsageProblem("nothing to set is given", "see 'kvmctl set --help'")
    where: Literal["both", "live", "config"] = "live" if live else "config" if config else "both"
    hypervisor = app.connect()
    found, several = resolve(hypervisor, names, all_)

    def act(name: str) -> dict[str, Any]:
        return _act(app, hypervisor, operation.plan(hypervisor, name, wanted, where, strict=strict), dry_run)

    def sentence(row: dict[str, Any]) -> str:
        name, changes = output.plain(row["name"]), "; ".join(row["changes"])
        if not changes:
            return f"{name} was so already"
        return f"{name}: {'would set ' if 'would' in row else ''}{changes}"

    for_each(app, found, several, act, sentence, parallel)


def _act(app: App, hypervisor: "Hypervisor", found: Any, dry: bool) -> dict[str, Any]:
    from kvmctl.operations import settings as operation

    if dry:
        changes = [change.what for change in found.changes]
        return {
            "name": found.name,
            "uuid": found.uuid,
            "state": found.state,
            "changed": False,
            "changes": changes,
            "would": bool(changes),
        }
    row = operation.run(hypervisor, found)
    for warning in row["warnings"]:
        output.warn(app, f"{found.name}: {warning}")
    return row
