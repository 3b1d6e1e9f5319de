"""Downloads from a server on loopback that misbehaves in every way that was thought of."""

import hashlib
import os
from pathlib import Path

import pytest

from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, UsageProblem
from kvmctl.operations import download
from kvmctl.operations.download import Checksum, fetched
from kvmctl.operations.progress import Progress
from tests.unit.operations.misbehaving_server import Behaviour, serving

CONTENT = os.urandom(300_000)
RIGHT = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())


class Recorder(Progress):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.amounts: list[tuple[str, int, int | None]] = []

    def amount(self, text: str, done: int, total: int | None, detail: str = "", speed: int | None = None) -> None:
        self.amounts.append((text, done, total))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no pause between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "kvmctl" / "downloads"


def get(url: str, checksum: Checksum | None = RIGHT) -> bytes:
    with fetched(url, checksum, Progress()) as path:
        return path.read_bytes()


def left(cache: Path) -> list[str]:
    return sorted(str(path.name) for path in cache.rglob("*") if path.is_file())


def test_a_whole_file_with_progress_and_nothing_left(cache: Path) -> None:
    recorder = Recorder()
    with serving(Behaviour(CONTENT)) as base, fetched(f"{base}/disk.qcow2", RIGHT, recorder) as path:
        assert path.name == "disk.qcow2"
        assert path.read_bytes() == CONTENT
    assert ("downloading disk.qcow2", len(CONTENT), len(CONTENT)) in recorder.amounts
    assert left(cache) == []


def test_chunked_without_a_length() -> None:
    with serving(Behaviour(CONTENT, chunked=True)) as base:
        assert get(f"{base}/x") == CONTENT


@pytest.mark.parametrize("chunked", [False, True])
def test_a_drop_in_the_middle_goes_on_where_it_ended(chunked: bool) -> None:
    behaviour = Behaviour(CONTENT, drops=[100_000, 70_000], chunked=chunked)
    with serving(behaviour) as base:
        assert get(f"{base}/x") == CONTENT
    starts = [int((asked or "bytes=0-")[6:-1]) for _path, asked in behaviour.requests]
    assert starts[0] == 0
    assert len(starts) == 3
    assert 0 < starts[1] < starts[2]


def test_a_server_without_ranges_starts_again() -> None:
    with serving(Behaviour(CONTENT, drops=[100_000], ranges=False)) as base:
        assert get(f"{base}/x") == CONTENT


def test_a_weak_etag_is_not_relied_on() -> None:
    behaviour = Behaviour(CONTENT, drops=[100_000], etag='W/"weak"')
    with serving(behaviour) as base:
        assert get(f"{base}/x") == CONTENT
    assert behaviour.requests[1][1] is None


def test_the_file_changed_between_two_attempts() -> None:
    old = Behaviour(os.urandom(300_000), drops=[100_000, 0, 0, 0, 0])
    with serving(old) as base:
        with pytest.raises(KvmctlError, match="connection ended") as error:
            get(f"{base}/x")
        assert "are kept" in (error.value.hint or "")
        old.content, old.etag, old.drops = CONTENT, '"two"', []
        assert get(f"{base}/x") == CONTENT
    assert old.requests[-1][1] == "bytes=100000-"


def test_what_was_kept_is_used_by_the_next_call() -> None:
    behaviour = Behaviour(CONTENT, drops=[200_000, 0, 0, 0])
    with serving(behaviour) as base:
        with pytest.raises(KvmctlError, match="connection ended"):
            get(f"{base}/x")
        behaviour.drops = []
        assert get(f"{base}/x") == CONTENT
    assert behaviour.requests[-1][1] == "bytes=200000-"


def test_a_server_that_never_gets_further_is_given_up() -> None:
    behaviour = Behaviour(CONTENT, drops=[0] * 50)
    with serving(behaviour) as base, pytest.raises(KvmctlError, match="connection ended"):
        get(f"{base}/x")
    assert len(behaviour.requests) == download.FRUITLESS


def test_another_part_than_asked_for_is_not_taken() -> None:
    with serving(Behaviour(CONTENT, drops=[100_000], wrong_range=True)) as base:
        assert get(f"{base}/x") == CONTENT


def test_a_longer_length_than_the_file() -> None:
    with (
        serving(Behaviour(CONTENT, length=len(CONTENT) + 5, ranges=False, etag=None)) as base,
        pytest.raises(KvmctlError),
    ):
        get(f"{base}/x")


def test_a_wrong_checksum_is_refused_and_nothing_kept(cache: Path) -> None:
    with serving(Behaviour(CONTENT + b"!")) as base, pytest.raises(Refused, match="wrong sha256 checksum"):
        get(f"{base}/x")
    assert left(cache) == []


