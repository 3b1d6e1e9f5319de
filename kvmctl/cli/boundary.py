"""The only place where an error becomes an exit code."""

import os
import sys
from collections.abc import Callable
from typing import Any

from kvmctl.cli import interrupt
from kvmctl.cli.app import App
from kvmctl.errors import Interrupted, KvmctlError, Partial, is_interrupt


def guarded(app: App, arguments: list[str], command: Callable[[], int | None]) -> int:
    """Run ``command`` and return the exit code, its errors shown as ``app`` and ``arguments`` want them.

    ``command`` returns a code of its own, or nothing where there is only the one.
    """

    def tell(text: str) -> None:
        from kvmctl.cli import output

        output.warn(app, text)

    def leave(error: KvmctlError) -> None:
        os._exit(_report(app, arguments, error))

    with interrupt.Interruptible(tell, leave) as watch:
        try:
            code = command() or 0
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one boundary: nothing leaves it as a traceback
            watch.over()
            code = _answer(app, arguments, error, watch)
        finally:
            watch.over()
            watch.close(app.close)
        return code


def _answer(app: App, arguments: list[str], error: BaseException, watch: interrupt.Interruptible) -> int:
    """Say how the command failed; its exit code."""
    if isinstance(error, BrokenPipeError):
        return _reader_left()
    if isinstance(error, KeyboardInterrupt):
        return _report(app, arguments, watch.truth(Interrupted("interrupted")))
    if isinstance(error, Partial) and watch.cut is None:
        # Every target's own error was shown when it happened.
        return _code(app, error)
    if isinstance(error, KvmctlError):
        return _report(app, arguments, watch.truth(error))
    return _report(app, arguments, watch.truth(_from_outside(error, app)))


def _reader_left() -> int:
    # Whoever read stdout has gone (| head): not an error, and nobody is left to tell.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 0


def _from_outside(error: BaseException, app: App) -> KvmctlError:
    libvirt = sys.modules.get("libvirt")
    found: KvmctlError
    if libvirt is not None and isinstance(error, libvirt.libvirtError):
        from kvmctl.connection import explain

        found = explain(error, app.uri)
    elif is_interrupt(error):
        found = Interrupted("interrupted")
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
    return _code(app, error)


def _code(app: App, error: KvmctlError) -> int:
    return app.failure_code if error.exit_code == KvmctlError.exit_code else error.exit_code
