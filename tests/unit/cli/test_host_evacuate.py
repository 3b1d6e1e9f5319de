"""``host evacuate`` understands what ``migrate`` does of how a guest shall move, and moves each guest so."""

from typing import Any

import click
import pytest

from kvmctl.cli import host_evacuate, migrate, moving
from kvmctl.cli.app import App
from kvmctl.cli.root import root
from kvmctl.errors import UsageProblem
from kvmctl.model.migration import Wish
from kvmctl.operations import evacuate as operation

DEST = "qemu+tcp://b/system"
# What concerns one VM alone: evacuate knows by itself which are off, and mends nothing.
OF_ONE_VM = {"offline", "abort", "recover"}


def options(command: click.Command) -> dict[str | None, dict[str, Any]]:
    return {p.name: p.to_info_dict() for p in command.params if isinstance(p, click.Option)}


def test_has_the_options_of_migrate() -> None:
    ours, theirs = options(host_evacuate.evacuate), options(migrate.migrate)
    assert set(theirs) - set(ours) == OF_ONE_VM and set(ours) - set(theirs) == {"running"}
    # --check's help speaks of one VM there, of each here.
    assert [name for name in theirs if name in ours and ours[name] != theirs[name]] == ["check"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Filled with what each VM is asked to do, of a host with one that runs and one that is off."""
    seen: dict[str, Any] = {}

    def move_all(_app: App, _hypervisor: object, wishes: dict[str, Wish], check: bool, lines: bool) -> None:
        seen.update(wishes=wishes, check=check, lines=lines)

    monkeypatch.setattr(App, "connect", lambda _app, **_options: None)
    monkeypatch.setattr(operation, "order", lambda _hypervisor: [("runs", True), ("off", False)])
    monkeypatch.setattr(moving, "move_all", move_all)
    return seen


def evacuate(*arguments: str) -> None:
    root.main(args=["host", "evacuate", DEST, *arguments], prog_name="kvmctl", obj=App(), standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", {}),
        ("--max-downtime 50ms --timeout 2m", {"max_downtime": 0.05, "timeout": 120.0}),
        ("--bandwidth 30", {"bandwidth": 30 * 2**20}),
        ("--copy-storage", {"copy": "full"}),
        ("--copy-storage-inc --tls", {"copy": "top", "tls": True}),
        ("--shared-storage --connections 4", {"trust_storage": True, "connections": 4}),
        ("--compress", {"compress": True}),
    ],
)
def test_each_guest_is_moved_as_asked(asked: dict[str, Any], arguments: str, wanted: dict[str, Any]) -> None:
    evacuate(*arguments.split())
    wish = Wish(DEST)._replace(**wanted)
    assert asked == {"wishes": {"runs": wish, "off": wish._replace(offline=True)}, "check": False, "lines": False}


def test_what_is_off_needs_no_post_copy(asked: dict[str, Any]) -> None:
    evacuate("--postcopy", "auto", "--progress", "--check")
    assert asked["wishes"] == {"runs": Wish(DEST, postcopy="auto"), "off": Wish(DEST, offline=True)}
    assert asked["check"] and asked["lines"]


def test_what_is_off_may_stay(asked: dict[str, Any]) -> None:
    evacuate("--running", "--dry-run")
    assert list(asked["wishes"]) == ["runs"] and asked["check"]


@pytest.mark.parametrize(
    "arguments",
    [
        "--copy-storage --copy-storage-inc",
        "--postcopy auto --connections 2",
        "--compress --connections 2",
        "--max-downtime 0",
        "--timeout 1ms",
        "--bandwidth 3K",
    ],
)
def test_nonsense_is_refused_before_anything_is_opened(asked: dict[str, Any], arguments: str) -> None:
    with pytest.raises(UsageProblem):
        evacuate(*arguments.split())
    assert not asked
