"""Which Debian mirror this machine's own apt uses, so that an image is built from the same.

Reads one-line (``sources.list``) and deb822 (``*.sources``) files, both described in sources.list(5).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ETC_APT = Path("/etc/apt")
FALLBACK_MIRROR = "http://deb.debian.org/debian"
FALLBACK_SECURITY = "http://deb.debian.org/debian-security"
# Of the package debian-archive-keyring (Fedora: debian-keyring), which Ubuntu does not bring by itself.
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Debian's releases by number, oldest first; each name below is also a suite of its own.
RELEASES = {"11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}
UNSTABLE = ("sid", "unstable")
_DEBIAN_SUITES = {
    *RELEASES.values(),
    *UNSTABLE,
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "buster",
}


@dataclass(frozen=True)
class Source:
    """One ``deb`` line: where, which suite, which components, and the keyring it names (a path) if any."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None


def parse_list(text: str) -> Iterator[Source]:
    """The binary sources of a one-line-style file; lines that are none of these are passed over."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line)
        if match:
            options = dict(part.partition("=")[::2] for part in (match[1] or "").split())
            yield Source(match[2], match[3], tuple(match[4].split()), _keyring(options.get("signed-by")))


def parse_sources(text: str) -> Iterator[Source]:
    """The binary sources of a deb822 file that are enabled."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n[ \t]*\n", without_comments):
        fields = {
            match[1].lower(): " ".join(match[2].split())
            for match in re.finditer(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", paragraph, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components, _keyring(fields.get("signed-by")))


def configured(etc: Path = ETC_APT) -> list[Source]:
    """Every binary source of the apt configuration below ``etc``; empty where there is none to read."""
    found: list[Source] = []
    parts = etc / "sources.list.d"
    listed = sorted(parts.iterdir()) if parts.is_dir() else []
    for path in [etc / "sources.list", *listed]:
        try:
            if path.suffix == ".list":
                found += parse_list(path.read_text(encoding="utf-8", errors="replace"))
            elif path.suffix == ".sources":
                found += parse_sources(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    return found


@dataclass(frozen=True)
class Mirrors:
    """What to build one suite from: ``deb`` lines, the keyring that signs them, where they come from.

    ``keyring`` is a path, or None where this machine's apt trusts the mirror without naming one.
    """

    lines: tuple[str, ...]
    keyring: str | None
    origin: str


def for_suite(codename: str, sources: Iterable[Source]) -> Mirrors:
    """The ``deb`` lines that ``codename`` is built from.

    The machine's own mirror where its apt has one for Debian (the security archive only if apt has that
    too), else Debian's own. Updates and security exist for releases, not for sid.
    """
    main: Source | None = None
    security: Source | None = None
    for source in sources:
        base = re.split(r"[-/]", source.suite)[0]
        if base not in _DEBIAN_SUITES or "main" not in source.components:
            continue
        if source.suite == base and main is None:
            main = source
        elif source.suite.endswith(("-security", "/updates")) and security is None:
            security = source
    main_uri = usable_uri(main.uri) if main else None
    security_uri = usable_uri(security.uri) if security else None
    keyring, origin = main.signed_by if main else None, "this machine's apt"
    if main_uri is None:
        main_uri, security_uri, keyring = FALLBACK_MIRROR, FALLBACK_SECURITY, DEBIAN_KEYRING
        origin = "Debian's own mirror"
    lines = [f"deb {main_uri} {codename} main"]
    if codename not in UNSTABLE:
        lines.append(f"deb {main_uri} {codename}-updates main")
        if security_uri:
            lines.append(f"deb {security_uri} {codename}-security main")
    return Mirrors(tuple(lines), keyring, origin)


def usable_uri(uri: str) -> str | None:
    """``uri`` as another root can use it, or None; the first of the mirrors that a ``mirror+file:`` lists."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return uri
    if scheme == "mirror+file":
        try:
            text = Path(urlsplit(uri).path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        match = re.search(r"^\s*(https?://\S+)", text, re.MULTILINE)
        return match[1] if match else None
    return None


def _keyring(signed_by: str | None) -> str | None:
    """The file in a Signed-By, unless it is Debian's own, which mmdebstrap finds by itself."""
    if not signed_by or not signed_by.startswith("/") or "/debian-archive-" in signed_by:
        return None
    return signed_by.split()[0]
