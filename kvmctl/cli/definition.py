"""kvmctl define, dumpxml, edit"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, dry_run, everywhere
from kvmctl.errors import KvmctlError, UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor
    from kvmctl.operations.definition import Plan


def _said(row: dict[str, Any]) -> str:
    name = output.plain(row["name"])
    if not row["changed"]:
        return f"{name} was so already"
    if row["created"]:
        return f"{name} defined"
    return f"{name} changed" + (", for its next start" if row["pending"] else "")


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--validate/--no-validate", default=True, show_default=True, help="Check against libvirt's schema.")
@dry_run
@everywhere
@click.pass_obj
def define(app: App, file: str, validate: bool, dry_run: bool) -> None:
    """Define a VM from XML, or change the one it names.

    FILE is on this machine; - is standard input. The VM is not started. XML without a UUID, of a name
    there is, changes that VM.

    \b
    Examples:
      kvmctl define web-1.xml
      kvmctl dumpxml web-1 -c qemu+ssh://old/system | kvmctl define -
    """
    from kvmctl.model.xml import LARGEST_XML
    from kvmctl.operations import definition

    if file == "-":
        text = sys.stdin.buffer.read(LARGEST_XML + 1)
    else:
        try:
            with Path(file).open("rb") as stream:
                text = stream.read(LARGEST_XML + 1)
        except OSError as error:
            raise UsageProblem(f"{file!a} cannot be read: {error.strerror}") from error
    hypervisor = app.connect()
    found = definition.plan(hypervisor, text)
    if dry_run:
        what = f"would {'define' if found.before is None else 'change'} {found.name}"
        row = {"name": found.name, "changed": False, "would": what.removeprefix("would "), "xml": found.text}
        output.show_one(app, row, lambda: f"{what}:\n{found.text}")
        return
    with output.progress(app) as shown:
        row = definition.define(hypervisor, found, validate=validate, progress=shown)
    output.show_one(app, row, lambda: _said(row))


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.option("--inactive", is_flag=True, help="The definition of the next start, not that of the run.")
@click.option("--security-info", is_flag=True, help="With passwords.")
@click.option("--migratable", is_flag=True, help="As another host would get it in a migration.")
@everywhere
@click.pass_obj
def dumpxml(app: App, vm: str, inactive: bool, security_info: bool, migratable: bool) -> None:
    """Print a VM's XML.

    \b
    Examples:
      kvmctl dumpxml web-1
      kvmctl dumpxml web-1 --inactive > web-1.xml
    """
    from kvmctl.operations import definition

    row = definition.dump(app.connect(), vm, inactive=inactive, secure=security_info, migratable=migratable)
    if app.output in ("json", "yaml"):
        output.show_one(app, row)
    else:
        output.show_text(row["xml"])


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.option("--validate/--no-validate", default=True, show_default=True, help="Check against libvirt's schema.")
@everywhere
@click.pass_obj
def edit(app: App, vm: str, validate: bool) -> None:
    """Edit a VM's XML in $VISUAL or $EDITOR.

    A running VM keeps running; the change counts from its next start on. What libvirt does not take can
    be edited again, or stays in a file that the error names.

    \b
    Examples:
      kvmctl edit web-1
      EDITOR="sed -i s/e1000/virtio/" kvmctl edit web-1
    """
    from kvmctl.operations import definition

    hypervisor = app.connect()
    found = definition.begin(hypervisor, vm)
    editor = _editor()
    handle, name = tempfile.mkstemp(prefix="kvmctl-", suffix=".xml")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(found.text)
        row = _rounds(hypervisor, found, editor, path, validate)
    except KvmctlError as error:
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != found.text:
            error.hint = " ".join(filter(None, (error.hint, f"(the edited XML is kept in {path})")))
        else:
            path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)
    output.show_one(app, row, lambda: _said(row))


def _rounds(hypervisor: "Hypervisor", found: "Plan", editor: str, path: Path, validate: bool) -> dict[str, Any]:
    from kvmctl.operations import definition

    while True:
        # As git and virsh have it: the editor may be a command with arguments, so a shell reads it.
        code = subprocess.run(["sh", "-c", f'{editor} "$1"', "sh", str(path)], check=False).returncode
        if code != 0:
            raise KvmctlError(f"the editor ({editor}) failed with exit code {code}; nothing was changed")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageProblem("the edited file is not UTF-8 text; nothing was changed") from None
        try:
            return definition.finish(hypervisor, found, text, validate=validate)
        except KvmctlError as error:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            sys.stderr.write(f"{output.plain(error.message)}\nEdit again? [Y/n] ")
            sys.stderr.flush()
            if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
                raise


def _editor() -> str:
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if named:
        return named
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageProblem(
            "there is no terminal to edit in", "set EDITOR to a command that needs none, or use dumpxml and define"
        )
    for usual in ("sensible-editor", "editor", "vi", "nano"):
        if shutil.which(usual):
            return usual
    raise UsageProblem("no editor was found", "set EDITOR to one")
