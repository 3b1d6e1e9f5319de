"""Fetching one file over HTTP(S): resumable, bounded, and never trusted further than its checksum reaches.

What has arrived is kept in the user's cache until the whole file has been checked, so that a cut connection,
or Ctrl-C, costs only what was not fetched yet.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from kvmctl import __version__
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, UsageProblem
from kvmctl.model.names import harmless
from kvmctl.model.units import GIB, MIB, human_size
from kvmctl.operations.progress import Progress

# A server that says nothing for this long, in seconds, is taken to be gone.
SILENCE = 30.0
# How often in a row a connection may bring nothing new before the download is given up, and the pause between.
FRUITLESS = 3
PAUSE = 1.0
LARGEST = 256 * GIB
LARGEST_TEXT = MIB
_CHECKSUM = re.compile(r"(sha256|sha512):([0-9a-fA-F]+)\Z")
_DIGITS = {"sha256": 64, "sha512": 128}


@dataclass(frozen=True)
class Checksum:
    """What a file must hash to; ``algorithm`` as hashlib names it, ``digest`` in lower-case hex."""

    algorithm: str
    digest: str


class Interruption(Exception):
    """The connection ended before the file did; what came is kept."""


def parse_checksum(text: str) -> Checksum:
    """``sha256:HEX`` or ``sha512:HEX``. Raises UsageProblem for anything else."""
    match = _CHECKSUM.match(text)
    if match is None or len(match[2]) != _DIGITS[match[1]]:
        raise UsageProblem(f"{text[:80]!a} is not a checksum", "write it like sha256:1f2e… with all its digits")
    return Checksum(match[1], match[2].lower())


def check_url(url: str) -> str:
    """``url`` if it is one that may be fetched. Raises UsageProblem."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise UsageProblem(f"{url[:200]!a} is not the URL of an image", "give an http:// or https:// address")
    if parts.username or parts.password:
        raise UsageProblem("a URL with a user or a password in it is not fetched", "download the image, then import it")
    return url


def file_name(url: str) -> str:
    """The last part of the URL's path, as a file's name."""
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", name).lstrip(".-")[:120] or "image"


def find_checksum(text: str, name: str, algorithm: str) -> Checksum | None:
    """The checksum of the file ``name`` in a published list of them.

    Understands the lines of sha256sum (``HEX  NAME``), of BSD's tools (``SHA256 (NAME) = HEX``), and a
    file of nothing but one checksum.
    """
    digits = _DIGITS[algorithm]
    lines = [line.strip() for line in text.splitlines()]
    for line in lines:
        gnu = re.fullmatch(rf"([0-9a-fA-F]{{{digits}}})[ \t]+\*?(\S.*)", line)
        bsd = re.fullmatch(rf"{algorithm}\s*\((.+)\)\s*=\s*([0-9a-fA-F]{{{digits}}})", line, re.IGNORECASE)
        found = (gnu[2], gnu[1]) if gnu else (bsd[1], bsd[2]) if bsd else None
        if found and found[0].rpartition("/")[2] == name:
            return Checksum(algorithm, found[1].lower())
    alone = [line for line in lines if line]
    if len(alone) == 1 and re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", alone[0]):
        return Checksum(algorithm, alone[0].lower())
    return None


def text_of(url: str) -> str:
    """A small text file, such as a list of checksums."""
    with _open(_request(url), secure=url.startswith("https:")) as response:
        data: bytes = response.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise Refused(f"{url} is larger than a list of checksums would be")
    return data.decode("utf-8", "replace")


