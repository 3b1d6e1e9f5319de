"""The bar that long work draws on a terminal: one line, and below it a second of what else there is to say.

rich is imported here at once: nobody imports this module but who draws.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, ProgressColumn, Task, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column as Shape
from rich.text import Text
from rich.theme import Theme

from kvmctl.model.names import harmless
from kvmctl.model.units import human_size
from kvmctl.operations.progress import Progress

# Of the terminal's own palette, which its owner can read on his background, be it dark or light. rich's own are a
# yellow that fades on white, a red that looks like an error, and a grey that nobody sees on black.
_STYLES = {
    "bar.back": "bright_black",
    "bar.complete": "green",
    "bar.finished": "green",
    "bar.pulse": "green",
    "progress.download": "none",
    "progress.elapsed": "none",
}
# (columns of the terminal, at the least, and of the bar): the text beside it has to fit, too.
_WIDTHS = ((100, 24), (72, 14), (0, 0))
# "1000.9/1000.9 MiB", "1000 MiB/s" and "0:00:00", with the spaces between them.
_FIGURES = 18 + 11 + 8
# Where there is no room for a bar there is none for a speed.
_FEW_FIGURES = 18 + 2 + 8


@contextmanager
def draw(console: Console, warn: Callable[[str], None]) -> Iterator[Progress]:
    """Draw on ``console`` what is done; the bar disappears in the end. ``warn`` is given what shall stay to be read."""
    columns = (
        _Named(console),
        _OfKnownLength(console),
        _OfBytes(binary_units=True, table_column=Shape(no_wrap=True)),
        _Speed(console),
        TimeElapsedColumn(table_column=Shape(no_wrap=True, min_width=7)),
    )
    console.push_theme(Theme(_STYLES))
    lines = _Lines(*columns, console=console, transient=True)
    with lines:
        yield _Live(lines, warn)


def _bar_width(console: Console) -> int:
    return next(width for columns, width in _WIDTHS if console.width >= columns)


class _Lines(Bars):
    """The bar, and below it a line of what else there is to say."""

    detail = ""

    def get_renderables(self) -> Iterator[Any]:
        """The line of the task, and the detail's."""
        yield from super().get_renderables()
        if self.detail:
            yield Text(f"  {self.detail}", overflow="ellipsis", no_wrap=True)


class _Live(Progress):
    def __init__(self, lines: _Lines, warn: Callable[[str], None]) -> None:
        self.lines, self.told = lines, warn
        self.now: tuple[str, TaskID] | None = None

    def warn(self, text: str) -> None:
        self.told(text)

    def step(self, text: str) -> None:
        self.lines.detail = ""
        self._task(text, None)

    def amount(self, text: str, done: int, total: int | None, detail: str = "", speed: int | None = None) -> None:
        self.lines.detail = harmless(detail)
        task = self._task(text, total)
        # The same task may have begun as a step of unknown length.
        self.lines.update(task, completed=done, total=total, bytes=True, speed=speed)

    def _task(self, text: str, total: int | None) -> TaskID:
        text = harmless(text)
        if self.now is not None and self.now[0] == text:
            return self.now[1]
        if self.now is not None:
            self.lines.remove_task(self.now[1])
        self.now = (text, self.lines.add_task(text, total=total, bytes=total is not None))
        return self.now[1]


class _Named(ProgressColumn):
    """What is being done, in the room that is left: a line that broke would not be wiped out whole."""

    def __init__(self, console: Console) -> None:
        super().__init__(Shape(no_wrap=True))
        self.console = console

    def render(self, task: Task) -> Text:
        """The task's text, cut where it must be."""
        text = Text(task.description, no_wrap=True)
        bar = _bar_width(self.console)
        taken = 12 if not task.fields["bytes"] else bar + 1 + _FIGURES if bar else _FEW_FIGURES
        text.truncate(max(8, self.console.width - taken), overflow="ellipsis")
        return text


class _OfKnownLength(BarColumn):
    """A step whose length nobody knows has no bar: on a narrow terminal its text needs the room."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Any:
        """The bar, where there is room for one."""
        self.bar_width = _bar_width(self.console)
        return super().render(task) if task.fields["bytes"] and self.bar_width else ""


class _OfBytes(DownloadColumn):
    # Drawn anew with the rest, not half a second later.
    max_refresh = None

    def render(self, task: Task) -> Text:
        """``12.5/256.0 MiB``."""
        return super().render(task) if task.fields["bytes"] else Text()


class _Speed(ProgressColumn):
    """As the work itself tells it, or else as seen from what is done."""

    def __init__(self, console: Console) -> None:
        super().__init__(Shape(no_wrap=True))
        self.console = console

    def render(self, task: Task) -> Text:
        """``30 MiB/s``, where it is known and there is room."""
        speed = task.fields.get("speed") or task.speed
        shown = task.fields["bytes"] and speed and _bar_width(self.console)
        return Text(f"{human_size(round(speed))}/s" if shown and speed else "")
