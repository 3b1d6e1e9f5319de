"""Cleaning up after a command that was killed while it moved a VM's disks (kill -9, a power failure).

Such a command first writes down in the VM's metadata what it is about to make. If it never came to take that note
away, and its process has ended, the next command that is about to change the VM tidies up: what nothing needs goes,
what is in use stays.
"""

import contextlib
import time

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict
from kvmctl.model import work_record, xml
from kvmctl.model.work_record import WorkRecord
from kvmctl.operations import metadata

# libvirt itself lets a call wait this long for another one (QEMU_JOB_WAIT_TIME in its qemu driver).
BUSY_SECONDS = 30.0


def done(domain: libvirt.virDomain) -> None:
    """Take the note away: everything is where it belongs."""
    now = metadata.read(domain)
    if work_record.read(now) is not None:
        metadata.write(domain, work_record.put(now, None))


def finish(hypervisor: Hypervisor, vm: str) -> list[str]:
    """Tidy up what a killed command left of its work on ``vm``; returns the paths of what was deleted.

    Raises Conflict while a kvmctl, or libvirt for one that was killed, is still at work on it.
    """
    domain = hypervisor.find(vm)
    _wait_until_idle(hypervisor, domain)
    with translated(hypervisor.uri):
        record = work_record.read(metadata.read(domain))
    if record is None:
        return []
    from kvmctl.operations import claim

    dead = claim.is_dead(record.process)
    if dead is None:
        # It ran on another machine, and may still do: what it made stays where it is.
        return []
    if not dead:
        raise Conflict(
            f"another kvmctl, process {record.process.pid}, is at work on the disks of {domain.name()}",
            "try again when it is done",
        )
    return _tidy(hypervisor, domain, record)


def _wait_until_idle(hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
    """What libvirt has begun for a killed kvmctl it carries on to its end; only then is what it says of the VM true."""
    until = time.monotonic() + BUSY_SECONDS
    with translated(hypervisor.uri):
        while domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            if time.monotonic() > until:
                raise Conflict(
                    f"libvirt is at work on {domain.name()}: it saves, restores or moves it",
                    f"try again when it is done; 'virsh domjobinfo {domain.name()}' shows how far it is",
                )
            time.sleep(0.1)


def _tidy(hypervisor: Hypervisor, domain: libvirt.virDomain, record: WorkRecord) -> list[str]:
    from kvmctl.operations import claim, snapshots_external

    with translated(hypervisor.uri):
        # This waits until libvirt is in the middle of nothing, and keeps other kvmctls out.
        mine = work_record.begin(metadata.read(domain), claim.this_process(), record.paths)
        metadata.write(domain, mine)
        _wait_for_volumes(hypervisor, domain, record)
        _end_merges(domain, record)
        before = {volume.path for volume in metadata.read(domain).volumes}
        if domain.isActive():
            snapshots_external.merge(hypervisor, domain, set(record.paths))
    snapshots_external.sweep(hypervisor, domain, record.paths)
    with translated(hypervisor.uri):
        _unfreeze(hypervisor, domain, record)
        done(domain)
        after = {volume.path for volume in metadata.read(domain).volumes}
    return sorted(path for path in before - after if path)


def _wait_for_volumes(hypervisor: Hypervisor, domain: libvirt.virDomain, record: WorkRecord) -> None:
    """A volume that libvirt is still making for the killed one is in no list before it is there."""
    from kvmctl.operations import pools

    until = time.monotonic() + BUSY_SECONDS
    for name in {volume.pool for volume in metadata.read(domain).volumes if volume.path in record.paths}:
        pool = pools.find_pool(hypervisor, name)
        while pool is not None:
            try:
                pool.refresh(0)
                break
            except libvirt.libvirtError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _end_merges(domain: libvirt.virDomain, record: WorkRecord) -> None:
    """A merge that nobody waited for goes on for ever: the guest stays on its overlay, and it can be begun anew."""
    if not domain.isActive():
        return
    for disk in xml.parse(domain.XMLDesc(0), "domain").iterfind("devices/disk[mirror]"):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None or source.get("file") not in record.paths:
            continue
        with contextlib.suppress(libvirt.libvirtError):
            domain.blockJobAbort(target.get("dev", ""), 0)


def _unfreeze(hypervisor: Hypervisor, domain: libvirt.virDomain, record: WorkRecord) -> None:
    """What was noted as a base, but never was stood upon, is the guest's disk as before."""
    from kvmctl.operations import snapshots
    from kvmctl.preflight import dependents

    written = snapshots.written_files(domain)
    free = {path for path in record.paths if path in written and not dependents.volumes_on(hypervisor, [path])}
    now = metadata.read(domain)
    volumes = tuple(v._replace(role="disk") if v.role == "base" and v.path in free else v for v in now.volumes)
    if volumes != now.volumes:
        metadata.write(domain, now._replace(volumes=volumes))
