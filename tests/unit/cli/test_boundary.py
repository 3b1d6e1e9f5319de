"""Errors become exit codes."""

import signal
from collections.abc import Iterator

import pytest

from kvmctl.cli.app import App
from kvmctl.cli.boundary import guarded
from kvmctl.errors import Interrupted


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """guarded() takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), Interrupted("interrupted (SIGTERM)")])
def test_a_signal_in_the_middle_of_libvirts_own_callback_is_one_all_the_same(
    cause: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise SystemError(
            "<built-in function virStorageVolLookupByName> returned a result with an exception set"
        ) from (cause)

    assert guarded(App(), [], command) == 130
    assert "interrupted" in capsys.readouterr().err


def test_any_other_system_error_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise SystemError("no idea")

    assert guarded(App(), [], command) == 1
    assert "unexpected SystemError" in capsys.readouterr().err
