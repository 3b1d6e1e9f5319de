"""Storage pools and volumes: where disks, seeds and images live, on whichever host the hypervisor is.

Nothing here opens a path of the hypervisor's: volumes are made by libvirt and filled through streams, so
that all of it works over a remote connection too.
"""

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.errors import Conflict, Interrupted, KvmctlError, NotFound
from kvmctl.model import xml
from kvmctl.model.units import MIB, human_size
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo

DEFAULT = "default"
IMAGES = "kvmctl-images"

# Where libvirt's own packages and virt-install put the pool "default" of the system's libvirtd.
SYSTEM_IMAGES = PurePosixPath("/var/lib/libvirt/images")

# virStreamSend takes no more at once: VIR_NET_MESSAGE_PAYLOAD_MAX less its header, and libvirt-python
# splits nothing. 256 KiB is what virsh's own transfers use (VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX).
CHUNK = 256 * 1024 - 24

# How often an encrypted volume is tried: see create_volume().
MEASUREMENTS = 10

# How long a volume that is being made is waited for before it is deleted, in seconds.
ALLOCATION_SECONDS = 30.0

# A qcow2 volume is made this large before its real content replaces it: see upload().
PLACEHOLDER = MIB
# Holes of a file smaller than this are sent as zeros: each piece between two holes is a stream of its own.
SMALLEST_HOLE = MIB
# Whether there is room is asked for uploads of this size and more, in bytes.
CHECKED_FROM = 16 * MIB


def default_pool(hypervisor: Hypervisor) -> libvirt.virStoragePool:
    """The pool for the guests' disks: ``default``, made as virt-install makes it where there is none."""
    return ensure_pool(hypervisor, DEFAULT)


def image_pool(hypervisor: Hypervisor) -> libvirt.virStoragePool:
    """The pool for the images that guests are made from: ``kvmctl-images``, made where there is none."""
    return ensure_pool(hypervisor, IMAGES)


def ensure_pool(hypervisor: Hypervisor, name: str) -> libvirt.virStoragePool:
    """The pool ``name``, active. The two that kvmctl knows a place for are defined where they are missing.

    Several kvmctl may do this at the same time: whoever comes second finds what the first one made.
    Raises NotFound for another pool that does not exist.
    """
    pool = find_pool(hypervisor, name)
    if pool is None:
        if name not in (DEFAULT, IMAGES):
            raise NotFound(
                f"no storage pool named {name[:100]!a} on {hypervisor.uri}", "'virsh pool-list --all' shows them"
            )
        pool = _define(hypervisor, name)
    _activate(hypervisor, pool)
    return pool


class Place(NamedTuple):
    """A pool that is there or will be: its name, its directory on its host, libvirt's word for its kind.

    ``pool`` is None where it is yet to be made or started, so that nobody can look into it.
    """

    name: str
    path: PurePosixPath | None
    kind: str
    pool: libvirt.virStoragePool | None


def place(hypervisor: Hypervisor, name: str) -> Place:
    """Where ensure_pool() will find or make the pool ``name``; nothing is changed. Raises NotFound as it does."""
    pool = find_pool(hypervisor, name)
    if pool is None and name in (DEFAULT, IMAGES):
        path = _place_for(hypervisor, name)
        pool = _pool_at(hypervisor, path)
        if pool is None:
            return Place(name, path, "dir", None)
    pool = pool or ensure_pool(hypervisor, name)
    with translated(hypervisor.uri):
        kind = xml.parse(pool.XMLDesc(0), "storage pool", "pool").get("type", "dir")
        return Place(pool.name(), target_path(pool), kind, pool if pool.isActive() else None)


def find_pool(hypervisor: Hypervisor, name: str) -> libvirt.virStoragePool | None:
    """The pool with this name, active or not, or None."""
    try:
        return hypervisor.conn.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise explain(error, hypervisor.uri) from error


