"""kvmctl screenshot, console, view"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from kvmctl.cli import output
from kvmctl.cli.options import App, complete_vms, everywhere
from kvmctl.errors import UsageProblem


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--screen", type=click.IntRange(0, 15), default=0, show_default=True, help="Which of its screens.")
@everywhere
@click.pass_obj
def screenshot(app: App, vm: str, file: str, screen: int) -> None:
    """Take a picture of a VM's screen.

    FILE ends in .png or .ppm; - is standard output, as PNG.

    \b
    Examples:
      kvmctl screenshot web-1 web-1.png
      kvmctl screenshot web-1 - | display
    """
    from kvmctl.operations import screenshot as operation

    suffix = Path(file).suffix.lower()
    if file != "-" and suffix not in (".png", ".ppm"):
        raise UsageProblem(f"{file[:100]!a} ends in neither .png nor .ppm")
    if file == "-" and sys.stdout.isatty():
        raise UsageProblem("a picture in a terminal would be noise", "name a file, or send it through a pipe")
    picture, row = operation.take(app.connect(), vm, "ppm" if suffix == ".ppm" else "png", screen)
    if file == "-":
        sys.stdout.buffer.write(picture)
        return
    _write(Path(file), picture)
    row["file"] = file
    output.show_one(
        app, row, lambda: f"{output.plain(row['name'])}: {row['width']} x {row['height']} written to {file}"
    )


def _write(path: Path, data: bytes) -> None:
    """Into a file that appears whole or not at all."""
    umask = os.umask(0)
    os.umask(umask)
    handle, part = tempfile.mkstemp(prefix=".kvmctl-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(part).chmod(0o666 & ~umask)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.option("--force", is_flag=True, help="Take it from whoever has it.")
@everywhere
@click.pass_obj
def console(app: App, vm: str, force: bool) -> None:
    """Join a VM's serial console; Ctrl-] leaves it.

    \b
    Examples:
      kvmctl console web-1
    """
    from kvmctl.operations import console as operation

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageProblem("a console needs a terminal", "'kvmctl exec' runs commands without one")

    def opened(name: str) -> None:
        output.info(app, f"connected to the console of {name}; Ctrl-] leaves it")

    operation.attach(app.connect(events=True), vm, force=force, opened=opened)
    output.info(app, "")


@click.command()
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.option("--address", is_flag=True, help="Only print where the screen is, open no viewer.")
@everywhere
@click.pass_obj
def view(app: App, vm: str, address: bool) -> None:
    """Open a VM's screen in virt-viewer, or say where it is.

    \b
    Examples:
      kvmctl view web-1
      kvmctl view web-1 --address
    """
    from kvmctl.operations import viewing

    found = viewing.plan(app.connect(), vm)
    row = {"name": found.name, "uuid": found.uuid, "type": found.type, "address": found.address}
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if address or app.machine_readable or found.viewer is None or not display:
        output.show_one(app, row, lambda: found.address)
        if not address and not app.machine_readable:
            why = "virt-viewer is not installed here" if found.viewer is None else "there is no display here"
            output.info(app, f"{why}: any {found.type.upper()} viewer can open that address")
        return
    with subprocess.Popen(found.viewer) as viewer:
        click.get_current_context().exit(viewer.wait())
