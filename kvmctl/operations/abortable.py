"""Waiting for a call that libvirt answers only when its work is done, with Ctrl-C still working meanwhile."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import libvirt

from kvmctl.preflight.asking import Asking

T = TypeVar("T")

# How often progress is asked for while the call is under way, in seconds.
TICK = 0.2


def abortable(
    call: Callable[[], T],
    abort: Callable[[], bool | None] | None = None,
    tick: Callable[[], object] | None = None,
    patience: float | None = None,
    every: float = TICK,
) -> T:
    """What ``call`` returns, run in a thread of its own.

    A signal's exception (Ctrl-C, SIGTERM) asks ``abort`` to end the work early, then waits for the call,
    whichever way it ends, before it is raised on: nothing is left running behind the caller's back. With
    ``patience`` it waits no longer than so many seconds, and not at all where ``abort`` says False: nobody heard it.
    ``tick`` is called each ``every`` seconds; what libvirt refuses to tell it is no error of the work.
    """
    asking = Asking(call)
    try:
        while not asking.ended(every):
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