def target_path(pool: libvirt.virStoragePool) -> PurePosixPath | None:
    """The directory (or device directory) on the hypervisor's host where the pool's volumes are."""
    path = xml.parse(pool.XMLDesc(0), "storage pool", "pool").findtext("target/path")
    return PurePosixPath(path) if path else None


def _define(hypervisor: Hypervisor, name: str) -> libvirt.virStoragePool:
    path = _place_for(hypervisor, name)
    other = _pool_at(hypervisor, path)
    if other is not None:
        return other
    pool = xml.new("pool", type_="dir")
    xml.add(pool, "name", name)
    xml.add(xml.add(pool, "target"), "path", str(path))
    try:
        made = hypervisor.conn.storagePoolDefineXML(xml.text(pool), 0)
    except libvirt.libvirtError as error:
        found = find_pool(hypervisor, name)
        if found is None:
            raise explain(error, hypervisor.uri) from error
        return found
    with contextlib.suppress(libvirt.libvirtError):
        # Without autostart it works as well; it is only looked for again each time.
        made.setAutostart(1)
    return made


def _pool_at(hypervisor: Hypervisor, path: PurePosixPath) -> libvirt.virStoragePool | None:
    """The pool over ``path``: libvirt allows one a directory, and virt-manager may have named it otherwise."""
    with translated(hypervisor.uri):
        return next((p for p in hypervisor.conn.listAllStoragePools(0) if target_path(p) == path), None)


def _activate(hypervisor: Hypervisor, pool: libvirt.virStoragePool) -> None:
    """Start the pool, making its directory where that is missing."""
    with translated(hypervisor.uri):
        if pool.isActive():
            return
        for attempt in (pool.build, pool.create):
            try:
                attempt(0)
            except libvirt.libvirtError:
                if pool.isActive():
                    return
                if attempt == pool.create:
                    raise
                # build() of what exists already may fail, and what it could not make create() will miss.


def _place_for(hypervisor: Hypervisor, name: str) -> PurePosixPath:
    """The directory for one of the pools that kvmctl makes: images next to the pool ``default``."""
    if name == DEFAULT:
        return _default_place(hypervisor)
    default = find_pool(hypervisor, DEFAULT)
    if default is not None:
        with translated(hypervisor.uri):
            path = target_path(default)
            kind = xml.parse(default.XMLDesc(0), "storage pool", "pool").get("type")
        # Beside a mounted or device-backed pool may be no room at all: only a plain directory has neighbours.
        if path is not None and kind == "dir":
            return path.with_name(IMAGES)
    return _default_place(hypervisor).with_name(IMAGES)


def _default_place(hypervisor: Hypervisor) -> PurePosixPath:
    if not hypervisor.is_session:
        return SYSTEM_IMAGES
    if hypervisor.is_remote:
        raise KvmctlError(
            f"{hypervisor.uri} has no storage pool 'default', and where its user's files are cannot be seen from here",
            f"make it with 'virsh -c {hypervisor.uri} pool-define-as default dir --target DIRECTORY'",
        )
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return PurePosixPath(data) / "libvirt" / "images"