def test_a_web_page_is_refused(cache: Path) -> None:
    with (
        serving(Behaviour(b"<html>", content_type="text/html; charset=utf-8")) as base,
        pytest.raises(Refused, match="page"),
    ):
        get(f"{base}/x", None)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (410, NotFound), (403, KvmctlError), (503, KvmctlError)]
)
def test_http_errors(status: int, error: type[KvmctlError]) -> None:
    with serving(Behaviour(CONTENT, status=status)) as base, pytest.raises(error, match=str(status)):
        get(f"{base}/x")


def test_a_refused_connection() -> None:
    with serving(Behaviour(CONTENT)) as base:
        pass
    with pytest.raises(KvmctlError, match="refused"):
        get(f"{base}/x")


def test_redirects_are_followed_to_http_only() -> None:
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as base, serving(Behaviour(b"", redirect=f"{base}/real.qcow2")) as first:
        assert get(f"{first}/x") == CONTENT
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"):
        with serving(Behaviour(b"", redirect=target)) as base, pytest.raises(Refused, match="is not fetched"):
            get(f"{base}/x", None)


def test_a_range_survives_a_redirect() -> None:
    behaviour = Behaviour(CONTENT, drops=[100_000])
    with serving(behaviour) as base, serving(Behaviour(b"", redirect=f"{base}/real")) as first:
        assert get(f"{first}/x") == CONTENT
    assert behaviour.requests[1] == ("/real", "bytes=100000-")


def test_a_redirect_in_circles() -> None:
    behaviour = Behaviour(b"")
    with serving(behaviour) as base:
        behaviour.redirect = f"{base}/x"
        with pytest.raises(KvmctlError, match="302"):
            get(f"{base}/x")


def test_https_does_not_lead_to_http_without_a_checksum() -> None:
    redirects = download._Redirects(secure=True)
    request = download._request("https://example.org/x")
    with pytest.raises(Refused, match="away from https"):
        redirects.redirect_request(request, None, 302, "", {}, "http://example.org/x")  # type: ignore[arg-type]


def test_two_at_once_of_one_url() -> None:
    with serving(Behaviour(CONTENT)) as base, fetched(f"{base}/x", RIGHT, Progress()), pytest.raises(Conflict):
        get(f"{base}/x")


def test_a_failure_that_is_not_the_files_keeps_it() -> None:
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as base:
        with pytest.raises(KvmctlError, match="disk full"), fetched(f"{base}/x", RIGHT, Progress()):
            raise KvmctlError("disk full")
        assert get(f"{base}/x") == CONTENT
    assert len(behaviour.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://x/y", "http://", "https:///x", "x", "", "http://a b/", "http://x:99999/", "http://ü/",
     "http://u:p@x/y", "http://x/\n"],
)  # fmt: skip
def test_urls_that_are_not_fetched(url: str) -> None:
    with pytest.raises(UsageProblem):
        download.check_url(url)


@pytest.mark.parametrize(
    "text", ["", "md5:" + "0" * 32, "sha256:123", "0" * 64, "sha512:" + "0" * 64, "sha256:" + "g" * 64]
)
def test_checksums_that_are_none(text: str) -> None:
    with pytest.raises(UsageProblem):
        download.parse_checksum(text)


def test_lists_of_checksums() -> None:
    a, b = "a" * 64, "b" * 64
    assert download.find_checksum(f"{b}  other.img\n{a} *x.img\n", "x.img", "sha256") == Checksum("sha256", a)
    assert download.find_checksum(f"{a}  ./dir/x.img\n", "x.img", "sha256") == Checksum("sha256", a)
    bsd = f"-----BEGIN PGP SIGNED MESSAGE-----\n# x.img: 12 bytes\nSHA256 (x.img) = {a.upper()}\n"
    assert download.find_checksum(bsd, "x.img", "sha256") == Checksum("sha256", a)
    assert download.find_checksum(f"{a}\n", "x.img", "sha256") == Checksum("sha256", a)
    assert download.find_checksum(f"{a}  not-x.img\n", "x.img", "sha256") is None
    assert download.find_checksum(f"{'a' * 128}  x.img\n", "x.img", "sha256") is None
    assert download.find_checksum("<html>", "x.img", "sha256") is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x/a/disk.qcow2?token=1", "disk.qcow2"),
        ("http://x/..%2f..%2fetc%2fpasswd", "etc-passwd"),
        ("http://x/%2e%2e", "image"),
        ("http://x/", "image"),
        ("http://x/-rf", "rf"),
        ("http://x/" + "a" * 500, "a" * 120),
    ],
)
def test_file_names_of_urls(url: str, name: str) -> None:
    assert download.file_name(url) == name
