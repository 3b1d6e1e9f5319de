"""Waiting for a call that libvirt answers only when its work is done, with Ctrl-C still working meanwhile."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import libvirt

T = TypeVar("T")

# How often progress is asked for while the call is under way, in seconds.
TICK = 0.2


class Asking(threading.Thread, Generic[T]):
    """A call to libvirt under way in a thread of its own, as it may stay without an answer for long or for good."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="kvmctl-call", daemon=True)
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
        """What the call returned, when it has ended; raises what it raised."""
        if self._failure is not None:
            raise self._failure
        return self._result[0]

    @property
    def seconds(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self._began


def abortable(
    call: Callable[[], T],
    abort: Callable[[], bool | None] | None = None,
    tick: Callable[[], object] | None = None,
    patience: float | None = None,
) -> T:
    """What ``call`` returns, run in a thread of its own.

    A signal's exception (Ctrl-C, SIGTERM) asks ``abort`` to end the work early, then waits for the call,
    whichever way it ends, before it is raised on: nothing is left running behind the caller's back. With
    ``patience`` it waits no longer than so many seconds, and not at all where ``abort`` says False: nobody heard it.
    ``tick`` is called every now and then; what libvirt refuses to tell it is no error of the work.
    """
    asking = Asking(call)
    try:
        while not asking.ended(TICK):
            if tick is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    tick()
    except BaseException:
        if abort is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if abort() is False:
                    patience = 0
        asking.ended(patience)
        raise
    return asking.result()
