"""The root command, and the only place where an error becomes an exit code.

Commands are loaded when they run: COMMANDS holds their short help, so that ``--help`` imports none of
them, and with them neither libvirt nor lxml nor rich.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from kvmctl import __version__
from kvmctl.cli.options import App, everywhere
from kvmctl.errors import Interrupted, KvmctlError, Partial, UsageProblem

# name: (section, module below kvmctl.cli, short help). A test compares the help with the command's own.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "create": (
        "Virtual machines",
        "create",
        "Make a VM from an image, an installer, a kernel, a disk or the network, and start it.",
    ),
    "delete": (
        "Virtual machines",
        "delete",
        "Delete VMs, with what kvmctl made for them: disks, seed, NVRAM, TPM state, snapshots, ports.",
    ),
    "image": ("Images", "image", "Build, download, import and delete the images that guests are made from."),
    "host": ("Host", "host", "Check and set up the host, and show what it gives."),
    "list": ("Virtual machines", "listing", "List the VMs, running or not."),
    "ps": ("Virtual machines", "listing", "List the VMs that run (or are paused)."),
    "info": ("Virtual machines", "listing", "Show all there is to know of one VM."),
    "start": ("Virtual machines", "lifecycle", "Start VMs, or let saved ones run on."),
    "stop": ("Virtual machines", "lifecycle", "Ask guests to shut down, and wait until they are off."),
    "reboot": ("Virtual machines", "lifecycle", "Ask guests to reboot."),
    "reset": ("Virtual machines", "lifecycle", "Press the reset button: a reboot that does not ask the guest."),
    "destroy": ("Virtual machines", "lifecycle", "Power VMs off at once, without asking the guest."),
    "suspend": ("Virtual machines", "lifecycle", "Pause VMs: they keep their memory and use no CPU."),
    "resume": ("Virtual machines", "lifecycle", "Let paused VMs run on, or wake sleeping ones."),
    "clone": ("State and copies", "clone", "Copy a VM, running or not: linked (copy-on-write) unless --full."),
    "exec": ("Inside the guest", "exec", "Run a command in a guest, through its agent."),
    "snapshot": (
        "State and copies",
        "snapshot",
        "Keep moments of a VM and go back to them: create, list, tree, show, revert, delete.",
    ),
    "net": ("Networks", "net", "Make and manage networks: NAT, routed, isolated, open, bridge, macvtap."),
    "nic": ("Networks", "nic", "List, plug in and pull out a VM's network cards."),
    "pci": ("Devices", "pci", "List the host's PCI devices and pass them to VMs."),
    "wait": ("Virtual machines", "wait", "Wait until VMs are so far."),
    "save": ("Virtual machines", "saving", "Save running VMs' state to disk and stop them."),
    "restore": ("Virtual machines", "saving", "Let saved VMs run on."),
    "rename": ("Virtual machines", "marks", "Give a VM that is off another name."),
    "autostart": ("Virtual machines", "marks", "Let VMs start when their host does."),
    "protect": ("Virtual machines", "marks", "Protect VMs from kvmctl delete."),
    "unprotect": ("Virtual machines", "marks", "Let kvmctl delete remove VMs again."),
    "port": ("Networks", "port", "Publish ports of guests behind NAT or in user networking on the host."),
    "version": ("Other", "version", "Show the versions of kvmctl, libvirt and the hypervisor."),
}
ALIASES = {
    "ls": "list",
    "rm": "delete",
    "shutdown": "stop",
    "pause": "suspend",
}


class Root(click.Group):
    """Finds commands in COMMANDS, without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, in the order of COMMANDS; aliases are left out."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of ``cmd_name`` and take the command from it."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        from importlib import import_module

        module = import_module(f"kvmctl.cli.{COMMANDS[name][1]}")
        command = getattr(module, f"{name}_command", None) or getattr(module, name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest names where there is no such command."""
        name = args[0]
        if name not in COMMANDS and name not in ALIASES and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, [*COMMANDS, *ALIASES], n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "'kvmctl --help' lists the commands"
            raise UsageProblem(f"no command {name[:60]!a}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, from COMMANDS alone."""
        sections: dict[str, list[tuple[str, str]]] = {}
        spoken = {name: alias for alias, name in ALIASES.items()}
        for name, (section, _module, text) in COMMANDS.items():
            shown = f"{name}, {spoken[name]}" if name in spoken else name
            sections.setdefault(section, []).append((shown, text))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kvmctl", message="%(prog)s %(version)s")
@everywhere
def root() -> None:
    """Run KVM virtual machines: create, connect, snapshot, clone and migrate them through libvirt.

    kvmctl COMMAND --help explains a command and shows examples.
    """


def run(arguments: list[str]) -> int:
    """Run the command line ``arguments`` and return the exit code."""
    app = App()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = root.main(args=arguments, prog_name="kvmctl", obj=app, standalone_mode=False)
        sys.stdout.flush()
        # click returns the code of ctx.exit() here, and otherwise what the command returned: nothing.
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        return _reader_left()
    except (click.Abort, KeyboardInterrupt):
        return _report(app, arguments, Interrupted("interrupted"))
    except click.ClickException as wrong:
        return _report(app, arguments, _from_click(wrong))
    except Partial as error:
        # Every target's own error was shown when it happened.
        return error.exit_code
    except KvmctlError as error:
        return _report(app, arguments, error)
    except Exception as error:  # noqa: BLE001 - the one boundary: nothing leaves it as a traceback
        return _report(app, arguments, _from_outside(error, app))
    finally:
        app.close()


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted("interrupted (SIGTERM)")


def _reader_left() -> int:
    # Whoever read stdout has gone (| head): not an error, and nobody is left to tell.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 0


def _from_click(wrong: click.ClickException) -> KvmctlError:
    if isinstance(wrong, click.FileError):
        return UsageProblem(wrong.format_message())
    if isinstance(wrong, click.UsageError):
        command = wrong.ctx.command_path if wrong.ctx else "kvmctl"
        message = " ".join(wrong.format_message().split()).rstrip(".")
        return UsageProblem(message[:1].lower() + message[1:], f"see '{command} --help'")
    return KvmctlError(wrong.format_message())


def _from_outside(error: Exception, app: App) -> KvmctlError:
    libvirt = sys.modules.get("libvirt")
    if libvirt is not None and isinstance(error, libvirt.libvirtError):
        from kvmctl.connection import explain

        found = explain(error, app.uri)
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        found = KvmctlError(f"{where}{error.strerror}")
    else:
        found = KvmctlError(
            f"unexpected {type(error).__name__}: {error}", "--debug shows where; please report it with that"
        )
    found.__cause__ = error
    return found


def _report(app: App, arguments: list[str], error: KvmctlError) -> int:
    from kvmctl.cli import output

    if app.output == "table":
        # The command line may have failed before its -o was read.
        app.output = output.wanted(arguments)
    if app.debug or "--debug" in arguments:
        import traceback

        cause: Any = error if error.__traceback__ else (error.__cause__ or error)
        sys.stderr.write("".join(traceback.format_exception(cause)))
    output.show_error(app, error)
    return error.exit_code
