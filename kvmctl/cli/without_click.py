"""Reading the command lines that scripts write most without click, whose import takes longer than the work itself."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from kvmctl.cli.app import App
from kvmctl.errors import KvmctlError


class Line(NamedTuple):
    """A command line: what its options for every command say, its words, its known flags, and the values given."""

    app: App
    words: tuple[str, ...]
    flags: frozenset[str]
    values: dict[str, Any]


def read(
    arguments: list[str], flags: Collection[str] = (), readers: Mapping[str, Callable[[str], Any]] | None = None
) -> Line | None:
    """None where there is any option in it but ``-c``, ``-o``, ``flags`` and those of ``readers``, or a wrong one.

    ``readers``: what reads the value of each option that has one. Click reads the rest, and tells of errors.
    """
    app = App()
    words = []
    found = set()
    values = {}
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
        elif word in flags:
            found.add(word)
        elif readers is not None and word in readers:
            try:
                values[word] = readers[word](next(rest, ""))
            except KvmctlError:
                return None
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    return Line(app, tuple(words), frozenset(found), values)
