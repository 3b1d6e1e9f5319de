"""What holds of the standard library's frozen dataclasses holds of these."""

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from kvmctl.model import frozen


@frozen.dataclass(frozen=True)
class Ours:
    """One of ours."""

    name: str
    size: int = 1
    tags: tuple[str, ...] = field(default_factory=tuple)
    secret: str | None = field(default=None, repr=False)
    handle: object = field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The same of the standard library's."""

    name: str
    size: int = 1
    tags: tuple[str, ...] = field(default_factory=tuple)
    secret: str | None = field(default=None, repr=False)
    handle: object = field(default=None, compare=False)


@frozen.dataclass(frozen=True)
class Derived(Ours):
    """With a field of its own, a method of its own and something computed."""

    more: int = 0

    def __post_init__(self) -> None:
        if self.more < 0:
            raise ValueError(self.more)

    def __repr__(self) -> str:
        return "mine"


def same(ours: Callable[[type], Any]) -> None:
    """``ours`` gives the same of both classes."""
    assert ours(Ours) == ours(Theirs)


def test_fields_defaults_and_conversion() -> None:
    same(lambda kind: [(f.name, f.repr, f.compare) for f in dataclasses.fields(kind)])
    same(lambda kind: dataclasses.asdict(kind("a", tags=("x",))))
    same(lambda kind: dataclasses.asdict(dataclasses.replace(kind("a"), size=3)))


def test_repr_leaves_out_what_it_shall() -> None:
    same(lambda kind: repr(kind("a", 2, ("x",), "hidden")).partition("(")[2])
    assert "hidden" not in repr(Ours("a", secret="hidden"))


def test_equality_and_hash() -> None:
    assert Ours("a", handle=1) == Ours("a", handle=2)
    assert hash(Ours("a", handle=1)) == hash(Ours("a", handle=2))
    assert Ours("a") != Ours("b")
    other: object = Theirs("a")
    assert Ours("a") != other
    assert Ours("a") != Derived("a")
    same(lambda kind: len({kind("a"), kind("a"), kind("b"), kind("a", secret="s")}))


def test_nothing_is_assigned_afterwards() -> None:
    one: Any = Ours("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.another = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.name
    assert one == Ours("a")


def test_the_call_is_checked() -> None:
    anything: Any = Ours
    for arguments in ({}, {"name": "a", "colour": "red"}):
        with pytest.raises(TypeError):
            anything(**arguments)


def test_a_class_keeps_its_own_methods_and_its_base_class_fields() -> None:
    assert repr(Derived("a", more=2)) == "mine"
    assert dataclasses.asdict(Derived("a", more=2))["more"] == 2
    assert Derived("a", 5).size == 5
    with pytest.raises(ValueError, match="-1"):
        Derived("a", more=-1)