@contextlib.contextmanager
def fetched(url: str, checksum: Checksum | None, progress: Progress) -> Iterator[Path]:
    """The file at ``url``, whole and matching ``checksum``, for as long as the ``with`` lasts.

    If the work inside fails it is kept, so that it need not be fetched again; unless that failure is
    Refused, which says that the file itself is no good. Raises NotFound, Refused for what is wrong with
    the file, Conflict where another kvmctl is fetching it, KvmctlError where it cannot be had.
    """
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"another kvmctl is downloading {url} at this moment", "wait until it has ended") from None
        whole = folder / file_name(url)
        try:
            if not whole.exists():
                _Fetch(url, folder, progress, secure=url.startswith("https:") and checksum is None).run(whole)
            if checksum is not None:
                _verify(whole, checksum, progress)
            yield whole
        except Refused:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """Where downloads wait until they are whole."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvmctl" / "downloads"


class _Fetch:
    """One download. ``part`` holds what has come, ``notes`` what the server said that file was."""

    def __init__(self, url: str, folder: Path, progress: Progress, *, secure: bool) -> None:
        self.url, self.progress, self.secure = url, progress, secure
        self.part, self.notes = folder / "part", folder / "part.json"

    def run(self, whole: Path) -> None:
        fruitless = 0
        while True:
            before = self._size()
            try:
                self._attempt()
                break
            except Interruption as cut:
                fruitless = fruitless + 1 if self._size() <= before else 0
                if fruitless >= FRUITLESS:
                    kept = f"{human_size(self._size())} are kept and the next attempt goes on from there"
                    raise KvmctlError(f"{self.url}: {cut}", kept if self._size() else None) from None
                if fruitless:
                    time.sleep(PAUSE)
        self.part.rename(whole)
        self.notes.unlink(missing_ok=True)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> None:
        request, start = _request(self.url), self._size()
        validator = self._noted().get("validator")
        if start and validator:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", validator)
        else:
            start = 0
        try:
            with _open(request, secure=self.secure) as response:
                start = self._begin(response, start)
                self._receive(response, start, _length(response.headers, start))
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # The file has shrunk, or was whole already: the answer to a whole request tells.
            self.part.unlink(missing_ok=True)
            self.notes.unlink(missing_ok=True)
            raise Interruption("the server has no more of it than is here") from None
        except (OSError, http.client.HTTPException) as error:
            raise Interruption(reason(error)) from None

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _begin(self, response: Any, start: int) -> int:
        """Where what comes now belongs: 0 unless the server goes on exactly where the last part ended."""
        if response.headers.get_content_type() == "text/html":
            raise Refused(f"{self.url} is a web page, not an image", "is the address right?")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(f"{self.url} comes in an encoding that was not asked for")
        if response.status == 206:
            range_ = re.match(r"bytes (\d+)-\d+/", response.headers.get("Content-Range", ""))
            if range_ is None or int(range_[1]) != start:
                self.notes.unlink(missing_ok=True)
                raise Interruption("the server sent another part than was asked for")
            return start
        etag = response.headers.get("ETag", "")
        # A weak one (W/"…") does not promise the same bytes, so RFC 9110 forbids it in If-Range.
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        self.notes.write_text(json.dumps({"url": self.url, "validator": validator}), encoding="utf-8")
        return 0

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        limit = total if total is not None else LARGEST
        if limit > LARGEST:
            raise Refused(f"{self.url} would be {human_size(limit)}")
        room = shutil.disk_usage(self.part.parent).free + start
        if total is not None and total > room:
            raise KvmctlError(
                f"{self.url} has {human_size(total)}, and {self.part.parent} only room for {human_size(room)}"
            )
        with self.part.open("r+b" if start else "wb") as out:
            out.seek(start)
            out.truncate()
            done = start
            while data := self._read(response, out):
                done += len(data)
                if done > limit:
                    raise Refused(f"{self.url} does not end where its server said")
                out.write(data)
                self.progress.amount(f"downloading {file_name(self.url)}", done, total)
        if total is not None and done < total:
            raise Interruption(f"the connection ended after {done} of {total} bytes")

    def _read(self, response: Any, out: IO[bytes]) -> bytes:
        """The next bytes. What came of a chunk that was cut off is kept, but must never pass for the end."""
        try:
            data: bytes = response.read(256 * 1024)
        except http.client.IncompleteRead as cut:
            out.write(cut.partial)
            raise Interruption("the connection ended before the file did") from None
        return data


def _length(headers: Message, start: int) -> int | None:
    text = headers.get("Content-Length", "")
    return start + int(text) if text.isascii() and text.isdigit() else None


def reason(error: Exception) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, TimeoutError):
        return f"the server was silent for {SILENCE:.0f} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the file did"
    cause = getattr(error, "reason", None) or error
    return harmless(str(getattr(cause, "strerror", None) or cause))[:200] or "the connection failed"


def _verify(path: Path, checksum: Checksum, progress: Progress) -> None:
    digest, done, total = hashlib.new(checksum.algorithm), 0, path.stat().st_size
    with path.open("rb") as source:
        while data := source.read(4 * MIB):
            digest.update(data)
            done += len(data)
            progress.amount(f"checking {path.name}", done, total)
    if digest.hexdigest() != checksum.digest:
        raise Refused(
            f"{path.name} has the wrong {checksum.algorithm} checksum: {digest.hexdigest()[:16]}…, "
            f"not {checksum.digest[:16]}…",
            "it was damaged or replaced on its way, and was thrown away; try again, or ask its publisher",
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and away from https only where a checksum vouches for what comes."""

    def __init__(self, secure: bool) -> None:
        self.secure = secure

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target = urljoin(req.full_url, newurl)
        scheme = urlsplit(target).scheme
        if scheme not in ("http", "https"):
            raise Refused(f"{req.full_url} leads to {target[:200]!a}, which is not fetched")
        if self.secure and scheme != "https":
            raise Refused(
                f"{req.full_url} leads away from https, to {target[:200]!a}",
                "give a --checksum, which then vouches for it",
            )
        following = super().redirect_request(req, fp, code, msg, headers, target)
        if following is not None:
            for header in ("Range", "If-range"):
                if req.has_header(header):
                    following.add_header(header, req.get_header(header) or "")
        return following


def _request(url: str) -> urllib.request.Request:
    headers = {"User-Agent": f"kvmctl/{__version__}", "Accept-Encoding": "identity"}
    return urllib.request.Request(check_url(url), headers=headers)


@contextlib.contextmanager
def _open(request: urllib.request.Request, *, secure: bool) -> Iterator[Any]:
    """The response; what HTTP calls an error becomes one of kvmctl's, but for 416, which the caller knows."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(secure),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(request, timeout=SILENCE) as response:
            yield response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                raise
            if error.code in (404, 410):
                raise NotFound(f"{request.full_url} does not exist (HTTP {error.code})") from None
            if error.code in (500, 502, 503, 504):
                raise Interruption(f"the server answered HTTP {error.code}") from None
            if 300 <= error.code < 400:
                target = harmless(error.headers.get("Location", ""))[:200]
                raise Refused(
                    f"{request.full_url} leads to {target!a} (HTTP {error.code}), which is not fetched"
                ) from None
            raise KvmctlError(f"{request.full_url}: the server answered HTTP {error.code}") from None
