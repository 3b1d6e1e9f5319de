"""kvmctl migrate"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import DURATION, App, Size, complete_vms, dry_run, everywhere, timeout
from kvmctl.errors import Refused, UsageProblem
from kvmctl.model.units import human_duration, human_size

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor
    from kvmctl.model.migration import Wish
    from kvmctl.operations.migrate import Plan
    from kvmctl.operations.migrate_steer import Moment
    from kvmctl.operations.progress import Progress

# A number alone is MiB a second, as virsh and libvirt have it.
BANDWIDTH = Size(1024**2)
MOST_BANDWIDTH = 2**50
LONGEST_DOWNTIME_SECONDS = 2000.0


@click.command()
@click.argument("vm", shell_complete=complete_vms)
@click.argument("destination", metavar="[DEST]", required=False)
@click.option("--check", is_flag=True, help="Only look at both hosts and say whether it would work.")
@click.option(
    "--max-downtime",
    type=DURATION,
    default="30ms",
    show_default=True,
    metavar="TIME",
    help="The longest the guest may stand still.",
)
@timeout()
@click.option("--bandwidth", type=BANDWIDTH, metavar="SIZE", help="Send at most this much a second (32M).")
@click.option("--copy-storage", is_flag=True, help="Copy the disks that the hosts do not share, whole.")
@click.option("--copy-storage-inc", is_flag=True, help="Copy only their top overlay; the destination has the rest.")
@click.option("--shared-storage", is_flag=True, help="Take disks for shared where kvmctl cannot see that they are.")
@click.option(
    "--postcopy",
    type=click.Choice(("auto", "never", "now")),
    default="never",
    show_default=True,
    help="Whether the guest may go on over there while its memory still comes (auto: where nothing else helps).",
)
@click.option("--offline", is_flag=True, help="Move the definition (and disks) of a VM that is off.")
@click.option("--connections", type=click.IntRange(2, 64), metavar="N", help="Send the memory over N connections.")
@click.option("--compress", is_flag=True, help="Compress pages that changed (XBZRLE).")
@click.option("--tls", is_flag=True, help="Encrypt what is sent; both hosts need certificates for QEMU.")
@click.option("--abort", is_flag=True, help="Cancel the migration of this VM that is under way.")
@click.option("--recover", is_flag=True, help="Put right what an earlier, killed migration left.")
@click.option("--progress", is_flag=True, help="With -o json: a line a second on stderr about how far it is.")
@dry_run
@everywhere
@click.pass_obj
def migrate(app: App, /, vm: str, destination: str | None, **options: Any) -> None:
    """Move a VM to another host while it runs, and say how long it paused.

    DEST is the other host's libvirt URI. Both hosts are looked at first; nothing is begun that is known
    to fail. Whatever happens, exactly one guest remains, and the message says where. A pattern moves
    several, one after the other.

    \b
    Examples:
      kvmctl migrate web-1 qemu+ssh://other/system --check
      kvmctl migrate web-1 qemu+ssh://other/system
      kvmctl migrate 'web-*' qemu+tls://other/system --copy-storage --timeout 10m
      kvmctl migrate web-1 qemu+ssh://other/system --recover
    """
    if options["abort"] or options["recover"]:
        _repair(app, vm, destination, options)
        return
    if destination is None:
        raise UsageProblem("where to? DEST is missing", "like 'kvmctl migrate VM qemu+ssh://host/system'")
    _sensible(options)
    if set(vm) & set("*?["):
        from kvmctl.cli.targets import resolve

        hypervisor, wish = app.connect(events=True), _wish(destination, options)
        names, _ = resolve(hypervisor, [vm], False)
        move_all(
            app, hypervisor, dict.fromkeys(names, wish), options["check"] or options["dry_run"], options["progress"]
        )
        return
    found = _plan(app, vm, destination, options)
    from kvmctl.operations import migrate as operation

    if options["check"] or options["dry_run"]:
        row = found.as_check()
        if options["dry_run"]:
            row["would"] = [] if found.verdict == "refused" else found.steps()
        output.show_one(app, row, lambda: _check_lines(app, row))
        if found.verdict == "refused":
            click.get_current_context().exit(Refused.exit_code)
        return
    operation.require(found)
    for check in found.checks:
        # Who reads JSON finds them in the result.
        if check.level == "warn" and not app.machine_readable:
            output.warn(app, f"{check.name}: {check.detail}")
    with output.progress(app) as progress:
        row = operation.run(found, progress, _teller(app, progress, found.name, options["progress"]))
    for warning in () if app.machine_readable else row["warnings"]:
        output.warn(app, warning)
    output.show_one(app, row, lambda: _sentence(row))


def _plan(app: App, vm: str, destination: str, options: dict[str, Any]) -> "Plan":
    """Look at both hosts. While they are reached and tell of themselves, all that the move needs is imported."""
    here = app.connect_ahead(events=True, ask=lambda found: found.capabilities)
    from kvmctl.preflight.asking import Asking
    from kvmctl.preflight.reachable import open_destination

    there = Asking(lambda: open_destination(destination, ask=lambda found: found.capabilities))
    from kvmctl.operations import migrate as operation

    return operation.plan(here.result(), vm, _wish(destination, options), there)


def move_all(app: App, hypervisor: "Hypervisor", wishes: dict[str, "Wish"], check: bool, lines: bool = False) -> None:
    """Move (or with ``check`` only judge) each named VM, one after the other, and show what came of it.

    ``lines``: with -o json, a line of progress a second.

    One after the other: two at once would share the link, and each would stand still longer.
    """
    from kvmctl.cli.targets import for_each
    from kvmctl.operations import migrate as operation

    def act(name: str) -> dict[str, Any]:
        found = operation.plan(hypervisor, name, wishes[name])
        operation.require(found)
        if check:
            return found.as_check()
        with output.progress(app) as progress:
            row = operation.run(found, progress, _teller(app, progress, name, lines))
        for warning in () if app.machine_readable else row["warnings"]:
            output.warn(app, f"{name}: {warning}")
        return row

    def sentence(row: dict[str, Any]) -> str:
        if "verdict" in row:
            return f"{output.plain(row['name'])} can go ({row['verdict']})"
        return _sentence(row)

    for_each(app, list(wishes), True, act, sentence)


def _sensible(options: dict[str, Any]) -> None:
    """Raise UsageProblem for what cannot be meant, before anything is opened."""
    if options["copy_storage"] and options["copy_storage_inc"]:
        raise UsageProblem("give --copy-storage or --copy-storage-inc, not both")
    if not 0.001 <= options["max_downtime"] <= LONGEST_DOWNTIME_SECONDS:
        raise UsageProblem("--max-downtime is between 1ms and 2000s", "30ms is what most guests do not notice")
    if options["timeout"] is not None and not 1 <= options["timeout"] <= 30 * 86400:
        raise UsageProblem("--timeout is between 1s and 30d")
    bandwidth = options["bandwidth"]
    if bandwidth is not None and not 1024**2 <= bandwidth <= MOST_BANDWIDTH:
        raise UsageProblem("--bandwidth is 1M (a second) or more", "libvirt counts it in whole MiB a second")
    if options["postcopy"] != "never" and (options["connections"] or options["offline"]):
        other = "--connections" if options["connections"] else "--offline"
        raise UsageProblem(f"--postcopy does not go together with {other}")
    if options["compress"] and options["connections"]:
        raise UsageProblem("--compress does not go together with --connections")


def _wish(destination: str, options: dict[str, Any]) -> "Wish":
    from kvmctl.model.migration import Wish

    return Wish(
        destination=destination,
        max_downtime=options["max_downtime"],
        timeout=options["timeout"],
        bandwidth=options["bandwidth"],
        copy="full" if options["copy_storage"] else "top" if options["copy_storage_inc"] else "none",
        postcopy=options["postcopy"],
        offline=options["offline"],
        connections=options["connections"],
        compress=options["compress"],
        tls=options["tls"],
        trust_storage=options["shared_storage"],
    )


def _repair(app: App, vm: str, destination: str | None, options: dict[str, Any]) -> None:
    from kvmctl.operations import migrate_recover

    if options["abort"] and options["recover"]:
        raise UsageProblem("give --abort or --recover, not both")
    hypervisor = app.connect(events=True)
    if options["abort"]:
        row = migrate_recover.abort(hypervisor, vm)
        said = "its migration is cancelled" if row["changed"] else "is not being migrated"
        output.show_one(app, row, lambda: f"{output.plain(row['name'])}: {said}, it is {row['state']}")
        return
    with output.progress(app) as progress:
        row = migrate_recover.recover(hypervisor, vm, destination, progress)
    output.show_one(app, row, lambda: f"{output.plain(row['name'])}: {row['sentence']}")


def _teller(app: App, progress: "Progress", name: str, lines: bool) -> Callable[["Moment"], None]:
    """What is called some times a second: the bar, or with ``--progress -o json`` a line a second."""
    last = 0.0

    def line(moment: "Moment") -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            output.progress_line({"name": name, **moment.as_dict()})

    def bar(moment: "Moment") -> None:
        done = max(0, moment.total_bytes - moment.remaining_bytes)
        progress.amount(f"moving {name}", done, moment.total_bytes, _detail(moment))

    return line if lines and app.output == "json" else bar


def _detail(moment: "Moment") -> str:
    """How far it is, as a line below the bar."""
    said = [f"{moment.phase}, round {moment.iteration}" if moment.phase == "memory" else moment.phase]
    said.append(f"{human_size(moment.remaining_bytes)} left")
    if moment.dirty_bytes_per_second:
        said.append(f"{human_size(moment.dirty_bytes_per_second)}/s changed")
    if moment.throttle_percent:
        said.append(f"guest slowed by {moment.throttle_percent} %")
    if moment.expected_downtime_ms is not None:
        said.append(f"pause about {moment.expected_downtime_ms} ms")
    return "; ".join(said)


def _check_lines(app: App, row: dict[str, Any]) -> str:
    would = [f"would {output.plain(step)}" for step in row.get("would", ())]
    return "\n".join([output.checks_text(app, row["checks"]), *would, f"verdict: {row['verdict']}"])


def _sentence(row: dict[str, Any]) -> str:
    name, there = output.plain(row["name"]), output.plain(row["destination"])
    if row["strategy"] == "offline":
        return f"{name} is now defined on {there}"
    took = f"{human_duration(row['total_seconds'])}, {human_size(row['transferred_bytes'])}, {row['strategy']}"
    if row["downtime_ms"] is None:
        return f"{name} is {row['state']} on {there} ({took})"
    pause = f"it stood still for {row['downtime_ms']} ms"
    if row["within_max_downtime"] is False:
        pause += f", more than the {row['max_downtime_ms']:g} ms it was to"
    return f"{name} is {row['state']} on {there}; {pause} ({took})"
