"""What can go wrong, and the exit code that tells a script which of these it was.

This module imports nothing of kvmctl, so every other part may use it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar


class KvmctlError(Exception):
    """One thing that went wrong: what, why, and what to do about it.

    ``message`` is one line of what and why; ``hint``, where there is one, is what to do, if possible as
    a command. Subclasses differ only in ``code`` (the word in JSON) and ``exit_code``.
    """

    code: ClassVar[str] = "failure"
    exit_code: int = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        # What with_leftovers() added to the hint.
        self.leftovers: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The error as scripts read it: ``{"code", "message", "hint"}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageProblem(KvmctlError):
    """Wrong arguments, spec or XML."""

    code = "usage"
    exit_code = 2


class NotFound(KvmctlError):
    """No such VM, network, snapshot, device or image."""

    code = "not-found"
    exit_code = 3


class Conflict(KvmctlError):
    """It exists already, or is in the wrong state for this."""

    code = "conflict"
    exit_code = 4


class ConnectionFailed(KvmctlError):
    """The hypervisor was not reached, or does not allow this."""

    code = "connection"
    exit_code = 5


class TimedOut(KvmctlError):
    """A ``--timeout`` ran out."""

    code = "timeout"
    exit_code = 6


class Refused(KvmctlError):
    """A preflight says no; nothing was touched."""

    code = "refused"
    exit_code = 7


class Partial(KvmctlError):
    """Some of several targets failed; each was already reported on its own."""

    code = "partial"
    exit_code = 8


class Interrupted(KvmctlError):
    """Ctrl-C or SIGTERM; what was half done is undone."""

    code = "interrupted"
    exit_code = 130


def is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` comes of Ctrl-C or SIGTERM.

    A signal may arrive while libvirt tells Python of an error: its call then returns as if there were none, which
    Python calls a SystemError.
    """
    if isinstance(error, SystemError):
        return isinstance(error.__cause__, (KeyboardInterrupt, Interrupted))
    return isinstance(error, (KeyboardInterrupt, Interrupted))


def with_leftovers(error: KvmctlError, leftovers: Sequence[str]) -> KvmctlError:
    """``error`` with the steps that could not be undone added to its hint, so that nobody has to guess."""
    if leftovers:
        told = "could not undo: " + "; ".join(leftovers)
        error.hint = f"{error.hint}; {told}" if error.hint else told
        error.leftovers = (*error.leftovers, *leftovers)
    return error
