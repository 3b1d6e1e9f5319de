"""What long work draws fits its terminal, in colours that can be read, and is gone in the end."""

import io
import re

import pytest
from rich.console import Console

from kvmctl.cli.bar import draw

MIB = 2**20


def screen(width: int) -> tuple[Console, io.StringIO]:
    drawn = io.StringIO()
    console = Console(file=drawn, width=width, height=24, force_terminal=True, color_system="256", legacy_windows=False)
    return console, drawn


def lines(drawn: io.StringIO) -> list[str]:
    """Each line that was drawn, without its colours."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", drawn.getvalue())]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", ["web-1", "a-guest-with-a-very-long-name-indeed-0123456789"])
def test_it_fits_its_terminal(width: int, name: str) -> None:
    console, drawn = screen(width)
    detail = "memory round 12; 97.1 MiB left; 99.5 MiB/s changed; pause ~409 ms; slowed 99 %"
    with draw(console, lambda _text: None) as bar:
        bar.step(f"looking at {name}, whose disks and networks must be there as well " * 2)
        bar.amount(f"moving {name}", 159 * MIB, 256 * MIB, detail, speed=31 * MIB)
    shown = lines(drawn)
    assert max(map(len, shown)) <= width
    figures = [line for line in shown if "/256.0 MiB" in line][-1]
    assert re.search(r"^moving .*159\.0/256\.0 MiB .*0:00:0\d", figures), figures
    if width >= 80:
        # The speed that is told, not the one that is seen: 159 MiB in no time at all.
        assert "━" in figures and " 31 MiB/s " in figures and f"  {detail}" in shown


def test_it_wipes_itself_out() -> None:
    console, drawn = screen(80)
    with draw(console, lambda _text: None) as bar:
        bar.amount("moving web-1", MIB, 2 * MIB, "memory round 1")
    ends = drawn.getvalue()
    # Up and wiped, for both lines; and the cursor is seen again.
    assert ends.count("\x1b[1A\x1b[2K") >= 2 and ends.rindex("\x1b[?25h") > ends.rindex("\x1b[?25l")


def test_its_colours_are_the_terminals_own() -> None:
    """And none that fades on one background or the other: no yellow, no white, no black."""
    console, drawn = screen(80)
    with draw(console, lambda _text: None) as bar:
        bar.amount("moving web-1", MIB, 2 * MIB, "memory round 1", speed=MIB)
    codes = {code for codes in re.findall(r"\x1b\[([0-9;]+)m", drawn.getvalue()) for code in codes.split(";")}
    assert codes == {"0", "32", "90"}
