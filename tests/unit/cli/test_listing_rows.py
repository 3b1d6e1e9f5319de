"""The plain list must read a command line exactly as click would, or leave it to click."""

import pytest

from kvmctl.cli import listing_rows


@pytest.mark.parametrize(
    ("line", "uri", "output", "names", "active"),
    [
        ("list", None, "table", (), False),
        ("ls web", None, "table", ("web",), False),
        ("ps -o json", None, "json", (), True),
        ("-c test:///default list a b", "test:///default", "table", ("a", "b"), False),
        ("-o json -c x ps", "x", "json", (), True),
        ("list -c x list", "x", "table", ("list",), False),
    ],
)
def test_what_scripts_write_is_read_without_click(
    line: str, uri: str | None, output: str, names: tuple[str, ...], active: bool
) -> None:
    found = listing_rows.plain(line.split())
    assert found is not None
    app, read, only_active = found
    assert (app.uri, app.output, read, only_active) == (uri, output, names, active)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "image list",
        "-c list",
        "-o list ps",
        "list -c",
        "list -o",
        "list -o yaml",
        "list -o wide",
        "list --help",
        "--color never list",
        "list -- -x",
        "info list",
        "-ojson list",
    ],
)
def test_everything_else_is_left_to_click(line: str) -> None:
    assert listing_rows.plain(line.split()) is None
