"""Waiting for a call that libvirt answers only when its work is done, with Ctrl-C still working meanwhile."""

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import libvirt

T = TypeVar("T")

# How often progress is asked for while the call is under way, in seconds.
TICK = 0.2


def abortable(
    call: Callable[[], T],
    abort: Callable[[], object] | None = None,
    tick: Callable[[], object] | None = None,
    patience: float | None = None,
) -> T:
    """What ``call`` returns, run in a thread of its own.

    A signal's exception (Ctrl-C, SIGTERM) asks ``abort`` to end the work early, then waits for the call,
    whichever way it ends, before it is raised on: nothing is left running behind the caller's back. With
    ``patience`` it waits no longer than so many seconds.
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
                abort()
        thread.join(patience)
        raise
    if failure:
        raise failure[0]
    return result[0]
