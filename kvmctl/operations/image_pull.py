"""Downloading a published image into the hypervisor's pool."""

import hashlib

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError, Refused
from kvmctl.operations import download, image_catalogue, image_import, image_store
from kvmctl.operations.progress import Progress


def pull(
    hypervisor: Hypervisor,
    what: str,
    name: str | None = None,
    checksum: str | None = None,
    progress: Progress | None = None,
) -> image_store.Image:
    """Fetch ``what``, a name in the catalogue or a URL, and make an image of it; see image_import.import_file().

    The catalogue's images are checked against what their projects publish, one from a URL against
    ``checksum`` (``sha256:…``); without that a warning says that nobody vouches for it.
    """
    progress = progress or Progress()
    given = download.parse_checksum(checksum) if checksum is not None else None
    if "://" in what:
        url = download.check_url(what)
        default = image_import.name_from(download.file_name(url))
    else:
        entry = image_catalogue.find(what)
        url, default = entry.url, entry.name
    chosen = image_store.check_free(hypervisor, name if name is not None else default)
    if given is None:
        given = _published(entry, progress) if "://" not in what else None
    if given is None:
        progress.warn(f"nothing vouches for {url}: no checksum was given (--checksum sha256:…)")
    with download.fetched(url, given, progress) as path:
        return image_import.import_file(hypervisor, path, chosen, progress)


def pull_once(hypervisor: Hypervisor, url: str, progress: Progress) -> image_store.Image:
    """The image from ``url``, fetched unless it was before: its name holds a digest of the address."""
    name = name_of(url)
    known = image_store.find_or_none(hypervisor, name)
    return known if known is not None else pull(hypervisor, url, name, None, progress)


def name_of(url: str) -> str:
    """What the image from ``url`` is called. Raises UsageProblem for what is no http(s) URL."""
    download.check_url(url)
    stem = image_import.name_from(download.file_name(url))[:50].rstrip("-._")
    return f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _published(entry: image_catalogue.Entry, progress: Progress) -> download.Checksum:
    progress.step(f"looking up the checksum of {entry.name}")
    try:
        text = download.text_of(entry.checksums)
    except download.Interruption as error:
        raise KvmctlError(f"{entry.checksums}: {error}") from None
    except OSError as error:
        raise KvmctlError(f"{entry.checksums}: {download.reason(error)}") from None
    name = entry.url.rpartition("/")[2]
    found = download.find_checksum(text, name, entry.algorithm)
    if found is None:
        raise Refused(f"{entry.checksums} has no checksum of {name}", "the catalogue may be out of date: give a URL")
    return found
