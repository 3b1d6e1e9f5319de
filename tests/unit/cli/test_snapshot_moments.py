"""The plain snapshot commands must read a command line exactly as click would, or leave it to click."""

from typing import Any

import pytest

from kvmctl.cli import snapshot_moments
from kvmctl.cli.root import run


@pytest.mark.parametrize(
    "line",
    [
        "snapshot create web",
        "snapshot create web one",
        "-c test:///default -o json snapshot create web one",
        "snapshot create web one -o name",
        "snapshot revert web one",
        "snapshot revert --discard web one -c x",
    ],
)
def test_both_ways_do_the_same(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []

    def note(app: Any, *args: object, **options: object) -> None:
        given = [value for value in (*args, *options.values()) if value not in (None, False)]
        told.append((app.uri, app.output, *given))

    monkeypatch.setattr(snapshot_moments, "keep", note)
    monkeypatch.setattr(snapshot_moments, "go_back", note)
    found = snapshot_moments.plain(line.split())
    assert found is not None
    found[1]()
    assert run(line.split()) == 0
    assert told[0] == told[1], told


@pytest.mark.parametrize(
    "line",
    [
        "",
        "snapshot",
        "snapshot create",
        "snapshot create web one two",
        "snapshot create web --external",
        "snapshot create web --discard",
        "snapshot create web one -o yaml",
        "snapshot create web -- -x",
        "snapshot revert web",
        "snapshot revert web one --keep two",
        "snapshot list web",
        "clone snapshot create",
        "-c snapshot create web",
    ],
)
def test_everything_else_is_left_to_click(line: str) -> None:
    assert snapshot_moments.plain(line.split()) is None
