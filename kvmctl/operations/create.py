"""Making a new VM: all of it, or nothing."""

import time
from pathlib import Path
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import KvmctlError, NotFound
from kvmctl.model import state, xml
from kvmctl.operations import claim, create_network, disk_secret, limits, pools, removal
from kvmctl.operations.create_parts import VolumePlan
from kvmctl.operations.create_plan import Plan
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo


def run(
    hypervisor: Hypervisor,
    plan: Plan,
    progress: Progress,
    wait: str | None = None,
    timeout: float | None = None,
    keep: bool = False,
    full: bool = True,
) -> dict[str, Any]:
    """Make the VM of ``plan``; with ``wait``, until that condition holds in it.

    Whatever fails, or Ctrl-C, takes back every step, so that no volume, seed or definition is left; with
    ``keep`` a VM that runs but did not get as far as ``wait`` in time stays. Returns the VM as ``create -o json``
    prints it; without ``full`` only ``{"name", "uuid", "state", "vcpus", "memory_bytes", "accel"}`` of that.
    """
    began = time.monotonic()
    with Undo() as undo:
        progress.step(f"defining {plan.name}")
        with undo.step():
            domain = claim.take(
                hypervisor, plan.name, plan.uuid, plan.hardware, [v.volume for v in plan.volumes], plan.leftover
            )
            undo.add(f"undefine {plan.name}", lambda: removal.undefine(domain))
        for volume in plan.volumes:
            _make(hypervisor, volume, progress, undo)
        with translated(hypervisor.uri):
            domain = hypervisor.conn.defineXML(xml.text(plan.domain))
            if plan.autostart:
                domain.setAutostart(1)
        for name in plan.start_networks:
            _start_network(hypervisor, name, undo)
        create_network.reserve(hypervisor, plan.name, plan.metadata.reservations, undo)
        if plan.start:
            progress.step(f"starting {plan.name}")
            with undo.step(), translated(hypervisor.uri):
                domain.create()
                undo.add(f"power off {plan.name}", lambda: removal.power_off(domain))
            create_network.publish(hypervisor, domain, plan.metadata.forwards, undo)
            with translated(hypervisor.uri):
                for text in limits.not_in_force(domain, plan.domain):
                    progress.warn(text)
        if not keep and wait is not None:
            _wait(hypervisor, domain, wait, timeout, progress, keep=False)
        undo.keep()
    if keep and wait is not None:
        _wait(hypervisor, domain, wait, timeout, progress, keep=True)
    seconds = time.monotonic() - began
    return _result(hypervisor, domain, plan, seconds) if full else _summary(hypervisor, domain, plan)


def _wait(
    hypervisor: Hypervisor,
    domain: libvirt.virDomain,
    condition: str,
    timeout: float | None,
    progress: Progress,
    *,
    keep: bool,
) -> None:
    name = domain.name()
    # Imported late, like much else on this way: a creation that does not wait would pay for it.
    from kvmctl.operations.waiting import wait_for

    try:
        wait_for(hypervisor, domain, condition, timeout, progress)
    except KvmctlError as error:
        if not keep:
            # What is said there of a VM that others may look after is not true of one that is taken back.
            error.hint = f"so {name} was taken back, with all that was made for it; --keep would leave it"
        raise


def _make(hypervisor: Hypervisor, plan: VolumePlan, progress: Progress, undo: Undo) -> None:
    owned = plan.volume
    pool = pools.ensure_pool(hypervisor, owned.pool)
    if plan.upload is not None:
        source = plan.upload if isinstance(plan.upload, bytes) else Path(plan.upload)
        pools.upload(
            pool,
            owned.name,
            source,
            plan.capacity_bytes,
            mode=plan.mode,
            progress=progress,
            text=f"uploading {owned.name}",
            undo=undo,
        )
        return
    progress.step(f"making {owned.name}")
    element = _volume_element(plan)
    if plan.secret is not None:
        with undo.step():
            disk_secret.keep(hypervisor, owned.path or owned.name, plan.secret.passphrase, undo, plan.secret.uuid)
        target = element.find("target")
        assert target is not None
        disk_secret.encrypt(target, plan.secret.uuid)
    with undo.step():
        pools.create_volume(pool, element)
        undo.add(f"delete volume {owned.name}", lambda: pools.delete_volume(hypervisor, owned.pool, owned.name))


def _volume_element(plan: VolumePlan) -> xml.Element:
    volume = xml.new("volume")
    xml.add(volume, "name", plan.volume.name)
    xml.add(volume, "capacity", plan.capacity_bytes, unit="bytes")
    xml.add(volume, "allocation", 0, unit="bytes")
    target = xml.add(volume, "target")
    xml.add(target, "format", type_=plan.format)
    xml.add(xml.add(target, "permissions"), "mode", plan.mode)
    if plan.format == "qcow2":
        xml.add(target, "compat", "1.1")
    if plan.backing is not None:
        backing = xml.add(volume, "backingStore")
        xml.add(backing, "path", plan.backing.path)
        xml.add(backing, "format", type_=plan.backing.format)
    return volume


def _start_network(hypervisor: Hypervisor, name: str, undo: Undo) -> None:
    with undo.step(), translated(hypervisor.uri):
        try:
            network = hypervisor.conn.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if is_missing(error):
                raise NotFound(f"the network {name} has gone meanwhile") from error
            raise
        try:
            network.create()
        except libvirt.libvirtError:
            if not network.isActive():
                raise
            return
        undo.add(f"stop the network {name}", network.destroy)


def _result(hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan, seconds: float) -> dict[str, Any]:
    from kvmctl.operations.info import info

    with translated(hypervisor.uri):
        found = info(hypervisor, domain.UUIDString(), sample=False)
    found["changed"] = True
    found["image"] = plan.metadata.image
    found["warnings"] = list(plan.warnings)
    found["seconds"] = round(seconds, 3)
    return found


def _summary(hypervisor: Hypervisor, domain: libvirt.virDomain, plan: Plan) -> dict[str, Any]:
    """What a sentence needs. To know all of it, libvirt asks a QEMU that has only begun for its disks and memory."""
    with translated(hypervisor.uri):
        number, _, memory_kib, vcpus, _ = domain.info()
    return {
        "name": plan.name,
        "uuid": plan.uuid,
        "state": state.word(number),
        "vcpus": vcpus,
        "memory_bytes": memory_kib * 1024,
        "accel": plan.accel.accel,
    }
