from pathlib import Path

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.preflight import osinfo

_ENTRY = """<libosinfo><os id="{url}"><short-id>{short}</short-id><name>{name}</name><name xml:lang="de">x</name>
<family>{family}</family>{more}<resources arch="{arch}"><minimum><n-cpus>2</n-cpus><ram>{ram}</ram>
<storage>10737418240</storage></minimum></resources></os></libosinfo>"""


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "os/vendor"
    folder.mkdir(parents=True)
    debian = {"url": "http://debian.org/debian/11", "short": "debian11", "name": "Debian 11", "family": "linux"}
    (folder / "a.xml").write_text(_ENTRY.format(**debian, more="", arch="all", ram=1 << 30))
    win = {"url": "http://microsoft.com/win/11", "short": "win11", "name": "Microsoft Windows 11", "family": "winnt"}
    uefi = '<firmware arch="x86_64" type="bios" supported="false"/>'
    (folder / "b.xml").write_text(_ENTRY.format(**win, more=uefi, arch="x86_64", ram=4 << 30))
    (folder / "bad.xml").write_text("<!DOCTYPE a><short-id>evil</short-id>")
    monkeypatch.setenv("OSINFO_SYSTEM_DIR", str(tmp_path))
    return folder


def test_what_the_database_says() -> None:
    found = osinfo.find("win11")
    assert (found.profile, found.needs_uefi, found.min_memory, found.min_vcpus) == ("windows", True, 4 << 30, 2)
    assert (found.url, found.name, found.exact) == ("http://microsoft.com/win/11", "Microsoft Windows 11", True)
    assert osinfo.find("Debian11").needs_uefi is False


def test_a_newer_system_is_judged_by_its_older_relative() -> None:
    found = osinfo.find("debian12")
    assert (found.exact, found.profile, found.min_memory) == (False, "linux", 1 << 30)
    assert found.url == "http://debian.org/debian/12"


@pytest.mark.parametrize(
    ("short_id", "profile"), [("winsomething", "windows"), ("ubuntu31.10", "linux"), ("plan9", "generic")]
)
def test_an_unknown_system_is_judged_by_its_name(short_id: str, profile: str) -> None:
    found = osinfo.find(short_id)
    assert (found.profile, found.url, found.min_memory, found.exact) == (profile, None, None, False)


def test_a_file_with_a_doctype_is_passed_over() -> None:
    assert osinfo.find("evil").url is None


@pytest.mark.parametrize("text", ["", "../x", "a b", "-rf", "x" * 60, "win11\n", "\u202ewin"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(UsageProblem):
        osinfo.find(text)


def test_without_a_database_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSINFO_SYSTEM_DIR", "/nowhere")
    assert osinfo.find("debian12").profile == "linux"
