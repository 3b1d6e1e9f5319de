"""Questions in threads of their own: answers and errors come to who asked, and nobody is held by what has no answer."""

import threading

import pytest

from kvmctl.errors import NotFound, Refused
from kvmctl.preflight.asking import Asking, together


def refuse() -> int:
    raise Refused("no")


def miss() -> int:
    raise NotFound("nothing")


def test_an_answer_and_an_error_come_to_who_asked() -> None:
    asking = Asking(lambda: 7)
    assert asking.ended(None) and asking.result() == 7
    failed = Asking(refuse)
    assert failed.ended(None)
    with pytest.raises(Refused):
        failed.result()


def test_a_question_without_an_answer_holds_nobody() -> None:
    event = threading.Event()
    asking = Asking(event.wait)
    try:
        assert not asking.ended() and not asking.ended(0.001)
        # A daemon: nor does it hold the program's end.
        assert asking.seconds > 0 and asking.daemon
    finally:
        event.set()


def test_together_is_all_at_once_and_in_order() -> None:
    """Each waits for the other: one after the other they would never end."""
    both = threading.Barrier(2)

    def meet(answer: int) -> int:
        both.wait(60)
        return answer

    assert together(lambda: meet(1), lambda: meet(2)) == [1, 2]
    with pytest.raises(NotFound):
        together(lambda: 1, miss, refuse)
