"""A copy that shares its blocks with the original until either changes, where the file system can (XFS, btrfs).

libvirt has this for raw volumes only, so it is done here where this is the hypervisor's own machine and its files
are within reach. Everywhere else the caller copies through libvirt.
"""

import contextlib
import fcntl
import os
from pathlib import Path

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.model import qcow2, xml
from kvmctl.operations import pools

# ioctl_ficlone(2): _IOW(0x94, 9, int)
FICLONE = 0x40049409


def copy(hypervisor: Hypervisor, source: libvirt.virStorageVol, pool: libvirt.virStoragePool, path: str) -> bool:
    """Make ``path`` (a new file in ``pool``) a reflink of ``source``; False where that cannot be, with nothing left.

    Never of an image that stands on another one, for the copy is to stand alone, nor of one that holds snapshots,
    which nobody would know of in the copy.
    """
    if hypervisor.is_remote:
        return False
    tree = xml.parse(source.XMLDesc(0), "storage volume")
    if tree.findtext("backingStore/path") or tree.get("type", "file") != "file":
        return False
    original, target = Path(source.path()), Path(path)
    try:
        with original.open("rb") as reader:
            header = qcow2.parse_header(reader.read(qcow2.HEADER_SIZE))
            if header is not None and header.snapshots:
                return False
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        # Not within this user's reach, or another host's file after all.
        return False
    try:
        with original.open("rb") as reader:
            fcntl.ioctl(descriptor, FICLONE, reader.fileno())
    except OSError:
        # EOPNOTSUPP, EXDEV, EINVAL: this file system, or these two, cannot.
        with contextlib.suppress(OSError):
            target.unlink()
        return False
    finally:
        os.close(descriptor)
    pools.refresh(pool)
    return True
