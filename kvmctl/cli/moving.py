"""Moving a VM: what ``migrate`` does, with click and without, and ``host evacuate``, which does it to all."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmctl.cli import output, without_click
from kvmctl.cli.app import App
from kvmctl.errors import Refused, UsageProblem
from kvmctl.model.units import human_duration, human_size, parse_duration, parse_size

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor
    from kvmctl.model.migration import Wish
    from kvmctl.operations.migrate import Plan
    from kvmctl.operations.migrate_steer import Moment
    from kvmctl.operations.progress import Progress

# A number alone is MiB a second, as virsh and libvirt have it.
BANDWIDTH_UNIT = 1024**2
MOST_BANDWIDTH = 2**50
LONGEST_DOWNTIME_SECONDS = 2000.0
# What each option is where it is not given.
DEFAULTS: dict[str, Any] = {
    "check": False,
    "max_downtime": 0.03,
    "timeout": None,
    "bandwidth": None,
    "copy_storage": False,
    "copy_storage_inc": False,
    "shared_storage": False,
    "postcopy": "never",
    "offline": False,
    "connections": None,
    "compress": False,
    "tls": False,
    "abort": False,
    "recover": False,
    "progress": False,
    "dry_run": False,
}
# Those that the plain command line knows: each with what reads its value.
_WITH_VALUE: dict[str, Callable[[str], Any]] = {
    "--max-downtime": parse_duration,
    "--timeout": parse_duration,
    "--bandwidth": lambda value: parse_size(value, BANDWIDTH_UNIT),
}
_FLAGS = ("--check", "--copy-storage", "--progress")


def plain(arguments: list[str]) -> tuple[App, str, str, dict[str, Any]] | None:
    """(app, VM, destination, options) where ``arguments`` are ``migrate`` in the forms that are called most.

    None for every other command line, those with an error in them too: click, which takes longer to be imported than
    the check of both hosts, reads them.
    """
    line = without_click.read(arguments, _FLAGS, _WITH_VALUE)
    if line is None or len(line.words) != 3 or line.words[0] != "migrate" or _is_pattern(line.words[1]):
        return None
    given = {**dict.fromkeys(line.flags, True), **line.values}
    options = {**DEFAULTS, **{name[2:].replace("-", "_"): value for name, value in given.items()}}
    return line.app, line.words[1], line.words[2], options


def _is_pattern(vm: str) -> bool:
    return bool(set(vm) & set("*?["))


def move(app: App, vm: str, destination: str, options: dict[str, Any]) -> int:
    """Move the VM, or those that a pattern means; with ``check`` or ``dry_run`` only look. Returns the exit code."""
    _sensible(options)
    if _is_pattern(vm):
        from kvmctl.cli.targets import resolve

        hypervisor, wish = app.connect(events=True), _wish(destination, options)
        wishes = dict.fromkeys(resolve(hypervisor, [vm], False)[0], wish)
        move_all(app, hypervisor, wishes, options["check"] or options["dry_run"], options["progress"])
        return 0
    found = _plan(app, vm, destination, options)
    from kvmctl.operations import migrate as operation

    if options["check"] or options["dry_run"]:
        row = found.as_check()
        if options["dry_run"]:
            row["would"] = [] if found.verdict == "refused" else found.steps()
        output.show_one(app, row, lambda: _check_lines(app, row))
        return Refused.exit_code if found.verdict == "refused" else 0
    operation.require(found)
    for check in found.checks:
        # Who reads JSON finds them in the result.
        if check.level == "warn" and not app.machine_readable:
            output.warn(app, f"{check.name}: {check.detail}")
    with output.progress(app, drawn=not _by_lines(app, options["progress"])) as progress:
        row = operation.run(found, progress, _teller(app, progress, found.name, options["progress"]))
    for warning in () if app.machine_readable else row["warnings"]:
        output.warn(app, warning)
    output.show_one(app, row, lambda: _sentence(row))
    return 0


def evacuate(app: App, destination: str, options: dict[str, Any]) -> None:
    """Move all VMs of the host (with ``running`` those that run), or with ``check`` or ``dry_run`` only look."""
    options = {**DEFAULTS, **options}
    _sensible(options)
    from kvmctl.operations import evacuate as operation

    hypervisor, wish = app.connect(events=True), _wish(destination, options)
    found = [(name, up) for name, up in operation.order(hypervisor) if up or not options["running"]]
    wishes = {name: operation.wish_for(wish, up) for name, up in found}
    move_all(app, hypervisor, wishes, options["check"] or options["dry_run"], options["progress"])


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
        with output.progress(app, drawn=not _by_lines(app, lines)) as progress:
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


def _teller(app: App, progress: "Progress", name: str, lines: bool) -> Callable[["Moment"], None]:
    """What is called some times a second: the bar, or with ``--progress -o json`` a line a second."""
    last = 0.0

    def line(moment: "Moment") -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            output.progress_line({"name": name, **moment.as_dict()})

    def bar(moment: "Moment") -> None:
        if moment.phase == "setup":
            return
        done = max(0, moment.total_bytes - moment.remaining_bytes)
        # What is done grows faster than is sent: pages of zeros count, too.
        speed = moment.bytes_per_second
        progress.amount(f"moving {name}", done, moment.total_bytes, _detail(moment), speed)

    return line if _by_lines(app, lines) else bar


def _by_lines(app: App, lines: bool) -> bool:
    """Whether lines of JSON take the place of the bar; on a terminal it would break them where it is wide."""
    return lines and app.output == "json"


def _detail(moment: "Moment") -> str:
    """How far it is, as a line below the bar."""
    said = [f"{moment.phase} round {moment.iteration}" if moment.phase == "memory" else moment.phase]
    said.append(f"{human_size(moment.remaining_bytes)} left")
    if moment.dirty_bytes_per_second:
        said.append(f"{human_size(moment.dirty_bytes_per_second)}/s changed")
    if moment.expected_downtime_ms is not None:
        said.append(f"pause ~{moment.expected_downtime_ms} ms")
    if moment.throttle_percent:
        said.append(f"slowed {moment.throttle_percent} %")
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
