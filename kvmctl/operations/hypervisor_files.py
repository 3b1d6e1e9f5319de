"""Looking at a file of the hypervisor's host through libvirt, which may be another machine than this one."""

import contextlib
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.errors import Conflict, NotFound, UsageProblem
from kvmctl.model import xml
from kvmctl.operations import pools
from kvmctl.preflight.volume_bytes import read_at

# How often, and how far apart in seconds, to look again where another kvmctl is looking too.
ATTEMPTS = 100
PAUSE = 0.05


class HypervisorFile(NamedTuple):
    """A file or block device as libvirt sees it. ``head`` are its first bytes, as many as were asked for."""

    path: str
    kind: Literal["file", "block"]
    format: str
    capacity_bytes: int | None
    backing: str | None
    head: bytes = b""


# Judges a volume further, as long as it can be looked at; raises what speaks against it.
Judge = Callable[[libvirt.virStorageVol, HypervisorFile], None]


def look(hypervisor: Hypervisor, path: str, head: int = 0, judge: Judge | None = None) -> HypervisorFile | None:
    """What is at the absolute ``path`` on the hypervisor's host, or None where nothing is.

    A path in no storage pool is looked at through a pool made for the moment of looking. Raises
    UsageProblem for a directory or anything else that holds no bytes of its own.
    """
    path = posixpath.normpath(path)
    if path.startswith("/dev/"):
        return _device(hypervisor, path)
    # Another kvmctl may be looking into the same directory, and its momentary pool be gone again any time.
    for _ in range(ATTEMPTS):
        try:
            with volume_at(hypervisor, path) as volume:
                if volume is None:
                    return None
                found = _described(hypervisor, volume, path, head)
                if judge is not None:
                    judge(volume, found)
                return found
        except NotFound:
            time.sleep(PAUSE)
    raise Conflict(f"{path[:200]!a} on the host of {hypervisor.uri} comes and goes", "try again")


def require(hypervisor: Hypervisor, path: str, what: str, head: int = 0, judge: Judge | None = None) -> HypervisorFile:
    """As look(), but NotFound where nothing is there."""
    found = look(hypervisor, path, head, judge)
    if found is None:
        raise NotFound(f"there is no {what} {path[:200]!a} on the host of {hypervisor.uri}")
    return found


def _device(hypervisor: Hypervisor, path: str) -> HypervisorFile | None:
    if not hypervisor.is_remote:
        try:
            mode = Path(path).stat().st_mode
        except OSError:
            return None
        if not stat.S_ISBLK(mode):
            raise UsageProblem(f"{path} is not a block device")
    # On another host only libvirt's own start can tell; what fails then is undone.
    return HypervisorFile(path, "block", "raw", None, None)


@contextlib.contextmanager
def beside(hypervisor: Hypervisor, path: str) -> Iterator[None]:
    """Within it the files of ``path``'s directory that are in no pool are looked at through one momentary pool.

    Not where it is one of devices, which look() does not look at through a pool either.
    """
    path = posixpath.normpath(path)
    with contextlib.ExitStack() as held:
        # Where another kvmctl is looking there just now, each file is looked at by itself.
        with contextlib.suppress(NotFound):
            if not path.startswith("/dev/"):
                held.enter_context(volume_at(hypervisor, path))
        yield


@contextlib.contextmanager
def volume_at(hypervisor: Hypervisor, path: str) -> Iterator[libvirt.virStorageVol | None]:
    conn = hypervisor.conn
    found = _by_path(hypervisor, path)
    if found is not None:
        yield found
        return
    parent, name = posixpath.split(path)
    with translated(hypervisor.uri):
        for pool in conn.listAllStoragePools(0):
            target = pools.target_path(pool)
            if target is not None and str(target) == parent:
                if not pool.isActive():
                    raise Conflict(
                        f"{path[:200]!a} is in the storage pool {pool.name()}, which is not active",
                        f"start it with 'virsh pool-start {pool.name()}'",
                    )
                # The file may have come since the pool was read.
                pools.refresh(pool)
                break
        else:
            pool = None
    if pool is not None:
        yield pools.find_volume(pool, name)
        return
    holder = xml.new("pool", type_="dir")
    xml.add(holder, "name", f"kvmctl-look-{os.urandom(6).hex()}")
    xml.add(xml.add(holder, "target"), "path", parent)
    try:
        momentary = conn.storagePoolCreateXML(xml.text(holder), 0)
    except libvirt.libvirtError as error:
        # Another client may be looking at the same moment, and one directory can be in one pool only.
        message = error.get_error_message() or ""
        if "source conflict" in message:
            raise NotFound(message) from error
        if "cannot open directory" not in message:
            raise explain(error, hypervisor.uri) from error
        yield None
        return
    try:
        yield pools.find_volume(momentary, name)
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            momentary.destroy()


def _by_path(hypervisor: Hypervisor, path: str) -> libvirt.virStorageVol | None:
    try:
        return hypervisor.conn.storageVolLookupByPath(path)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise explain(error, hypervisor.uri) from error


def _described(hypervisor: Hypervisor, volume: libvirt.virStorageVol, path: str, head: int) -> HypervisorFile:
    with translated(hypervisor.uri):
        tree = xml.parse(volume.XMLDesc(0), "storage volume", "volume")
        kind = tree.get("type", "file")
        format_ = tree.find("target/format")
        if kind not in ("file", "block") or (format_ is not None and format_.get("type") == "dir"):
            raise UsageProblem(f"{path[:200]!a} is a {'directory' if kind == 'dir' else kind}, not a file")
        capacity = tree.findtext("capacity")
        return HypervisorFile(
            path,
            "block" if kind == "block" else "file",
            format_.get("type", "raw") if format_ is not None else "raw",
            int(capacity) if capacity and capacity.isdigit() else None,
            tree.findtext("backingStore/path") or None,
            read_at(volume, 0, head) if head else b"",
        )


def absolute(hypervisor: Hypervisor, path: str) -> str:
    """``path`` as the hypervisor's host would have it: relative paths begin where the user stands, if that is here."""
    if path.startswith("/"):
        return path
    if hypervisor.is_remote:
        raise UsageProblem(
            f"{path[:200]!a} is a relative path, and {hypervisor.uri} is another machine", "give the path from /"
        )
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - expanduser() of Path raises for ~nobody
