"""Which mirror is taken from apt's own configuration."""

from pathlib import Path

import pytest

from kvmctl.operations import apt_sources
from kvmctl.operations.apt_sources import Source, for_suite, parse_list, parse_sources, usable_uri


def test_one_line_style() -> None:
    text = (
        "# a comment\n"
        "deb http://mirror.example/debian bookworm main contrib # trailing\n"
        "deb [arch=amd64 signed-by=/etc/apt/keyrings/own.gpg] https://m.example/d bookworm-security main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "nonsense\n"
    )
    assert list(parse_list(text)) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        Source("https://m.example/d", "bookworm-security", ("main",), "/etc/apt/keyrings/own.gpg"),
    ]


def test_deb822_style() -> None:
    text = (
        "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian\nSuites: bookworm\n bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/\nSuites: bookworm\nComponents: main\n"
    )
    assert list(parse_sources(text)) == [
        Source("http://a.example/debian", "bookworm", ("main",)),
        Source("http://a.example/debian", "bookworm-updates", ("main",)),
    ]


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://a.example/debian sid main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "x.sources").write_text("Types: deb\nURIs: http://b.example/debian\nSuites: trixie\nComponents: main\n")
    (parts / "y.list.save").write_text("deb http://c.example/debian sid main\n")
    assert [source.uri for source in apt_sources.configured(tmp_path)] == [
        "http://a.example/debian",
        "http://b.example/debian",
    ]


def test_the_machines_mirror_serves_another_suite() -> None:
    sources = [
        Source("http://third.party/repo", "nodistro", ("main",)),
        Source("http://mirror.example/debian", "bookworm", ("main",), "/etc/own.gpg"),
        Source("http://mirror.example/security", "bookworm-security", ("main",)),
    ]
    mirrors = for_suite("trixie", sources)
    assert mirrors.lines == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    )
    assert mirrors.keyring == "/etc/own.gpg"


def test_sid_has_neither_updates_nor_security() -> None:
    assert for_suite("sid", []).lines == ("deb http://deb.debian.org/debian sid main",)


def test_without_a_security_archive_none_is_guessed() -> None:
    lines = for_suite("bookworm", [Source("http://m.example/debian", "bookworm", ("main",))]).lines
    assert not any("security" in line for line in lines)


def test_on_ubuntu_debians_own_mirror_is_taken() -> None:
    mirrors = for_suite("bookworm", [Source("http://archive.ubuntu.com/ubuntu", "jammy", ("main",))])
    assert mirrors.lines[0] == "deb http://deb.debian.org/debian bookworm main"
    assert mirrors.lines[2] == "deb http://deb.debian.org/debian-security bookworm-security main"
    # Ubuntu's apt trusts Ubuntu's keys alone.
    assert mirrors.keyring == apt_sources.DEBIAN_KEYRING


def test_a_list_of_mirrors_is_looked_up(tmp_path: Path) -> None:
    listed = tmp_path / "debian.list"
    listed.write_text("# mirrors\nhttps://deb.debian.org/debian\nhttps://other.example/debian\n")
    assert usable_uri(f"mirror+file:{listed}") == "https://deb.debian.org/debian"
    assert usable_uri(f"mirror+file:{tmp_path / 'missing'}") is None


@pytest.mark.parametrize("uri", ["cdrom:[Debian]", "file:/srv/debian", "copy:/x"])
def test_what_another_root_cannot_reach_is_not_taken(uri: str) -> None:
    assert usable_uri(uri) is None
