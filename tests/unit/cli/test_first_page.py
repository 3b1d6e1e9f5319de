import click
import pytest

from kvmctl.cli import ALIASES, COMMANDS, first_page
from kvmctl.cli.root import root, run


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_page_fits_and_names_every_command(width: int) -> None:
    page = first_page.text(width)
    assert max(len(line) for line in page.splitlines()) <= min(width, first_page.WIDEST)
    for name in (*COMMANDS, *ALIASES):
        assert any(
            name in line.split()[0:2] or f"{name}," in line.split() for line in page.splitlines() if line.strip()
        )


def test_its_options_are_the_ones_there_are() -> None:
    shown = {word.rstrip(",") for label, _ in first_page.OPTIONS for word in label.split() if word.startswith("-")}
    real = {name for option in root.params if isinstance(option, click.Option) for name in option.opts}
    assert shown == real | {"-h", "--help"}


def test_help_before_a_command_is_the_same_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["-o", "json", "--help"]) == 0
    assert capsys.readouterr().out.rstrip() == first_page.text(80).rstrip()


def test_an_unknown_command_names_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["crete"]) == 2
    assert "create" in capsys.readouterr().err
