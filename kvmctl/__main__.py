"""The program's door. Kept thin: what it imports is paid for by every call."""

import gc
import os
import sys


def main() -> None:
    """Run kvmctl with the process's arguments and leave with its exit code."""
    arguments = sys.argv[1:]
    # Nothing that is imported becomes garbage: looking through it again and again takes a tenth of a short command.
    gc.set_threshold(100_000, 50, 100)
    # Of the libraries below libvirt and lxml most functions are never called: they are looked up when they are.
    sys.setdlopenflags(os.RTLD_LAZY)
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
    try:
        code = _without_click(arguments)
        if code is None:
            from kvmctl.cli.root import run
    except KeyboardInterrupt:
        # Ctrl-C before anything has begun: no traceback for that either.
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    _leave(run(arguments) if code is None else code)


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


def _without_click(arguments: list[str]) -> int | None:
    """The exit code of the commands that scripts call most, where their line needs no click; None for all others.

    Its import takes longer than all the rest of a list, and a tenth of a small guest's snapshot.
    """
    first = set(arguments[:5])
    if not first.isdisjoint(("list", "ls", "ps")):
        from kvmctl.cli import boundary, listing_rows

        wanted = listing_rows.plain(arguments)
        if wanted is not None:
            app, names, active = wanted
            return boundary.guarded(app, arguments, lambda: listing_rows.show(app, names, wide=False, active=active))
    if "snapshot" in first:
        from kvmctl.cli import boundary, snapshot_moments

        moment = snapshot_moments.plain(arguments)
        if moment is not None:
            return boundary.guarded(moment[0], arguments, moment[1])
    if "create" in first:
        from kvmctl.cli import boundary, creating

        wish = creating.plain(arguments)
        if wish is not None:
            return boundary.guarded(wish[0], arguments, lambda: creating.create(*wish))
    if "migrate" in first:
        from kvmctl.cli import boundary, moving

        journey = moving.plain(arguments)
        if journey is not None:
            return boundary.guarded(journey[0], arguments, lambda: moving.move(*journey))
    return None


if __name__ == "__main__":
    main()
