"""Waiting for a call in a thread of its own: its result, its error, and what a signal does meanwhile."""

import threading
from collections.abc import Iterator

import libvirt
import pytest

from kvmctl.operations import abortable as module
from kvmctl.operations.abortable import abortable


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a call that gets no answer waits for; it gets one when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def refuse() -> int:
    raise libvirt.libvirtError("no")


def test_what_the_call_returns_or_raises() -> None:
    assert abortable(lambda: "done") == "done"
    with pytest.raises(libvirt.libvirtError):
        abortable(refuse)


def test_a_tick_that_libvirt_refuses_is_no_error_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.001)
    enough = threading.Event()
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            enough.set()
        raise libvirt.libvirtError("busy")

    assert abortable(lambda: enough.wait(60), tick=tick) is True
    assert len(ticks) >= 3


@pytest.mark.parametrize("refuses", [False, True])
def test_a_signal_aborts_and_waits_for_the_end(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work has ended, whichever way, before the interruption goes on; an abort that fails changes nothing."""
    monkeypatch.setattr(module, "TICK", 0.001)
    told, over = threading.Event(), threading.Event()

    def work() -> None:
        told.wait(60)
        over.set()

    def interrupted() -> None:
        raise KeyboardInterrupt

    def abort() -> None:
        told.set()
        if refuses:
            raise libvirt.libvirtError("too late")

    with pytest.raises(KeyboardInterrupt):
        abortable(work, abort=abort, tick=interrupted)
    assert over.is_set()


@pytest.mark.parametrize(("heard", "patience"), [(False, None), (True, 0.001)])
def test_it_does_not_wait_for_what_nobody_heard_or_for_longer_than_it_may(
    heard: bool, patience: float | None, never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK", 0.001)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        abortable(never.wait, abort=lambda: heard, tick=interrupted, patience=patience)