def find_volume(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    """The volume ``name`` of ``pool``, or None."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise explain(error) from error


def refresh(pool: libvirt.virStoragePool) -> None:
    """Let libvirt look again at what is in the pool; while it is making a volume there it would not, and need not."""
    try:
        pool.refresh(0)
    except libvirt.libvirtError as error:
        if "asynchronous jobs running" not in (error.get_error_message() or ""):
            raise explain(error) from error


def upload(
    pool: libvirt.virStoragePool,
    name: str,
    source: BinaryIO | bytes | Path,
    size: int,
    *,
    format: Literal["raw", "qcow2"] = "raw",
    mode: Literal["0600", "0644"] = "0600",
    progress: Progress | None = None,
    text: str | None = None,
    undo: Undo | None = None,
) -> libvirt.virStorageVol:
    """Make the volume ``name`` in ``pool`` and send it the ``size`` bytes of ``source`` through a stream.

    Holes of a file stay holes. ``text`` names the work in the progress. If anything fails, or Ctrl-C
    arrives, no volume is left. A qcow2 gets its header last: if kvmctl is killed in between, the volume
    is an empty one of PLACEHOLDER bytes, never half an image.
    With ``undo`` the volume's removal is added to the caller's own steps, for a failure that comes later.
    Raises Conflict where a volume of that name is there already, KvmctlError where ``source`` is shorter.
    """
    progress = progress or Progress()
    _check_space(pool, name, source, size)
    with contextlib.ExitStack() as stack:
        own = undo if undo is not None else stack.enter_context(Undo())
        reader = _reader(stack, source)
        with own.step():
            volume = _create(pool, name, size, format, mode)
            own.add(f"delete volume {name}", lambda: volume.delete(0))
        report = _Report(progress, text or f"uploading {name}", size)
        head = min(size, PLACEHOLDER) if format == "qcow2" else 0
        # One stream for each piece of data. libvirt's sparse streams, to which holes are told, get stuck: a libvirtd
        # which finds a hole as the first of what has come (10.0 does, 11.3 still: daemonStreamHandleWrite) counts it as
        # unanswered for ever, and after five of those it reads nothing more from this connection.
        done = head
        for offset, stop in extents(reader, head, size) if _is_file(volume) else [(head, size)]:
            report.add(offset - done)
            _send(pool, volume, reader, offset, stop, report)
            done = stop
        # What the empty volume already holds below PLACEHOLDER must be overwritten, not skipped over.
        if head:
            _send(pool, volume, reader, 0, head, report)
        if undo is None:
            own.keep()
        return volume


def _is_file(volume: libvirt.virStorageVol) -> bool:
    """Whether what is not written to a new volume reads as zeros: a logical volume may hold anything."""
    with translated():
        return bool(volume.info()[0] == libvirt.VIR_STORAGE_VOL_FILE)


def create_volume(pool: libvirt.virStoragePool, volume: xml.Element, flags: int = 0) -> libvirt.virStorageVol:
    """Make a volume from its XML tree. Raises Conflict where the name or its file is there already."""
    name = volume.findtext("name") or ""
    for attempt in range(MEASUREMENTS):
        try:
            return pool.createXML(xml.text(volume), flags)
        except libvirt.libvirtError as error:
            # qemu-img measures how dear an encrypted disk's key may be, and on a busy host finds no figure.
            if "accurate CPU usage" not in (error.get_error_message() or "") or attempt == MEASUREMENTS - 1:
                raise _not_made(pool, name, error) from error
    raise AssertionError("unreachable")


def _not_made(pool: libvirt.virStoragePool, name: str, error: libvirt.libvirtError) -> KvmctlError:
    found = explain(error)
    if isinstance(found, Conflict):
        return Conflict(f"the storage pool {pool.name()} already has a volume {name}", found.hint)
    return found


def delete_volume(hypervisor: Hypervisor, pool_name: str, name: str) -> bool:
    """Delete a volume; False where it, or its pool, is not there (any more)."""
    pool = find_pool(hypervisor, pool_name)
    if pool is None:
        return False
    _activate(hypervisor, pool)
    until = time.monotonic() + ALLOCATION_SECONDS
    while True:
        volume = find_volume(pool, name)
        if volume is None:
            # The pool has not seen yet what libvirt wrote there beside it: a guest's memory.
            refresh(pool)
            volume = find_volume(pool, name)
        if volume is None:
            return False
        try:
            volume.delete(0)
        except libvirt.libvirtError as error:
            if is_missing(error) or find_volume(pool, name) is None:
                return False
            # libvirt makes it to the end for a kvmctl that was killed.
            if "being allocated" not in (error.get_error_message() or "") or time.monotonic() > until:
                raise explain(error, hypervisor.uri) from error
            time.sleep(0.1)
        else:
            return True


def _create(pool: libvirt.virStoragePool, name: str, size: int, format_: str, mode: str) -> libvirt.virStorageVol:
    volume = xml.new("volume", type_="file")
    xml.add(volume, "name", name)
    xml.add(volume, "capacity", PLACEHOLDER if format_ == "qcow2" else size, unit="bytes")
    xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_=format_)
    xml.add(xml.add(target, "permissions"), "mode", mode)
    return create_volume(pool, volume)


def _check_space(pool: libvirt.virStoragePool, name: str, source: BinaryIO | bytes | Path, size: int) -> None:
    """Raise KvmctlError where a file is clearly larger than what the pool has left.

    A libvirtd (11.3) whose disk gets full while a stream comes in may not say so, but die, or hang for good.
    """
    if not isinstance(source, Path) or size < CHECKED_FROM:
        return
    # Holes stay holes, so what counts is what the file itself takes.
    needed = min(size, source.stat().st_blocks * 512)
    with translated():
        # What libvirt knows is of its last look, and the disk may have got full, or emptier, since.
        with contextlib.suppress(libvirt.libvirtError):
            pool.refresh(0)
        left = pool.info()[3]
    if left < needed:
        raise KvmctlError(
            f"no space left for {name} in the storage pool {pool.name()}: it needs {human_size(needed)}, "
            f"and {human_size(left)} are free",
            "make room there, or name another pool",
        )


def _reader(stack: contextlib.ExitStack, source: BinaryIO | bytes | Path) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Path):
        return stack.enter_context(source.open("rb"))
    return source


class _Report:
    """Counts what was sent over both parts of an upload."""

    def __init__(self, progress: Progress, text: str, total: int) -> None:
        self.progress, self.text, self.total, self.done = progress, text, total, 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress.amount(self.text, self.done, self.total)


def _send(
    pool: libvirt.virStoragePool, volume: libvirt.virStorageVol, reader: BinaryIO, start: int, end: int, report: _Report
) -> None:
    """Send bytes ``start`` to ``end`` of ``reader`` to the same place in ``volume``."""
    with translated():
        stream = pool.connect().newStream(0)
        volume.upload(stream, start, end - start, 0)
        try:
            _send_data(stream.send, reader, start, end - start, report)
            stream.finish()
        except BaseException as error:
            with contextlib.suppress(libvirt.libvirtError):
                stream.abort()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("interrupted") from error
            raise


def _send_data(send: Callable[[bytes], int], reader: BinaryIO, offset: int, length: int, report: _Report) -> None:
    reader.seek(offset)
    while length:
        data = reader.read(min(CHUNK, length))
        if not data:
            raise KvmctlError(f"the source ended {length} bytes early", "was it changed meanwhile? try again")
        length -= len(data)
        while data:
            sent = send(data)
            report.add(sent)
            data = data[sent:]


def extents(reader: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where there is data from ``start`` to ``end`` of ``reader``, as (offset, end); all of it where no holes are seen.

    Holes smaller than SMALLEST_HOLE count as data, and so do the last bytes: they make the file as long as it is.
    """
    if start >= end:
        return
    try:
        descriptor = reader.fileno()
    except io.UnsupportedOperation:
        yield start, end
        return
    pending: tuple[int, int] | None = None
    for offset, stop in [*_pieces(descriptor, start, end), (max(start, end - 1), end)]:
        if pending is not None and offset - pending[1] < SMALLEST_HOLE:
            pending = (pending[0], max(stop, pending[1]))
            continue
        if pending is not None:
            yield pending
        pending = (offset, stop)
    if pending is not None:
        yield pending


def _pieces(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                # A filesystem, or a pipe, that knows of no holes.
                yield start, end
            return
        if data >= end:
            return
        start = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        yield data, start
