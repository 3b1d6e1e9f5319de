"""Holding a new VM's name while its parts are made, so that nothing of a killed creation is ever lost track of.

A placeholder domain is defined before the first volume: libvirt lets one caller have a name, and the
placeholder's metadata lists what is about to be made and which process is making it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict
from kvmctl.model import xml
from kvmctl.model.domain import Hardware, placeholder
from kvmctl.model.metadata import Creator, Metadata, OwnedVolume
from kvmctl.operations import metadata, pools


def this_process() -> Creator:
    """This process, in words that stay true of it alone: its machine, that machine's boot, its pid and start."""
    pid = os.getpid()
    started = _started(pid)
    return Creator(
        _read("/etc/machine-id") or os.uname().nodename,
        _read("/proc/sys/kernel/random/boot_id"),
        pid,
        started if started is not None else 0,
    )


def is_dead(creator: Creator) -> bool | None:
    """Whether the process has ended; None where it ran on another machine and cannot be seen from here."""
    here = this_process()
    if creator.machine != here.machine:
        return None
    return creator.boot != here.boot or _started(creator.pid) != creator.started


def check_free(hypervisor: Hypervisor, name: str) -> libvirt.virDomain | None:
    """Raise Conflict where ``name`` is taken; return the leftover of a killed creation where that is all there is."""
    domain = hypervisor.find_or_none(name)
    if domain is None:
        return None
    with translated(hypervisor.uri):
        creator = metadata.read(domain).creator
        if creator is None:
            state = "running" if domain.isActive() else "shut off"
            raise Conflict(
                f"there is a VM named {name} already, {state}", f"choose another name, or 'kvmctl delete {name}'"
            )
        dead = is_dead(creator)
        holds_data = domain.isActive() or xml.parse(domain.XMLDesc(0), "domain").find("devices/disk") is not None
    if dead and not holds_data:
        return domain
    raise _unfinished(name, creator)


def check_finished(domain: libvirt.virDomain) -> None:
    """Raise Conflict where ``domain`` is not whole yet: its maker is at it, or was killed."""
    with translated():
        creator = metadata.read(domain).creator
        if creator is not None:
            raise _unfinished(domain.name(), creator)


def _unfinished(name: str, creator: Creator) -> Conflict:
    dead = is_dead(creator)
    if dead:
        return Conflict(
            f"{name} is a copy of a running guest that a killed kvmctl did not finish, its network cut",
            f"'kvmctl delete {name}' removes it",
        )
    if dead is None:
        return Conflict(
            f"{name} is being created from another machine, or was left half made by it",
            f"if nobody is at it, 'kvmctl delete {name}' removes what there is",
        )
    return Conflict(f"{name} is being created by another kvmctl, process {creator.pid}")


def take(
    hypervisor: Hypervisor,
    name: str,
    uuid: str,
    hardware: Hardware,
    volumes: Sequence[OwnedVolume],
    leftover: libvirt.virDomain | None = None,
) -> libvirt.virDomain:
    """Define the placeholder for ``name``; of several who try, one gets it and the others Conflict.

    ``leftover`` (of check_free) goes first, with the volumes it had listed.
    """
    old: tuple[OwnedVolume, ...] = ()
    if leftover is not None:
        with translated(hypervisor.uri):
            old = metadata.read(leftover).volumes
            try:
                leftover.undefine()
            except libvirt.libvirtError as error:
                if is_missing(error):
                    raise Conflict(f"another kvmctl is creating {name}") from error
                raise
    # The old ones are listed until they are gone: kvmctl may be killed here as well.
    content = Metadata(creator=this_process(), volumes=(*old, *(v for v in volumes if v not in old)))
    with translated(hypervisor.uri):
        domain = hypervisor.conn.defineXML(xml.text(placeholder(name, uuid, hardware, content)))
    for volume in old:
        pools.delete_volume(hypervisor, volume.pool, volume.name)
    if old:
        metadata.write(domain, content._replace(volumes=tuple(volumes)))
    return domain


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _started(pid: int) -> int | None:
    """When the process began, in clock ticks since boot (field 22 of proc(5)'s stat), None where it is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    # A zombie has ended, though its entry is still there.
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else None
