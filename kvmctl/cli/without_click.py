"""Reading the command lines that scripts write most without click, whose import takes longer than the work itself."""

from collections.abc import Collection
from typing import NamedTuple

from kvmctl.cli.app import App


class Line(NamedTuple):
    """A command line: what its options for every command say, its words, and which of the known flags it has."""

    app: App
    words: tuple[str, ...]
    flags: frozenset[str]


def read(arguments: list[str], flags: Collection[str] = ()) -> Line | None:
    """None where there is any option in it but ``-c``, ``-o`` and ``flags``: click reads that, and tells of errors."""
    app = App()
    words = []
    found = set()
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
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    return Line(app, tuple(words), frozenset(found))
