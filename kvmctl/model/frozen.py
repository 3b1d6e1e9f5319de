"""``@dataclass(frozen=True)`` that is made in a quarter of the time.

The standard library writes each method of each class as source text and compiles it: 0.3 ms a class, of which a command
imports forty. Here only ``__init__`` is made so; the others are the same few functions for all classes. What holds
of a frozen dataclass holds of these: fields(), replace(), asdict(), equality, hash, repr, and that nothing is assigned
after ``__init__``.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen):
        """As dataclasses.dataclass(frozen=True)."""
        assert frozen
        return _made


def _made(cls: type) -> type:
    # Not frozen for the standard library: it would compile two more methods, and __init__ would need them.
    dataclasses.dataclass(repr=False, eq=False)(cls)
    for name, method in _METHODS.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)
    return cls


def _setattr(self: Any, name: str, value: object) -> None:
    # __init__ sets each field once.
    if name in self.__dict__ or name not in self.__dataclass_fields__:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    self.__dict__[name] = value


def _delattr(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    compared = [field.name for field in dataclasses.fields(self) if field.compare]
    return all(getattr(self, name) == getattr(other, name) for name in compared)


def _hash(self: Any) -> int:
    return hash(
        tuple(
            getattr(self, field.name)
            for field in dataclasses.fields(self)
            if (field.compare if field.hash is None else field.hash)
        )
    )


_METHODS = {
    "__setattr__": _setattr,
    "__delattr__": _delattr,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
}
