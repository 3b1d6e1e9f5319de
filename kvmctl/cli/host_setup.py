"""kvmctl host setup"""

from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, dry_run, everywhere
from kvmctl.errors import Partial, UsageProblem

if TYPE_CHECKING:
    from kvmctl.operations.host_setup import Step


@click.command()
@dry_run
@everywhere
@click.pass_obj
def setup(app: App, dry_run: bool) -> None:
    """Do what host check found missing on this machine.

    Installs packages (apt; on Fedora dnf, whose package names are untested), loads modules, starts
    libvirtd, puts the user who called sudo into the groups libvirt and kvm, and makes and starts the
    network and the storage pool named default. It says each step, and what is right already it leaves
    alone. The firewall and the kernel's command line are never changed. The exit code is 8 where a step was
    not done.

    \b
    Examples:
      kvmctl host setup --dry-run
      sudo kvmctl host setup
    """
    from kvmctl.connection import configured_uri, leads_elsewhere
    from kvmctl.operations import host_facts, host_setup

    uri = app.uri or configured_uri()
    if uri is not None and leads_elsewhere(uri):
        raise UsageProblem(
            f"host setup changes the machine it runs on, and {uri!a} is another one", "run it on that machine"
        )
    if dry_run:
        steps = host_setup.decide(host_facts.look(app.connect))
        rows = [step.row(done=False, changed=False, detail=step.why) for step in steps]
    else:

        def say(step: "Step") -> None:
            output.info(app, f"{step.name}: {step.command}")

        rows = list(host_setup.run(app.connect, say))
    row = {"changed": any(row["changed"] for row in rows), "steps": rows}
    output.show_one(app, row, lambda: _for_people(rows, dry_run), name="changed")
    if not dry_run and not all(step["done"] for step in rows):
        raise Partial("some steps were not done")


def _for_people(rows: list[dict[str, Any]], dry_run: bool) -> str:
    if not rows:
        return "Nothing is missing."
    lines = []
    for row in rows:
        state = "would do" if dry_run else "done" if row["done"] else "NOT DONE"
        lines.append(f"{state:<8}  {row['name']}: {row['detail']}")
        if not row["done"]:
            lines.append(f"          {row['command']}")
    return "\n".join(lines)
