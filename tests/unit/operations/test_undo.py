"""Undoing one's own steps."""

import signal

import pytest

from kvmctl.errors import Interrupted, KvmctlError, NotFound
from kvmctl.operations.undo import Undo


def test_success_undoes_nothing() -> None:
    done: list[str] = []
    with Undo() as undo:
        undo.add("a", lambda: done.append("a"))
    assert done == []


def test_failure_undoes_in_reverse_and_the_error_stays() -> None:
    done: list[str] = []
    with pytest.raises(NotFound) as caught, Undo() as undo:
        undo.add("a", lambda: done.append("a"))
        undo.add("b", lambda: done.append("b"))
        raise NotFound("gone", "look elsewhere")
    assert done == ["b", "a"]
    assert caught.value.hint == "look elsewhere"


def test_kept_steps_stay() -> None:
    done: list[str] = []
    with pytest.raises(KvmctlError), Undo() as undo:
        undo.add("a", lambda: done.append("a"))
        undo.keep()
        undo.add("b", lambda: done.append("b"))
        raise KvmctlError("late")
    assert done == ["b"]


def test_one_that_fails_does_not_stop_the_others_and_is_told() -> None:
    done: list[str] = []

    def fails() -> None:
        raise OSError("busy")

    with pytest.raises(KvmctlError) as caught, Undo() as undo:
        undo.add("delete volume a", lambda: done.append("a"))
        undo.add("delete volume b", fails)
        raise KvmctlError("failed")
    assert done == ["a"]
    assert caught.value.hint == "could not undo: delete volume b (busy)"


def test_an_interrupt_undoes_too_and_stays_an_interrupt() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        undo.add("a", lambda: done.append("a"))
        raise KeyboardInterrupt
    assert done == ["a"]


def test_an_interrupt_with_leftovers_tells_them() -> None:
    def fails() -> None:
        raise OSError("busy")

    with pytest.raises(Interrupted) as caught, Undo() as undo:
        undo.add("delete volume", fails)
        raise KeyboardInterrupt
    assert caught.value.hint == "could not undo: delete volume (busy)"


def test_a_second_interrupt_waits_until_all_is_undone() -> None:
    done: list[str] = []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        done.append("b")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KvmctlError), Undo() as undo:
        undo.add("a", lambda: done.append("a"))
        undo.add("b", interrupted)
        raise KvmctlError("failed")
    assert done == ["b", "a"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
