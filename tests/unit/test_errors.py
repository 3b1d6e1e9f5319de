"""The errors, their codes, and what a script sees of them."""

import pytest

from kvmctl import errors

# The contract with scripts: the word and the exit code of each kind.
CODES = {
    errors.KvmctlError: ("failure", 1),
    errors.UsageProblem: ("usage", 2),
    errors.NotFound: ("not-found", 3),
    errors.Conflict: ("conflict", 4),
    errors.ConnectionFailed: ("connection", 5),
    errors.TimedOut: ("timeout", 6),
    errors.Refused: ("refused", 7),
    errors.Partial: ("partial", 8),
    errors.Interrupted: ("interrupted", 130),
}


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_codes_are_the_contracts(kind: type[errors.KvmctlError]) -> None:
    assert (kind.code, kind.exit_code) == CODES[kind]


def test_every_kind_is_in_the_contract() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KvmctlError)}
    assert kinds == set(CODES)


def test_as_dict_never_misses_a_key() -> None:
    assert errors.NotFound("no VM").as_dict() == {"code": "not-found", "message": "no VM", "hint": None}
    assert errors.Refused("no", "do this").as_dict() == {"code": "refused", "message": "no", "hint": "do this"}


def test_leftovers_join_the_hint() -> None:
    plain = errors.with_leftovers(errors.KvmctlError("failed"), ["volume a (busy)", "volume b (gone)"])
    assert plain.hint == "could not undo: volume a (busy); volume b (gone)"
    hinted = errors.with_leftovers(errors.KvmctlError("failed", "try again"), ["x"])
    assert hinted.hint == "try again; could not undo: x"
    assert errors.with_leftovers(errors.KvmctlError("failed", "try again"), []).hint == "try again"
