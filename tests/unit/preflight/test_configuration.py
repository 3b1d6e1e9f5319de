from pathlib import Path

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.preflight import configuration
from kvmctl.preflight.configuration import Thresholds, thresholds


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(configuration, "SYSTEM", tmp_path / "system.toml")
    (tmp_path / "kvmctl").mkdir()
    return tmp_path / "kvmctl/config.toml"


def test_without_a_file_the_defaults_hold() -> None:
    assert thresholds() == Thresholds(4.0, 1.0, False)


def test_the_users_file_comes_before_the_systems(file: Path) -> None:
    configuration.SYSTEM.write_text("[overcommit]\nmemory_ratio = 3\n")
    assert thresholds() == Thresholds(memory_ratio=3)
    file.write_text("[overcommit]\ncpu_ratio = 2.5\nstrict = true\n")
    assert thresholds() == Thresholds(cpu_ratio=2.5, strict=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[overcommit", "Expected"),
        ("[other]", "no section 'other'"),
        ("overcommit = 3", "is a section"),
        ("[overcommit]\nratio = 3", "no 'ratio'"),
        ("[overcommit]\ncpu_ratio = 'lots'", "number above 0"),
        ("[overcommit]\ncpu_ratio = 0", "number above 0"),
        ("[overcommit]\ncpu_ratio = true", "number above 0"),
        ("[overcommit]\nmemory_ratio = nan", "number above 0"),
        ("[overcommit]\nstrict = 1", "true or false"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageProblem, match=words) as caught:
        thresholds()
    assert str(file) in caught.value.message


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageProblem, match="cannot be read"):
        thresholds()
