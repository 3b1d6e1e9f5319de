"""Undoing one's own steps, in reverse, when a later one fails or Ctrl-C arrives."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from kvmctl.errors import Interrupted, KvmctlError, is_interrupt, with_leftovers


def disregard(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler that does nothing.

    Other than with SIG_IGN, who watches the signals of this process still hears of it: see kvmctl.cli.interrupt.
    """


class Undo:
    """A stack of steps to take back. Use it in a ``with``; leave with an exception and they are undone.

    ``add()`` after each step that changed something; ``keep()`` when all is done. While it undoes,
    SIGINT and SIGTERM wait, so that a second Ctrl-C cannot leave half of it. What could not be undone is
    added to the error's hint.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, step: Callable[[], object]) -> None:
        """``step`` takes back what was just done; ``what`` names it if that fails ("delete volume x")."""
        self._steps.append((what, step))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within it SIGINT and SIGTERM wait, so that an act and its add() cannot be parted by one.

        Only for what takes a moment. A second Ctrl-C gets through all the same: it means it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        arrived: list[int] = []

        def wait(number: int, frame: FrameType | None) -> None:
            if arrived:
                raise KeyboardInterrupt
            arrived.append(number)

        held = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])

    def keep(self) -> None:
        """All is done: nothing is to be undone any more."""
        self._steps.clear()

    def __enter__(self) -> "Undo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._steps:
            return
        leftovers = self.run()
        if isinstance(error, KvmctlError):
            with_leftovers(error, leftovers)
        elif leftovers:
            if is_interrupt(error):
                raise with_leftovers(Interrupted("interrupted"), leftovers) from error
            raise with_leftovers(KvmctlError(str(error)), leftovers) from error

    def run(self) -> list[str]:
        """Undo now, newest step first, and return what could not be undone."""
        leftovers = []
        in_main = threading.current_thread() is threading.main_thread()
        held = {s: signal.signal(s, disregard) for s in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
        try:
            while self._steps:
                what, step = self._steps.pop()
                try:
                    step()
                except Exception as failure:  # noqa: BLE001 - whatever fails here, the other steps must still run
                    leftovers.append(f"{what} ({failure})")
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)
        return leftovers
