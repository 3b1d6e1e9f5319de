"""Reading the command lines that scripts write most without click, whose import takes longer than the work itself."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kvmctl.cli.app import App
from kvmctl.errors import KvmctlError, UsageProblem


class Line(NamedTuple):
    """A command line: what its options for every command say, its words, its known flags, and the values given.

    ``repeated`` are those of the options that may come more than once, in their order.
    """

    app: App
    words: tuple[str, ...]
    flags: frozenset[str]
    values: dict[str, Any]
    repeated: tuple[tuple[str, str], ...]


def one_of(*words: str) -> Callable[[str], str]:
    """What reads the value of an option that takes one of ``words``."""

    def read_(text: str) -> str:
        if text not in words:
            raise UsageProblem(f"{text!a} is none of {', '.join(words)}")
        return text

    return read_


def read(
    arguments: list[str],
    flags: Collection[str] = (),
    readers: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
    repeatable: Collection[str] = (),
) -> Line | None:
    """None where there is any option in it but ``-c``, ``-o``, ``-q`` and those given here, or a wrong one.

    ``readers``: what reads the value of each option that has one; ``repeatable`` have a value each time. Click reads
    the rest, and tells of errors.
    """
    app = App()
    words = []
    found = set()
    values = {}
    repeated = []
    rest = iter(arguments)
    for word in rest:
        if word in ("-c", "--connect"):
            app.uri = next(rest, None)
            if app.uri is None:
                return None
        elif word in ("-o", "--output"):
            app.output = next(rest, "")
            if app.output not in ("table", "json", "name"):
                return None
        elif word in ("-q", "--quiet"):
            app.quiet = True
        elif word in flags:
            found.add(word)
        elif word in repeatable or word in readers:
            value = next(rest, None)
            if value is None:
                return None
            if word in repeatable:
                repeated.append((word, value))
                continue
            try:
                values[word] = readers[word](value)
            except KvmctlError:
                return None
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    return Line(app, tuple(words), frozenset(found), values, tuple(repeated))
