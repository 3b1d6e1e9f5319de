"""Making a VM: what ``create`` does, with click and without."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kvmctl.cli import output, without_click
from kvmctl.cli.app import App
from kvmctl.errors import UsageProblem
from kvmctl.model.units import human_size, parse_duration, parse_size

if TYPE_CHECKING:
    from kvmctl.operations.create_request import Request

WAITS = ("running", "agent", "ip", "ssh", "cloud-init")
TIMEOUT = "10m"
MOST_VCPUS = 16384


def _vcpus(text: str) -> tuple[int, None]:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_VCPUS):
        raise UsageProblem(f"{text!a} is not a number of vCPUs")
    return int(text), None


# What of the options the plain command line knows: with what reads the value, and what the option is called here.
_ONCE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--image": ("image", str),
    "--cdrom": ("cdrom", str),
    "--kernel": ("kernel", str),
    "--initrd": ("initrd", str),
    "--cmdline": ("cmdline", str),
    "--import": ("import_", str),
    "--vcpus": ("vcpus", _vcpus),
    "--memory": ("memory", lambda text: (parse_size(text, 1024**2), None)),
    "--firmware": ("firmware", without_click.one_of("bios", "uefi", "uefi-secure")),
    "--wait": ("wait", without_click.one_of(*WAITS)),
    "--timeout": ("timeout", parse_duration),
}
_REPEATED = {"--disk": "disks", "--net": "nets", "-p": "ports", "--publish": "ports", "--ssh-key": "ssh_keys"}
_FLAGS = {"--dry-run": ("dry_run", True), "--no-start": ("start", False), "--autostart": ("autostart", True)}


def plain(arguments: list[str]) -> tuple[App, str, dict[str, Any]] | None:
    """(app, name, what was said) where ``arguments`` are ``create`` in the forms that are written most.

    None for every other command line, those with an error in them too: click reads them, at the cost of a tenth of all
    that kvmctl itself does for a new VM.
    """
    readers = {option: reader for option, (_, reader) in _ONCE.items()}
    line = without_click.read(arguments, tuple(_FLAGS), readers, tuple(_REPEATED))
    if line is None or len(line.words) != 2 or line.words[0] != "create":
        return None
    said = {_ONCE[option][0]: value for option, value in line.values.items()}
    said.update(_FLAGS[flag] for flag in line.flags)
    for option, value in line.repeated:
        said[_REPEATED[option]] = (*said.get(_REPEATED[option], ()), value)
    return line.app, line.words[1], said


def create(app: App, name: str | None, said: Mapping[str, Any]) -> None:
    """Make the VM that the options ``said`` ask for (those that were given, as click calls them), and show it."""
    from kvmctl.operations import create_request

    request = _request(name, said)
    create_request.check(request)
    wait, dry_run = said.get("wait"), said.get("dry_run", False)
    if wait and not request.start:
        raise UsageProblem("--wait needs the VM to be started", "leave out --no-start")
    connected = app.connect_ahead(events=wait is not None, ask=lambda found: found.capabilities)
    from kvmctl.operations import create as operation
    from kvmctl.operations import create_plan

    with output.progress(app) as progress:
        hypervisor = connected.result()
        plan = create_plan.plan(hypervisor, request, progress, bring=not dry_run)
        if dry_run:
            row = create_plan.described(plan)
        else:
            for text in plan.warnings:
                output.warn(app, text)
            full = app.output in ("json", "yaml")
            limit = said.get("timeout", parse_duration(TIMEOUT))
            row = operation.run(hypervisor, plan, progress, wait, limit, said.get("keep", False), full)
    if dry_run:
        output.show_one(
            app, row, lambda: "\n".join([*(f"would {step}" for step in row["steps"]), "", row["xml"].rstrip()])
        )
        for text in plan.warnings:
            output.warn(app, text)
        return
    output.show_one(app, row, lambda: _sentence(row))
    if not app.machine_readable:
        for line in _next(row):
            output.info(app, line)


def _request(name: str | None, said: Mapping[str, Any]) -> "Request":
    """What the options ask for, and the spec beneath them where there is one."""
    from kvmctl.model.spec import Spec
    from kvmctl.operations.create_options import from_spec

    spec = Spec()
    file = said.get("spec")
    if file is not None:
        from kvmctl.operations import spec_file

        spec = spec_file.only(spec_file.load(file), name, file)
    chosen = name or spec.name
    if chosen is None:
        raise UsageProblem("the VM has no name", "give one: 'kvmctl create NAME'")
    return from_spec(chosen, spec, said)


def _sentence(row: dict[str, Any]) -> str:
    size = human_size(row["memory_bytes"])
    return f"created {row['name']}: {row['state']}, {row['vcpus']} vCPUs, {size}, {row['accel']}"


def _next(row: dict[str, Any]) -> list[str]:
    if row["state"] != "running":
        return [f"start it with 'kvmctl start {row['name']}'"]
    return [f"its console: 'kvmctl console {row['name']}'   a shell: 'kvmctl ssh {row['name']}'"]
