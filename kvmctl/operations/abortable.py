"""Waiting for a call that libvirt answers only when its work is done, with Ctrl-C still working meanwhile."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import libvirt

T = TypeVar("T")

# How often progress is asked for while the call is under way, in seconds.
TICK = 0.2


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
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            failure.append(error)

    thread = threading.Thread(target=body, name="kvmctl-call", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TICK)
            if tick is not None and thread.is_alive():
                with contextlib.suppress(libvirt.libvirtError):
                    tick()
    except BaseException:
        if abort is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if abort() is False:
                    patience = 0
        thread.join(patience)
        raise
    if failure:
        raise failure[0]
    return result[0]


class Asking(threading.Thread):
    """A question to libvirt that may stay without an answer: where QEMU itself waits for something, libvirt does."""

    def __init__(self, question: Callable[[], object]) -> None:
        super().__init__(name="kvmctl-question", daemon=True)
        self._question, self._began = question, time.monotonic()
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._question()
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            self._failure = error

    def answered(self, within: float) -> bool:
        """Wait for the answer at most so many seconds; raises what the question raised."""
        self.join(within)
        if self.is_alive():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    @property
    def seconds(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self._began
