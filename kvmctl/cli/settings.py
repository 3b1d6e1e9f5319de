"""kvmctl set"""

from typing import TYPE_CHECKING, Any, Literal

import click

from kvmctl.cli import output
from kvmctl.cli.create import WithMaximum
from kvmctl.cli.lifecycle import always_waits
from kvmctl.cli.options import DURATION, MEMORY, App, dry_run, everywhere, targets
from kvmctl.errors import UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor


@click.command("set")
@targets()
@click.option("--vcpus", type=WithMaximum(click.IntRange(1, 4096), "vCPUs"), metavar="N[,max=M]", help="vCPUs.")
@click.option("--memory", type=WithMaximum(MEMORY, "bytes"), metavar="SIZE[,max=SIZE]", help="Memory.")
@click.option("--title", metavar="TEXT", help="A short title; empty takes it away.")
@click.option("--description", metavar="TEXT", help="A description; empty takes it away.")
@click.option("--autostart/--no-autostart", default=None, help="Whether it starts with its host.")
@click.option(
    "--autostart-order", type=click.IntRange(0, 99999), metavar="N", help="Its place as the host boots; 0: none."
)
@click.option("--autostart-delay", type=DURATION, metavar="TIME", help="How long after it the next one starts.")
@click.option("--cpu", metavar="MODE|MODEL", help="host-model, maximum, a model …; for the next start.")
@click.option("--pin", "pins", multiple=True, metavar="VCPU:CPUS", help="Host CPUs for a vCPU: 0:2-3, or 0:all.")
@click.option("--cpu-shares", type=click.IntRange(2, 262144), metavar="N", help="Its weight when CPUs are short.")
@click.option("--cpu-limit", type=click.IntRange(0, 100), metavar="PERCENT", help="Of a CPU, for each vCPU; 0: none.")
@click.option("--hugepages/--no-hugepages", default=None, help="Back its memory with huge pages; for the next start.")
@click.option("--memory-limit", metavar="hard=SIZE,soft=SIZE", help="Of the host's memory; 0 takes one away.")
@click.option("--numa", metavar="CELLS[,host=NODES]", help="NUMA nodes in the guest; 0: none; for the next start.")
@click.option("--boot", metavar="DEVICE[,...]", help="disk, cdrom, network, targets or MACs; for the next start.")
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
        tuning=_tuning(tuned),
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


def _tuning(given: dict[str, Any]) -> Any:
    from kvmctl.model import tuning
    from kvmctl.operations.settings_tuning import Tuning

    return Tuning(
        cpu=given["cpu"],
        pins=tuple(map(tuning.parse_pin, given["pins"])),
        cpu_shares=given["cpu_shares"],
        cpu_percent=given["cpu_limit"],
        hugepages=given["hugepages"],
        boot=tuple(given["boot"].split(",")) if given["boot"] else (),
        disk_limits=tuple(map(tuning.parse_disk_limit, given["disk_limits"])),
        net_limits=tuple(map(tuning.parse_net_limit, given["net_limits"])),
        memory_limit=tuning.parse_memory_limit(given["memory_limit"]) if given["memory_limit"] else None,
        start_order=given["autostart_order"],
        start_delay=None if given["autostart_delay"] is None else round(given["autostart_delay"]),
        numa=tuning.parse_numa(given["numa"]) if given["numa"] else None,
    )


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
