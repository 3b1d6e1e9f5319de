"""libvirt's hook scripts: what is written, when it is up to date, and that it returns at once."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from kvmctl.errors import Refused
from kvmctl.operations import hooks


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if root owned this Python and kvmctl; whose they are in a checkout is not what is tested."""
    monkeypatch.setattr(hooks, "_refuse_foreign_code", lambda: None)


@pytest.mark.usefixtures("ours")
def test_install_writes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    assert hooks.missing(tmp_path) == ["qemu", "network", "daemon"]
    written = hooks.install(tmp_path)
    assert written == [str(tmp_path / f"{driver}.d" / "kvmctl") for driver in ("qemu", "network", "daemon")]
    assert all(Path(path).stat().st_mode & 0o777 == 0o755 for path in written)
    assert hooks.missing(tmp_path) == [] and hooks.install(tmp_path) == []
    (tmp_path / "qemu.d" / "kvmctl").write_text("an older kvmctl's")
    (tmp_path / "qemu.d" / "other").write_text("somebody else's")
    assert hooks.install(tmp_path) == [str(tmp_path / "qemu.d" / "kvmctl")]
    assert len(hooks.remove(tmp_path)) == 3
    assert (tmp_path / "qemu.d" / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ("web started begin -", ["port sync --patient"]),
        ("web release end -", ["port sync --patient"]),
        # What libvirtd itself does is not over when it tells.
        ("- reload begin SIGHUP", ["port sync --patient --settle"]),
        ("- start - start", ["port sync --patient --settle", "host autostart --boot"]),
        ("web start begin -", []),
        ("web prepare begin -", []),
        ("- shutdown - shutdown", []),
        ("web anything; begin -", []),
    ],
)
def test_the_script_does_not_wait_for_what_it_starts(tmp_path: Path, arguments: str, runs: list[str]) -> None:
    gate, told, script = tmp_path / "gate", tmp_path / "told", tmp_path / "hook"
    os.mkfifo(gate)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nread go <{gate}\necho "$*" >{told}.new\nmv {told}.new {told}\n')
    program.chmod(0o755)
    script.write_text(hooks.script().replace(shlex.join(hooks.command()), str(program)))
    script.chmod(0o755)
    # What it starts waits at the gate, which nobody has opened yet: the script is back all the same.
    done = subprocess.run([str(script), *arguments.split(" ")], timeout=60, check=False, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not told.exists()
    for run in runs:
        gate.write_text("go\n")
        while not told.exists():
            pass
        assert told.read_text() == f"-c qemu:///system {run}\n"
        told.unlink()


def test_code_that_others_can_change_is_not_run_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("")
    python.chmod(0o777)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(Refused, match="can be changed by others"):
        hooks.install(tmp_path / "hooks")
    assert not hooks.may_be_installed()
    assert not (tmp_path / "hooks").exists()
