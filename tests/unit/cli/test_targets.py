"""One verb over several VMs."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvmctl.cli.options import App
from kvmctl.cli.targets import for_each
from kvmctl.errors import Conflict, Interrupted, KvmctlError, NotFound, Partial


def acting(failures: dict[str, KvmctlError]) -> Callable[[str], dict[str, Any]]:
    def act(name: str) -> dict[str, Any]:
        if name in failures:
            raise failures[name]
        return {"name": name, "changed": True}

    return act


def said(row: dict[str, Any]) -> str:
    return f"{row['name']} done"


def test_one_target_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    for_each(App(output="json"), ["a"], False, acting({}), said)
    assert json.loads(capsys.readouterr().out) == {"name": "a", "changed": True}


def test_one_targets_error_is_raised_as_it_is() -> None:
    with pytest.raises(NotFound):
        for_each(App(), ["a"], False, acting({"a": NotFound("no")}), said)


def test_several_are_an_array_even_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for_each(App(output="json"), ["a"], True, acting({}), said)
    assert json.loads(capsys.readouterr().out) == [{"name": "a", "changed": True}]


def test_none_of_all_is_an_empty_success(capsys: pytest.CaptureFixture[str]) -> None:
    for_each(App(output="json"), [], True, acting({}), said)
    assert json.loads(capsys.readouterr().out) == []


def test_one_failure_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Partial) as caught:
        for_each(App(), ["a", "b\x1b", "c"], True, acting({"b\x1b": NotFound("no such", "look")}), said)
    assert caught.value.exit_code == 8
    told = capsys.readouterr()
    assert told.out == "a done\nc done\n"
    assert told.err == "error: b\\x1b: no such\n  look\n"


def test_each_targets_error_is_in_the_array_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Partial):
        for_each(App(output="json"), ["a", "b"], True, acting({"b": NotFound("no")}), said)
    told = capsys.readouterr()
    assert json.loads(told.out)[1]["error"]["code"] == "not-found"
    assert json.loads(told.err) == {"error": {"code": "not-found", "message": "no", "hint": None, "name": "b"}}


def test_names_output_has_only_what_succeeded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Partial):
        for_each(App(output="name"), ["a", "b"], True, acting({"a": NotFound("no")}), said)
    assert capsys.readouterr().out == "b\n"


def test_all_failing_alike_exits_like_them_and_mixed_ones_as_partial() -> None:
    with pytest.raises(Partial) as alike:
        for_each(App(), ["a", "b"], True, acting({"a": NotFound("no"), "b": NotFound("no")}), said)
    assert alike.value.exit_code == 3
    with pytest.raises(Partial) as mixed:
        for_each(App(), ["a", "b"], True, acting({"a": NotFound("no"), "b": Conflict("no")}), said)
    assert mixed.value.exit_code == 8


def test_an_interrupt_ends_it() -> None:
    with pytest.raises(Interrupted):
        for_each(App(), ["a", "b"], True, acting({"a": Interrupted("stop")}), said)


def test_parallel_runs_at_once_and_keeps_the_order(capsys: pytest.CaptureFixture[str]) -> None:
    together = threading.Barrier(3, timeout=30)

    def act(name: str) -> dict[str, Any]:
        together.wait()
        return {"name": name}

    for_each(App(), ["c", "a", "b"], True, act, said, parallel=3)
    assert capsys.readouterr().out == "c done\na done\nb done\n"
