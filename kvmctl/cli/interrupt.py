"""Ctrl-C and SIGTERM, also where libvirt has stopped answering.

Python runs a signal's handler between two steps of the main thread, and there is none as long as that thread waits in
a call to libvirt, which knows no end of waiting. So another thread hears of the signal as well, asks libvirt something
small now and then until the command has ended, and where no answer comes it cuts the connection off: the call fails,
the handler runs, and the command ends as it does when libvirt dies.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from kvmctl.errors import Interrupted, KvmctlError, with_leftovers

# Seconds without an answer until that is said, until the connection is cut off by itself, and until a main thread
# that even then does not hear of the signal is left behind.
TELL_AFTER = 2.0
CUT_AFTER = 10.0
LEAVE_AFTER = 5.0
# Seconds that closing the connections may take.
CLOSE_WITHIN = 1.0
_TICK = 0.2


class Interruptible:
    """Within it SIGINT and SIGTERM raise KeyboardInterrupt and Interrupted in the main thread, come what may.

    ``tell`` gets a line for the user; ``leave`` gets the error where the main thread cannot be reached at all, and
    ends the process. Use it in the main thread.
    """

    def __init__(self, tell: Callable[[str], None], leave: Callable[[KvmctlError], object]) -> None:
        self._tell, self._leave = tell, leave
        # The URI of the libvirt that was cut off, and whether it had been asked for anything.
        self.cut: str | None = None
        self._begun = True
        self._heard = self._over = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruptible":
        self._handlers = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._terminated)}
        # A shell ignores SIGINT for what it starts in the background, and so it shall stay.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupted)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # The interpreter writes a signal's number there at once, whatever the main thread does.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="kvmctl-interrupt", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._write)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def over(self) -> None:
        """The command has ended, and a signal cannot change any more how: what is left is saying it, and going."""
        self._over = True
        for number in self._handlers:
            signal.signal(number, _disregard)

    def close(self, close: Callable[[], object]) -> None:
        """``close`` the connections. libvirt, which may have stopped answering, gets a moment for it, and no more."""
        # Where it was not imported, there is none.
        if "kvmctl.connection" not in sys.modules:
            return
        closing = threading.Thread(target=close, name="kvmctl-close", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN)

    def truth(self, error: KvmctlError) -> KvmctlError:
        """``error``, or what really happened where it only comes of the connection that was cut off."""
        if self.cut is None:
            return error
        hint = "what was under way may still be there: when libvirt answers again, run the command again or delete it"
        if not self._begun:
            hint = "nothing was begun there: run the command again when libvirt answers again"
        found = Interrupted(f"interrupted, and libvirt does not answer ({self.cut})", hint)
        found.__cause__ = error
        return with_leftovers(found, error.leftovers)

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        self._heard = True
        raise KeyboardInterrupt

    def _terminated(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        self._heard = True
        raise Interrupted("interrupted (SIGTERM)")

    # ------------------------------------------------------------ in the other thread

    def _watch(self) -> None:
        try:
            if self._signalled(None):
                self._until_the_end(_Questions())
        finally:
            os.close(self._read)

    def _signalled(self, within: float | None) -> bool | None:
        """Whether a signal comes in so many seconds; None when the command has ended."""
        import select

        until = None if within is None else time.monotonic() + within
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                return False
            numbers = os.read(self._read, 64)
            if not numbers:
                return None
            if {signal.SIGINT, signal.SIGTERM} & set(numbers):
                return True

    def _until_the_end(self, questions: "_Questions") -> None:
        told = False
        while (again := self._signalled(_TICK)) is not None:
            uri, seconds, all_silent = questions.silence()
            if uri is None or seconds < TELL_AFTER or (self._heard and self._over):
                continue
            if not told and questions.anything_to_lose:
                self._tell(f"interrupted, but libvirt does not answer ({uri}); Ctrl-C again leaves it as it is")
                told = True
                continue
            # Of two hosts the one that answers is still needed, to put there right what can be.
            if again or not told or (all_silent and seconds > CUT_AFTER):
                self.cut, self._begun = uri, questions.anything_to_lose
                _cut_off()
                break
        if self.cut is not None:
            self._wait_for_the_end(questions)

    def _wait_for_the_end(self, questions: "_Questions") -> None:
        began = cut = time.monotonic()
        while (again := self._signalled(_TICK)) is not None:
            now = time.monotonic()
            if again or (now - began > LEAVE_AFTER and not self._heard):
                self._leave(self.truth(Interrupted("interrupted")))
                return
            # Putting things right may have opened the silent one once more.
            if now - cut > TELL_AFTER and questions.silence()[0] is not None:
                _cut_off()
                cut = now


class _Questions:
    """What libvirt was asked since the signal, a question at a time for each connection."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._asked: dict[int, Any] = {}
        self.anything_to_lose = False

    def silence(self) -> tuple[str | None, float, bool]:
        """The URI that has not answered for longest, for how many seconds, and whether no other answers either."""
        # Where it was not imported, nobody waits for libvirt.
        connection = sys.modules.get("kvmctl.connection")
        if connection is None:
            return None, 0, False
        from kvmctl.preflight.asking import Asking

        waiting = [(time.monotonic() - self._began, uri) for uri in list(connection.opening)]
        hypervisors = list(connection.live)
        self.anything_to_lose = bool(hypervisors)
        for hypervisor in hypervisors:
            asking = self._asked.get(id(hypervisor))
            if asking is None or asking.ended():
                self._asked[id(hypervisor)] = Asking(hypervisor.answers)
            elif asking.seconds >= TELL_AFTER:
                waiting.append((asking.seconds, hypervisor.uri))
        if not waiting:
            return None, 0, False
        seconds, uri = max(waiting)
        return uri, seconds, len(waiting) >= len(hypervisors) + len(connection.opening)


def _disregard(_number: int, _frame: FrameType | None) -> None:
    """A handler that does nothing. With SIG_IGN the other thread would not hear of the signal either."""


def _cut_off() -> None:
    """Shut down each connection that this process has made; those it was given stay as they are.

    libvirt tells nobody which are its own. What was given to a process is never closed on exec, its own always are.
    """
    import fcntl
    import socket
    import stat

    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        number = int(name)
        try:
            own = number > 2 and fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            if own and stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as made:
                    made.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Closed meanwhile, or not connected.
            continue
