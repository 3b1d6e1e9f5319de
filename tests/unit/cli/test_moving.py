"""The plain command line of a move, read without click, means what click makes of it."""

from typing import Any

import click
import pytest

from kvmctl.cli import migrate as command
from kvmctl.cli import moving
from kvmctl.cli.app import App
from kvmctl.cli.root import root
from kvmctl.errors import UsageProblem
from kvmctl.operations.migrate_steer import Moment


def by_click(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> tuple[App, str, str, dict[str, Any]]:
    seen: list[tuple[App, str, str, dict[str, Any]]] = []

    def move(app: App, vm: str, destination: str, options: dict[str, Any]) -> int:
        seen.append((app, vm, destination, options))
        return 0

    monkeypatch.setattr(moving, "move", move)
    root.main(args=arguments, prog_name="kvmctl", obj=App(), standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize(
    "line",
    [
        "migrate web qemu+tcp://b/system",
        "-c qemu:///system -o json migrate web qemu+tcp://b/system --check",
        "migrate --timeout 2m web qemu+tcp://b/system --max-downtime 50ms --bandwidth 32",
        "migrate web qemu+tcp://b/system --bandwidth 40M --copy-storage --progress -o json",
    ],
)
def test_reads_what_click_reads(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    plain, clicked = moving.plain(line.split()), by_click(monkeypatch, line.split())
    assert plain is not None
    assert plain[1:] == clicked[1:] and vars(plain[0]) == vars(clicked[0])


@pytest.mark.parametrize(
    "line",
    [
        "migrate web",
        "migrate web b c",
        "migrate web* b",
        "migrate web b --timeout soon",
        "migrate web b --timeout",
        "migrate web b -c",
        "migrate web b -o wide",
        "migrate web b --abort",
        "migrate web b --timeout=2m",
        "list migrate b",
        "migrate -- web b",
    ],
)
def test_leaves_the_rest_to_click(line: str) -> None:
    assert moving.plain(line.split()) is None


def test_nonsense_is_refused_before_anything_is_opened() -> None:
    nonsense: list[dict[str, Any]] = [{"max_downtime": 0.0}, {"timeout": 0.5}, {"bandwidth": 1000}, {"connections": 2}]
    for wrong in nonsense:
        options = {**moving.DEFAULTS, "postcopy": "now", **wrong}
        with pytest.raises(UsageProblem):
            moving.move(App(uri="none:///"), "web", "qemu+tcp://b/system", options)


def test_a_pause_and_what_is_left_are_said_below_the_bar() -> None:
    moment = Moment("memory", 1.5, 1000, 2**20, 600, 2**20, 3 * 2**20, 2, 20, 12)
    said = "memory round 2; 1 MiB left; 3 MiB/s changed; pause ~12 ms; slowed 20 %"
    assert moving._detail(moment) == said
    quiet = moment._replace(phase="disks", iteration=0, dirty_bytes_per_second=None, throttle_percent=0)
    assert moving._detail(quiet._replace(expected_downtime_ms=None)) == "disks; 1 MiB left"


def test_every_option_has_its_default() -> None:
    names = {p.name for p in command.migrate.params if isinstance(p, click.Option) and p.expose_value}
    assert names == set(moving.DEFAULTS)
