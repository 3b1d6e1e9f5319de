"""The program's door. Kept thin: what it imports is paid for by every call."""

import sys


def main() -> None:
    """Run kvmctl with the process's arguments and leave with its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from kvmctl import __version__

        sys.stdout.write(f"kvmctl {__version__}\n")
        sys.exit(0)
    if arguments in ([], ["--help"], ["-h"]):
        from kvmctl.cli.first_page import text

        # Without a command kvmctl has done nothing, and a script should see that.
        (sys.stdout if arguments else sys.stderr).write(text())
        sys.exit(0 if arguments else 2)
    from kvmctl.cli.root import run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
