"""What is printed, and where."""

import io
import json
import sys

import pytest
import yaml

from kvmctl.cli import output
from kvmctl.cli.options import App
from kvmctl.cli.output import Column
from kvmctl.errors import NotFound, UsageProblem

COLUMNS = [
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("memory", "MEMORY", right=True),
    Column("ip", "IP", wide=True),
]
ROWS: list[output.Row] = [
    {"name": "a", "uuid": "u-a", "state": "running", "memory": 5, "ip": ["10.0.0.1", "10.0.0.2"]},
    {"name": "long\x1b[31m\u009b\u202e", "uuid": "u-b", "state": None, "memory": 12345, "ip": []},
]


def test_a_table_in_a_pipe_is_aligned_whole_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(App(), ROWS, COLUMNS)
    assert capsys.readouterr().out == (
        "NAME                    STATE    MEMORY\n"
        "a                       running       5\n"
        "long\\x1b[31m\\x9b\\u202e  -         12345\n"
    )


def test_wide_has_more_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(App(output="wide"), ROWS[:1], COLUMNS)
    assert capsys.readouterr().out.splitlines()[1].endswith("10.0.0.1, 10.0.0.2")


def test_names_can_be_used_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(App(output="name"), ROWS, COLUMNS)
    assert capsys.readouterr().out == "a\nu-b\n"


def test_json_and_yaml_hold_every_key_and_the_true_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(App(output="json"), ROWS, COLUMNS)
    out = capsys.readouterr().out
    assert json.loads(out) == ROWS
    assert out.isascii() and "\x1b" not in out
    output.show_list(App(output="yaml"), ROWS, COLUMNS)
    out = capsys.readouterr().out
    assert yaml.safe_load(out) == ROWS
    assert "\x1b" not in out


def test_an_empty_list_says_so_on_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_list(App(), [], COLUMNS, empty="no VMs")
    assert capsys.readouterr() == ("", "no VMs\n")
    output.show_list(App(quiet=True), [], COLUMNS, empty="no VMs")
    assert capsys.readouterr() == ("", "")
    output.show_list(App(output="json"), [], COLUMNS, empty="no VMs")
    assert capsys.readouterr() == ("[]\n", "")


def test_one_object_as_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_one(App(), {"name": "a", "run_time": None, "disks": ["x", "y\x07"], "on": True})
    assert capsys.readouterr().out == "name      a\nrun time  -\ndisks     x\n          y\\x07\non        yes\n"


def test_errors_are_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_error(App(), NotFound("no\nVM \x1b[2J", "look\nhere"))
    assert capsys.readouterr() == ("", "error: no VM \\x1b[2J\n  look here\n")


def test_errors_in_json_are_one_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_error(App(output="json"), NotFound("no\nVM"))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert json.loads(err) == {"error": {"code": "not-found", "message": "no\nVM", "hint": None}}


def test_what_the_stream_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    output.show_list(App(), [{"name": "grün"}], [Column("name", "NAME")])
    assert raw.getvalue() == b"NAME\ngr\\xfcn\n"


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageProblem) as caught:
        output.confirm(App(), "Delete a?")
    assert "--yes" in (caught.value.hint or "")
    output.confirm(App(yes=True), "Delete a?")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "table"),
        (["-o", "json"], "json"),
        (["list", "-ojson"], "json"),
        (["--output=yaml", "list"], "yaml"),
        (["-o", "nonsense"], "table"),
        (["-o"], "table"),
        (["exec", "a", "--", "-o", "json"], "table"),
        (["-o", "json", "-o", "name"], "name"),
    ],
)
def test_the_wanted_output_is_seen_without_parsing(arguments: list[str], found: str) -> None:
    assert output.wanted(arguments) == found


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert output.colored(App(), Terminal())
    assert not output.colored(App(), io.StringIO())
    assert output.colored(App(color="always"), io.StringIO())
    assert not output.colored(App(color="never"), Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.colored(App(), Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not output.colored(App(), Terminal())
