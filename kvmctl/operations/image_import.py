"""Bringing a local disk image into the hypervisor's pool: judged, converted where needed, and uploaded."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from kvmctl.connection import Hypervisor
from kvmctl.errors import Interrupted, KvmctlError, NotFound, Refused
from kvmctl.model.units import MIB, human_size
from kvmctl.operations import image_store
from kvmctl.operations.progress import Progress
from kvmctl.preflight.image_header import Header, compression, examine

# What a compressed image may grow to; gzip and xz can make a thousand bytes of one.
LARGEST_DECOMPRESSED = 256 * 1024 * MIB


def import_file(
    hypervisor: Hypervisor, path: Path, name: str | None = None, progress: Progress | None = None
) -> image_store.Image:
    """Make an image of the local file ``path``; its name is the file's where none is given.

    qcow2 and ISO files are taken as they are, all others are converted to qcow2 by qemu-img, which is told
    the format and never guesses it. gzip, xz and bzip2 are undone first. Raises NotFound, Refused (see
    image_header.examine()), UsageProblem for a name that cannot be, Conflict where it is taken.
    """
    progress = progress or Progress()
    chosen = image_store.check_free(hypervisor, name if name is not None else name_from(path.name))
    with contextlib.ExitStack() as stack:
        source, size = _open(stack, path)
        if how := compression(source.read(16)):
            folder = stack.enter_context(workplace())
            plain = folder / "disk"
            _decompress(source, how, plain, path.name, progress)
            source, size = _open(stack, plain)
        return _take(hypervisor, chosen, source, size, path.name, stack, progress)


def _take(
    hypervisor: Hypervisor,
    name: str,
    source: BinaryIO,
    size: int,
    shown: str,
    stack: contextlib.ExitStack,
    progress: Progress,
) -> image_store.Image:
    header = examine(source, size, shown)
    if header.format in ("qcow2", "iso"):
        kind: Literal["qcow2", "iso"] = "qcow2" if header.format == "qcow2" else "iso"
        return image_store.publish(hypervisor, name, source, size, header.virtual_size_bytes, kind, progress)
    converted = stack.enter_context(workplace()) / "disk.qcow2"
    _convert(source, header, converted, shown, progress)
    source, size = _open(stack, converted)
    again = examine(source, size, shown)
    return image_store.publish(hypervisor, name, source, size, again.virtual_size_bytes, "qcow2", progress)


def name_from(file_name: str) -> str:
    """An image name made of a file's: without its endings, and with '-' for what names may not have."""
    stem = re.sub(r"(\.(qcow2|img|raw|vmdk|vdi|vhdx?|iso))?(\.(gz|xz|bz2))?\Z", "", file_name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:63] or file_name


def content_name(path: Path, progress: Progress) -> str:
    """A name for the file's very content, so that the same file is brought in once and a changed one anew."""
    with contextlib.ExitStack() as stack:
        source, size = _open(stack, path)
        digest, done = hashlib.sha256(), 0
        while data := source.read(4 * MIB):
            digest.update(data)
            done += len(data)
            progress.amount(f"reading {path.name}", done, size)
    return f"{name_from(path.name)[:50].rstrip('-._')}-{digest.hexdigest()[:8]}"


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A private folder for what may be as large as a disk: /tmp is often in memory, so /var/tmp unless TMPDIR says."""
    folder = Path(tempfile.mkdtemp(prefix="kvmctl-image-", dir=os.environ.get("TMPDIR") or "/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open(stack: contextlib.ExitStack, path: Path) -> tuple[BinaryIO, int]:
    try:
        # A pipe would otherwise wait here for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {str(path)[:200]!a}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file's name"
        raise Refused(f"{str(path)[:200]!a} cannot be read: {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise Refused(f"{str(path)[:200]!a} is {kind}, not an image")
    return stack.enter_context(os.fdopen(descriptor, "rb")), status.st_size


def _decompressing(source: BinaryIO, how: str) -> io.BufferedIOBase:
    import bz2
    import gzip
    import lzma

    if how == "gzip":
        return gzip.GzipFile(fileobj=source)
    return lzma.LZMAFile(source) if how == "xz" else bz2.BZ2File(source)


def _decompress(source: BinaryIO, how: str, target: Path, shown: str, progress: Progress) -> None:
    """Undo gzip, xz or bzip2 into ``target``, as a sparse file, and stop at what fits neither disk nor reason."""
    import lzma

    total = os.fstat(source.fileno()).st_size
    room = shutil.disk_usage(target.parent).free
    source.seek(0)
    done = 0
    try:
        with _decompressing(source, how) as opened, target.open("xb") as out:
            while data := opened.read(MIB):
                done += len(data)
                if done > LARGEST_DECOMPRESSED:
                    raise Refused(f"{shown} decompresses to more than {human_size(LARGEST_DECOMPRESSED)}")
                if data.count(0) == len(data):
                    out.seek(len(data), os.SEEK_CUR)
                else:
                    room -= len(data)
                    if room < 0:
                        raise Refused(
                            f"{target.parent.parent} has no room for {shown} decompressed",
                            "name another folder with TMPDIR",
                        )
                    out.write(data)
                progress.amount(f"decompressing {shown}", source.tell(), total)
            out.truncate(done)
    except (EOFError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise KvmctlError(f"decompressing {shown}: {error.strerror}") from None
        raise Refused(f"{shown} is damaged or truncated: {error}", "copy or download it again") from None


def _convert(source: BinaryIO, header: Header, target: Path, shown: str, progress: Progress) -> None:
    """Convert to qcow2 with qemu-img, which reads the very file that was judged, in the format it was judged to be."""
    program = shutil.which("qemu-img")
    if program is None:
        raise Refused(
            f"{shown} is a {header.format} image, and qemu-img, which would convert it, is not installed here",
            "apt-get install qemu-utils (Fedora: dnf install qemu-img)",
        )
    progress.step(f"converting {shown} from {header.format} to qcow2")
    descriptor = source.fileno()
    command = [program, "convert", "-f", header.format, "-O", "qcow2", f"/proc/self/fd/{descriptor}", str(target)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(descriptor,),
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate()[1]
        except (KeyboardInterrupt, Interrupted):
            process.terminate()
            raise
    if process.returncode != 0:
        lines = said.strip().splitlines()
        raise Refused(f"{shown} could not be converted: {lines[-1][:300] if lines else 'qemu-img failed'}")
