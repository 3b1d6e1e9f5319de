"""UEFI variables: a file of the hypervisor's that libvirt puts into no snapshot, and gives to no copy."""

import contextlib
import posixpath
import re
import secrets
from collections.abc import Iterator

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Refused
from kvmctl.model import xml
from kvmctl.operations import memory_file, pools
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import read_at
from kvmctl.preflight.snapshots import has_nvram

# libvirt's firmware variables are 64 KiB to 4 MiB (edk2's FD images); anything far larger is not one.
LARGEST = 64 * 1024 * 1024
# The pflash unit with the variables, in the command line that libvirt would start QEMU with.
_STORAGE = re.compile(r'\{[^{}]*"filename":"([^"]+)"[^{}]*"node-name":"libvirt-pflash1-storage"[^{}]*\}')


def path_of(hypervisor: Hypervisor, domain: xml.Element) -> str | None:
    """Where a guest's variables are, or would be from its first start on; None for one without UEFI.

    Where libvirt chooses the firmware itself, the saved definition does not say so. Only the command line does
    that it would start QEMU with.
    """
    told = domain.findtext("os/nvram")
    if told or not has_nvram(domain):
        return told or None
    with translated(hypervisor.uri):
        command = hypervisor.conn.domainXMLToNative("qemu-argv", xml.raw(domain), 0)
    found = _STORAGE.search(command)
    if found is None:
        raise Refused(
            f"where the UEFI variables of {domain.findtext('name')} are cannot be seen",
            "start it once: its running definition says so",
        )
    return found[1]


def read(hypervisor: Hypervisor, path: str) -> bytes | None:
    """The variables in the file at ``path``; None where there are none yet, for the guest never ran."""
    folder, name = posixpath.split(path)
    with _pool_at(hypervisor, folder) as pool:
        volume = pools.find_volume(pool, name) if pool is not None else None
        if volume is None:
            return None
        with translated(hypervisor.uri):
            size = volume.info()[1]
        if size > LARGEST:
            raise Refused(f"the UEFI variables in {path} have {size} bytes, which no firmware has")
        return read_at(volume, 0, size)


def write(hypervisor: Hypervisor, path: str, data: bytes) -> None:
    """Make the variables in the file at ``path`` these."""
    folder, name = posixpath.split(path)
    with _pool_at(hypervisor, folder) as pool:
        if pool is None:
            raise Refused(f"there is no directory {folder} for the UEFI variables")
        volume = pools.find_volume(pool, name)
        if volume is not None:
            memory_file.write_head(volume, data)
        else:
            pools.upload(pool, name, data, len(data))


def copy(hypervisor: Hypervisor, path: str, name: str, undo: Undo, data: bytes | None = None) -> str | None:
    """Copy the variables for the guest ``name``, to where libvirt would put its own, and return the path.

    ``data`` is what they were at another moment than now. None where the source has none yet: the copy then begins
    with libvirt's template too.
    """
    data = data if data is not None else read(hypervisor, path)
    if data is None:
        return None
    folder, file_name = posixpath.split(path)
    wanted = f"{name}_VARS{posixpath.splitext(file_name)[1] or '.fd'}"
    write(hypervisor, posixpath.join(folder, wanted), data)
    made = posixpath.join(folder, wanted)
    undo.add(f"delete {wanted}", lambda: remove(hypervisor, made))
    return made


def remove(hypervisor: Hypervisor, path: str) -> None:
    """Delete the variables in the file at ``path``, if there are any: libvirt makes new ones at the next start."""
    folder, name = posixpath.split(path)
    with _pool_at(hypervisor, folder) as pool:
        volume = pools.find_volume(pool, name) if pool is not None else None
        if volume is not None:
            volume.delete(0)


@contextlib.contextmanager
def _pool_at(hypervisor: Hypervisor, folder: str) -> Iterator[libvirt.virStoragePool | None]:
    """A storage pool of the directory: one that is there, or one for this moment. None where there is no directory."""
    with translated(hypervisor.uri):
        for pool in hypervisor.conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            target = pools.target_path(pool)
            if target is not None and str(target) == folder:
                pools.refresh(pool)
                yield pool
                return
        holder = xml.new("pool", type_="dir")
        xml.add(holder, "name", f"kvmctl-{secrets.token_hex(6)}")
        xml.add(xml.add(holder, "target"), "path", folder)
        try:
            momentary = hypervisor.conn.storagePoolCreateXML(xml.text(holder), 0)
        except libvirt.libvirtError as error:
            if "cannot open directory" not in (error.get_error_message() or ""):
                raise
            yield None
            return
        try:
            yield momentary
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                momentary.destroy()
