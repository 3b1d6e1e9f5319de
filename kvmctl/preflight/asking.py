"""A question to libvirt in a thread of its own, so that something else can be done until the answer is there."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Asking(threading.Thread, Generic[T]):
    """A call to libvirt under way in a thread of its own, as it may stay without an answer for long or for good."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="kvmctl-asking", daemon=True)
        self._call, self._began = call, time.monotonic()
        self._result: list[T] = []
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's own work."""
        try:
            self._result.append(self._call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            self._failure = error

    def ended(self, within: float | None = 0) -> bool:
        """Whether it has come to an end; waits for that at most so many seconds, None: as long as it takes."""
        self.join(within)
        return not self.is_alive()

    def result(self) -> T:
        """What the call returned, waiting for its end; raises what it raised."""
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._result[0]

    @property
    def seconds(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self._began


def together(*calls: Callable[[], T]) -> list[T]:
    """What each of the calls returns, all under way at once: hosts are far, and each answer takes its time.

    Raises what the first of them raised that failed, in the order given.
    """
    return [asking.result() for asking in [Asking(call) for call in calls]]
