"""kvmctl apply, diff, export"""

from typing import Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere, timeout

FILE = click.option("-f", "--file", "file", required=True, metavar="FILE", help="The spec, YAML or TOML; - is stdin.")


@click.command()
@FILE
@timeout("2m")
@dry_run
@everywhere
@click.pass_obj
def apply(app: App, file: str, timeout: float, dry_run: bool) -> None:
    """Make VMs be as a spec says: create those there are not, change the others.

    Of a VM that exists vCPUs, memory, title, description, autostart, published ports and whether it runs
    are changed; what only a new VM could have is refused and named. Each VM is changed wholly or not at
    all; what the spec leaves out stays as it is. --timeout is for a guest that has to shut down.

    \b
    Examples:
      kvmctl apply -f web.yaml
      kvmctl apply -f two.toml --dry-run
      kvmctl export web | kvmctl apply -f - -c qemu+ssh://other/system
    """
    from kvmctl.cli.targets import for_each
    from kvmctl.operations import spec, spec_file

    wanted = spec_file.named(spec_file.load(file), file)
    # The events tell when a guest that shall be off has shut down.
    hypervisor = app.connect(events=True)

    def act(name: str) -> dict[str, Any]:
        with output.progress(app) as progress:
            plan = spec.plan(hypervisor, wanted[name], progress, bring=not dry_run)
            row = spec.described(plan) if dry_run else spec.run(hypervisor, plan, progress, timeout)
        for text in row["warnings"]:
            output.warn(app, text)
        return row

    for_each(app, list(wanted), len(wanted) > 1, act, _applied)


def _applied(row: dict[str, Any]) -> str:
    name = output.plain(row["name"])
    if row.get("dry_run"):
        if row["would"] is None:
            return f"{name} is as the spec says"
        steps = [f"{name}: would {step}" if row["would"] == "create" else f"{name}: {step}" for step in row["changes"]]
        return "\n".join([*map(output.plain, steps), *([row["xml"].rstrip()] if row["xml"] else [])])
    if row["created"]:
        return f"{name} created: {row['state']}"
    return f"{name}: {output.plain('; '.join(row['changes']))}" if row["changes"] else f"{name} is as the spec says"


@click.command()
@FILE
@everywhere
@click.pass_context
def diff(ctx: click.Context, file: str) -> None:
    """Show what of VMs is not as a spec says; exit 0 same, 1 different.

    Nothing is changed. An error exits above 1, so that a script can tell. Only what the spec says is
    compared; what cloud-init was told at first boot is not.

    \b
    Examples:
      kvmctl diff -f web.yaml
      kvmctl diff -f web.yaml -o json
      kvmctl export web | kvmctl diff -f -
    """
    app: App = ctx.obj
    app.failure_code = 2

    from kvmctl.cli.targets import for_each
    from kvmctl.operations import spec, spec_file

    wanted = spec_file.named(spec_file.load(file), file)
    hypervisor = app.connect()
    same: list[bool] = []

    def act(name: str) -> dict[str, Any]:
        found = spec.differences(hypervisor, wanted[name])
        same.append(found == ())
        return {
            "name": name,
            "exists": found is not None,
            "same": found == (),
            "differences": [
                {"key": d.key, "now": d.now, "wanted": d.wanted, "action": d.how, "hint": d.hint} for d in found or ()
            ],
        }

    for_each(app, list(wanted), len(wanted) > 1, act, _compared)
    if not all(same):
        ctx.exit(1)


def _compared(row: dict[str, Any]) -> str:
    name = output.plain(row["name"])
    if row["same"]:
        return f"{name} is as the spec says"
    if not row["exists"]:
        return f"{name} is not there: apply would create it"
    lines = [
        f"{name}: {d['key']} is {output.plain(d['now'])}, the spec says {output.plain(d['wanted'])}"
        + ("" if d["action"] == "change" else " (only a new VM could have it)" if not d["hint"] else f" ({d['hint']})")
        for d in row["differences"]
    ]
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, metavar="VM...", shell_complete=complete_vms)
@click.option("--all", "all_", is_flag=True, help="Every VM.")
@everywhere
@click.pass_obj
def export(app: App, names: tuple[str, ...], all_: bool) -> None:
    """Print VMs as a spec that apply makes their like from.

    YAML, a document each. What a spec cannot say is told on stderr; 'kvmctl dumpxml' has all of it.

    \b
    Examples:
      kvmctl export web > web.yaml
      kvmctl export --all > all.yaml
      kvmctl export web -o json
    """
    from kvmctl.cli.targets import resolve
    from kvmctl.operations import spec_export

    hypervisor = app.connect()
    found, several = resolve(hypervisor, names, all_)
    rows = []
    for name in found:
        row, missing = spec_export.export(hypervisor, name)
        rows.append(row)
        for text in missing:
            output.warn(app, f"{row['name']}: {text}")
    if app.output in ("json", "name"):
        if several:
            output.show_list(app, rows, [])
        else:
            output.show_one(app, rows[0])
        return
    output.show_text(output.yaml_documents(rows))
