"""Looking at a guest's snapshots: list, show and the tree."""

from collections.abc import Iterable
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import NotFound
from kvmctl.model import slot_record, xml
from kvmctl.model import snapshot as model
from kvmctl.model.metadata import Metadata, OwnedVolume, from_domain
from kvmctl.model.snapshot import Snapshot
from kvmctl.preflight import snapshots as preflight

# virDomainState to the words that <state> of a snapshot uses too.
STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "unknown",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}


def state_of(domain: libvirt.virDomain) -> str:
    """The guest's state now, in the words that a snapshot's state uses."""
    return STATES.get(domain.state(0)[0], "unknown")


def written_files(domain: libvirt.virDomain) -> set[str]:
    """The files that the guest writes to now."""
    with translated():
        return {d.path for d in preflight.disks_of(xml.parse(domain.XMLDesc(0), "domain")) if d.written and d.path}


def load(domain: libvirt.virDomain) -> list[Snapshot]:
    """All snapshots of ``domain``, parents before their children."""
    with translated():
        current = domain.snapshotCurrent(0).getName() if domain.hasCurrentSnapshot(0) else None
        return model.related(model.from_xml(snapshot.getXMLDesc(0), current) for snapshot in domain.listAllSnapshots(0))


def find(domain: libvirt.virDomain, name: str) -> libvirt.virDomainSnapshot:
    """libvirt's snapshot of this name; ``before-revert`` finds the slot under either of its names.

    Where both are there (a revert was killed before the older one went) it is the newer.
    """
    names = model.SLOT_NAMES if name == model.SLOT else (name,)
    there = []
    for candidate in names:
        try:
            there.append(domain.snapshotLookupByName(candidate, 0))
        except libvirt.libvirtError as error:
            # A name that libvirt could never have stored is only one that is not there.
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, libvirt.VIR_ERR_INVALID_ARG):
                raise
    if there:
        return max(there, key=_age) if len(there) > 1 else there[0]
    raise NotFound(
        f"{domain.name()} has no snapshot named {name[:100]!a}", f"'kvmctl snapshot list {domain.name()}' shows them"
    )


def _age(snapshot: libvirt.virDomainSnapshot) -> str:
    return model.from_xml(snapshot.getXMLDesc(0)).created or ""


def one(domain: libvirt.virDomain, name: str) -> Snapshot:
    """The snapshot of this name, with its relations; NotFound where there is none."""
    with translated():
        found = find(domain, name).getName()
    return exactly(domain, found)


def exactly(domain: libvirt.virDomain, name: str) -> Snapshot:
    """As one(), by libvirt's own name: of the slot's two that one."""
    for snapshot in load(domain):
        if snapshot.name == name:
            return snapshot
    raise NotFound(f"the snapshot {name[:100]!a} of {domain.name()} has just been deleted")


def cut_short(known: Iterable[Snapshot], remembered: Metadata) -> Snapshot | None:
    """The slot that a killed revert left: it holds a present which nobody came to know of. None where all is well."""
    slots = [snapshot for snapshot in known if snapshot.name in model.SLOT_NAMES]
    newest = max(slots, key=lambda slot: slot.created or "", default=None)
    return newest if newest is not None and newest.created != slot_record.settled(remembered) else None


def volumes_then(domain: libvirt.virDomain, name: str) -> tuple[OwnedVolume, ...]:
    """What kvmctl had made for the VM at that moment."""
    root = xml.parse(domain.snapshotLookupByName(name, 0).getXMLDesc(0), "snapshot")
    then = root.find("inactiveDomain")
    then = then if then is not None else root.find("domain")
    return from_domain(then).volumes if then is not None else ()


def listed(hypervisor: Hypervisor, vm: str) -> list[dict[str, Any]]:
    """The snapshots of ``vm`` as scripts read them, parents before children; see Snapshot.as_dict()."""
    return [snapshot.as_dict() for snapshot in load(hypervisor.find(vm))]


def shown(hypervisor: Hypervisor, vm: str, name: str) -> dict[str, Any]:
    """One snapshot: its dict and ``description``, ``memory_file``, ``disks`` and the VM's shape at that moment.

    ``disks`` is ``[{target, location, overlay, source}]``; ``source`` is the file that held the data then.
    """
    domain = hypervisor.find(vm)
    snapshot = one(domain, name)
    with translated(hypervisor.uri):
        root = xml.parse(find(domain, name).getXMLDesc(0), "snapshot")
    then = root.find("domain")
    sources = {disk.target: disk.path for disk in preflight.disks_of(then)} if then is not None else {}
    memory = root.findtext("domain/memory")
    vcpu = root.findtext("domain/vcpu")
    return {
        **snapshot.as_dict(),
        "description": snapshot.description,
        "memory_file": snapshot.memory_file,
        "vcpus": int(vcpu) if vcpu and vcpu.isdigit() else None,
        "memory_bytes": int(memory) * 1024 if memory and memory.isdigit() else None,
        "disks": [
            {"target": d.target, "location": d.how, "overlay": d.overlay, "source": sources.get(d.target)}
            for d in snapshot.disks
        ],
    }


def drawn(hypervisor: Hypervisor, vm: str) -> dict[str, Any]:
    """``{name, state, current, snapshots, lines}``: the snapshots, and the tree of them as lines of text."""
    domain = hypervisor.find(vm)
    snapshots = load(domain)
    with translated(hypervisor.uri):
        state = state_of(domain)
        name = domain.name()
    labels = {snapshot.name: _label(snapshot) for snapshot in snapshots}
    current = next((snapshot.shown_name for snapshot in snapshots if snapshot.current), None)
    return {
        "name": name,
        "state": state,
        "current": current,
        "snapshots": [snapshot.as_dict() for snapshot in snapshots],
        "lines": [name, *model.draw(snapshots, f"you are here ({words(state)})", labels)],
    }


def _label(snapshot: Snapshot) -> str:
    when = (snapshot.created or "").replace("T", " ").partition("+")[0]
    what = words(snapshot.state) + (", memory" if snapshot.memory else "")
    if snapshot.location == "external":
        what += ", external"
    return f"{when}  {what}".strip()


def words(state: str) -> str:
    """A state of a snapshot as people say it."""
    return {"shutoff": "stopped", "disk-snapshot": "disks only"}.get(state, state)
