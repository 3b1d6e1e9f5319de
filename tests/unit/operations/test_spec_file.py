"""Spec files as they are found on this machine."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model.spec import Spec
from kvmctl.operations.create_options import from_spec
from kvmctl.operations.spec_file import load, named, only

EXAMPLES = Path(__file__).parents[3] / "examples"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5yB0XkYm me@here"


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))


def test_the_examples_are_specs() -> None:
    assert list(named(load(str(EXAMPLES / "web.yaml")), "x")) == ["web"]
    assert list(named(load(str(EXAMPLES / "two.toml")), "x")) == ["app", "db"]


@pytest.mark.parametrize("text", ["name: a\nkernel: vmlinuz", 'name = "a"\nkernel = "vmlinuz"'])
def test_standard_input_is_either_and_begins_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    stdin(monkeypatch, text)
    monkeypatch.chdir(tmp_path)
    assert load("-") == (Spec(name="a", kernel=f"{tmp_path}/vmlinuz"),)


def test_standard_input_cannot_be_the_password_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "name: a\npassword_file: '-'")
    with pytest.raises(UsageProblem, match="standard input is the spec already"):
        load("-")


def test_what_is_no_spec_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageProblem, match="is a directory"):
        load(str(tmp_path))
    with pytest.raises(UsageProblem, match="cannot be read"):
        load("a\0b")
    (tmp_path / "a.yaml").write_text("name: a\n---\nnam: b\n")
    with pytest.raises(UsageProblem, match=r"a\.yaml, VM 2: no key 'nam'"):
        load(str(tmp_path / "a.yaml"))


def test_names() -> None:
    with pytest.raises(UsageProblem, match="no name"):
        named([Spec()], "f")
    with pytest.raises(UsageProblem, match="two VMs"):
        named([Spec(name="a"), Spec(name="a")], "f")
    two = [Spec(name="a"), Spec(name="b")]
    assert only(two, "b", "f") == two[1]
    assert only(two[:1], "other", "f") == two[0]
    with pytest.raises(UsageProblem, match="2 VMs"):
        only(two, None, "f")
    with pytest.raises(UsageProblem, match="2 VMs"):
        only(two, "c", "f")


def test_a_request_from_a_spec_and_options(tmp_path: Path) -> None:
    spec = Spec(
        image="x", vcpus=(2, 4), memory=(2**30, None), networks=(), ssh_keys=(KEY,), publish=("80:80",), start=False
    )
    request = from_spec("a", spec, {"vcpus": (3, None), "title": "t"})
    assert (request.vcpus, request.max_vcpus, request.memory_bytes, request.title) == (3, None, 2**30, "t")
    assert (request.nics, request.ssh_keys, request.start) == ((), (KEY,), False)
    assert [forward.host_port for forward in request.forwards] == [80]
    with pytest.raises(UsageProblem, match="not an SSH public key"):
        from_spec("a", Spec(image="x", ssh_keys=("ssh-ed25519",)), {})
