"""The program's door. Kept thin: what it imports is paid for by every call."""

import gc
import os
import sys


def main() -> None:
    """Run kvmctl with the process's arguments and leave with its exit code."""
    arguments = sys.argv[1:]
    # Nothing that is imported becomes garbage: looking through it again and again takes a tenth of a short command.
    gc.set_threshold(100_000, 50, 100)
    if arguments == ["--version"]:
        from kvmctl import __version__

        sys.stdout.write(f"kvmctl {__version__}\n")
        sys.exit(0)
    # A shell that asks for completion passes no arguments: click reads what it wants from the environment.
    if arguments in ([], ["--help"], ["-h"]) and "_KVMCTL_COMPLETE" not in os.environ:
        from kvmctl.cli.first_page import text

        # Without a command kvmctl has done nothing, and a script should see that.
        (sys.stdout if arguments else sys.stderr).write(text())
        sys.exit(0 if arguments else 2)
    if not {"list", "ls", "ps"}.isdisjoint(arguments[:5]):
        code = _list(arguments)
        if code is not None:
            _leave(code)
            return
    try:
        from kvmctl.cli.root import run
    except KeyboardInterrupt:
        # Ctrl-C before anything has begun: no traceback for that either.
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    _leave(run(arguments))


def _leave(code: int) -> None:
    """End with ``code`` without taking the interpreter apart.

    That would take as long as asking libvirt, while libvirt's event thread still runs. Nothing is left to be
    undone: every command has removed its temporary files and closed its connections itself.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        os._exit(code or 1)
    os._exit(code)


def _list(arguments: list[str]) -> int | None:
    """The plain list, without click, whose import takes longer than all the rest of it."""
    from kvmctl.cli import boundary, listing_rows

    wanted = listing_rows.plain(arguments)
    if wanted is None:
        return None
    app, names, active = wanted

    def command() -> int:
        listing_rows.show(app, names, wide=False, active=active)
        return 0

    return boundary.guarded(app, arguments, command)


if __name__ == "__main__":
    main()
