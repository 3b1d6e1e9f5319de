"""Deciding how a VM is copied: everything that can be refused is refused here, before anything is made."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, Refused
from kvmctl.model import clone as copies
from kvmctl.model import xml
from kvmctl.model.domain import Hardware
from kvmctl.model.metadata import Metadata, OwnedVolume
from kvmctl.model.names import check_new_name
from kvmctl.operations import claim, freeze, metadata, nvram, pools, snapshots
from kvmctl.operations.freeze import Layer
from kvmctl.operations.new_uuid import new_uuid
from kvmctl.preflight import dependents
from kvmctl.preflight import snapshots as preflight

Mode = Literal["linked", "full", "live"]
MOST_COPIES = 256


@dataclass(frozen=True)
class CopiedDisk:
    """A disk of the copy: its own volume for the ``target``, over or from ``layer``."""

    target: str
    volume: OwnedVolume
    format: str
    layer: Layer


@dataclass(frozen=True)
class Copy:
    """One copy: its names and addresses, its disks, and its seed where the source had one."""

    identity: copies.Identity
    domain: xml.Element
    disks: tuple[CopiedDisk, ...]
    seed: OwnedVolume | None
    metadata: Metadata
    leftover: libvirt.virDomain | None = field(default=None, compare=False)

    def volumes(self) -> list[OwnedVolume]:
        """The volumes that are made for this copy."""
        return [*(disk.volume for disk in self.disks), *([self.seed] if self.seed else [])]


@dataclass(frozen=True)
class Plan:
    """All that will happen. ``layers`` says how the source's disks are frozen (empty where they need not be)."""

    source: str
    mode: Mode
    state: str
    hardware: Hardware
    layers: tuple[Layer, ...]
    copies: tuple[Copy, ...]
    seed_source: str | None
    nvram: str | None
    keep_identity: bool
    quiesce: bool
    start: bool
    agent: bool
    memory: OwnedVolume | None
    notes: tuple[str, ...]

    def as_dicts(self) -> list[dict[str, Any]]:
        """For ``--dry-run``: ``{name, uuid, source, mode, disks, notes, xml}`` each."""
        return [
            {
                "name": copy.identity.name,
                "uuid": copy.identity.uuid,
                "source": self.source,
                "mode": self.mode,
                "disks": disks_as_dicts(copy, self.mode),
                "notes": list(self.notes),
                "xml": xml.text(copy.domain),
            }
            for copy in self.copies
        ]


def disks_as_dicts(copy: Copy, mode: Mode) -> list[dict[str, Any]]:
    """The copy's disks for JSON: ``{target, source, format, backing}``; a full copy's stand on nothing."""
    return [
        {
            "target": disk.target,
            "source": disk.volume.path,
            "format": disk.format,
            "backing": None if mode == "full" else disk.layer.base,
        }
        for disk in copy.disks
    ]


def plan(
    hypervisor: Hypervisor,
    source: str,
    name: str,
    *,
    mode: Mode = "linked",
    count: int | None = None,
    start: bool = False,
    keep_identity: bool = False,
    pool: str | None = None,
) -> Plan:
    """Look at the source and decide. With ``count`` the copies are named ``name-1`` … ``name-count``.

    Raises NotFound, Conflict (a name is taken, the source is in no state for it), Refused.
    """
    domain = hypervisor.find(source)
    names = [name] if count is None else [f"{name}-{number}" for number in range(1, count + 1)]
    leftovers = {}
    for wanted in names:
        check_new_name(wanted)
        leftovers[wanted] = claim.check_free(hypervisor, wanted)
    with translated(hypervisor.uri):
        source = domain.name()
        state = snapshots.state_of(domain)
        tree = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE), "domain")
        live_tree = xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), "domain")
        remembered = metadata.read(domain)
        saved = bool(domain.isPersistent() and domain.hasManagedSaveImage(0))
    _check_source(domain, source, state, saved, mode, live_tree)
    present = live_tree if domain.isActive() else tree
    dependents.check_disks(hypervisor, present)
    layers = freeze.plan(hypervisor, domain, present, reuse=mode != "full")
    _check_disks(source, tree, layers)
    maker = _Maker(hypervisor, source, tree, remembered, layers, mode, keep_identity, pool)
    made = tuple(maker.copy(wanted, leftovers[wanted]) for wanted in names)
    if mode == "live" and not layers:
        raise Refused(f"{source} has no disk that it writes, and so no storage pool to put its memory into")
    variables = nvram.path_of(hypervisor, live_tree)
    if mode == "live" and variables is None and preflight.has_nvram(tree):
        raise Refused(f"the UEFI variables of {source} are in no file of its host", "stop it and clone then")
    agent = freeze.quiesced(domain) if state == "running" else False
    return Plan(
        source=source,
        mode=mode,
        state=state,
        hardware=_hardware(tree),
        layers=layers,
        copies=made,
        seed_source=maker.seed_path,
        nvram=variables,
        keep_identity=keep_identity,
        quiesce=agent and mode != "live",
        start=start or mode == "live",
        agent=agent,
        memory=maker.memory(names[0]) if mode == "live" else None,
        notes=tuple(dict.fromkeys(maker.notes)),
    )


def _check_source(
    domain: libvirt.virDomain, source: str, state: str, saved: bool, mode: Mode, tree: xml.Element
) -> None:
    if mode == "live":
        if state != "running":
            what = "resume it first" if state == "paused" else "leave out --live"
            raise Conflict(f"{source} is {snapshots.words(state)}, and --live copies a guest that runs", what)
        problems = preflight.against_memory(tree)
        for card in copies.cards_bound_to_their_mac(tree):
            problems = [*problems, f"its card {card} has its MAC in its memory, so that the copy's could have no other"]
        if problems:
            raise Refused(f"{source} cannot be copied while it runs: {'; '.join(problems)}", "stop it and clone then")
    elif state not in ("running", "paused", "shutoff", "crashed"):
        raise Conflict(f"{source} is {state}, and can be copied when it runs, is paused or stopped")
    if saved:
        raise Conflict(
            f"{source} is saved: its memory holds what is not yet on its disks",
            f"'kvmctl start {source}' first, then clone it running or stopped",
        )
    if not domain.isPersistent() and domain.isActive() and mode != "live":
        raise Conflict(f"{source} is transient and has no definition to copy", "'virsh define' makes it stay")
    with translated():
        internal = domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL)
    if internal and (mode != "full" or domain.isActive()):
        what = "a snapshot" if len(internal) == 1 else f"{len(internal)} snapshots"
        raise Refused(
            f"{source} has {what} inside its disks, and standing on a frozen disk it could not "
            "go back to them any more",
            "stop it and clone with --full, or delete its snapshots first",
        )


def _check_disks(source: str, tree: xml.Element, layers: Sequence[Layer]) -> None:
    covered = {layer.target for layer in layers}
    for disk in preflight.disks_of(tree):
        if disk.written and disk.target not in covered:
            raise Refused(
                f"the disk {disk.target} of {source} is shared with other guests: a copy would write to it as well",
                "detach it first",
            )


def _hardware(tree: xml.Element) -> Hardware:
    kind = tree.find("os/type")
    virt: Literal["kvm", "qemu"] = "kvm" if tree.get("type") == "kvm" else "qemu"
    return Hardware(
        virt,
        kind.get("arch", "x86_64") if kind is not None else "x86_64",
        kind.get("machine", "") if kind is not None else "",
    )


class _Maker:
    """Makes each Copy of one plan; what they have in common is worked out once."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        source: str,
        tree: xml.Element,
        remembered: Metadata,
        layers: Sequence[Layer],
        mode: Mode,
        keep_identity: bool,
        pool: str | None,
    ) -> None:
        self.hypervisor, self.source, self.tree, self.mode, self.pool = hypervisor, source, tree, mode, pool
        self.remembered, self.layers, self.keep_identity = remembered, layers, keep_identity
        self.notes: list[str] = []
        self.taken: dict[str, set[str]] = {}
        self.macs = _all_macs(hypervisor)
        self.bases = self._bases()
        self.seed = next((volume for volume in remembered.volumes if volume.role == "seed"), None)
        if self.seed is not None and not any(disk.path == self.seed.path for disk in preflight.disks_of(tree)):
            self.seed = None
        self.seed_path = self.seed.path if self.seed else None
        if self.seed is None and mode != "live" and not keep_identity:
            self.notes.append(
                f"{source} has no cloud-init seed of kvmctl's: machine-id, SSH host keys and host name inside the copy "
                "stay the source's (--keep-identity says that this is meant)"
            )
        if remembered.forwards:
            self.notes.append("the ports published for the source stay with it: 'kvmctl port add' publishes the copy's")

    def _bases(self) -> tuple[OwnedVolume, ...]:
        """What the copies stand on and kvmctl made for the source: whoever goes last deletes it."""
        if self.mode == "full":
            return ()
        below = {
            path for layer in self.layers for path in dependents.chain(self.hypervisor, layer.base, layer.base_format)
        }
        return tuple(
            volume._replace(role="base")
            for volume in self.remembered.volumes
            if volume.path in below and volume.role in ("disk", "base")
        )

    def copy(self, name: str, leftover: libvirt.virDomain | None) -> Copy:
        """The plan of the copy called ``name``."""
        tree = xml.parse(xml.raw(self.tree), "domain")
        macs = {}
        for old in copies.macs_of(tree):
            macs[old] = copies.new_mac(self.macs)
            self.macs.add(macs[old])
        identity = copies.Identity(name, new_uuid(), macs)
        copies.rename(tree, identity)
        self.notes += copies.separate(tree)
        disks = tuple(self._disk(name, number, layer, leftover) for number, layer in enumerate(self.layers))
        sources = {disk.target: (disk.volume.path or "", disk.format) for disk in disks}
        seed = self._seed(name, leftover)
        if seed is not None:
            target = next(d.target for d in preflight.disks_of(tree) if d.path == self.seed_path)
            sources[target] = (seed.path or "", "raw")
        copies.set_disks(tree, sources)
        copies.set_nvram(tree, None)
        content = Metadata(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            image=self.remembered.image,
            user=self.remembered.user,
            volumes=(*(disk.volume for disk in disks), *([seed] if seed else []), *self.bases),
        )
        copies.remember(tree, content)
        return Copy(identity, tree, disks, seed, content, leftover)

    def _disk(self, name: str, number: int, layer: Layer, leftover: libvirt.virDomain | None) -> CopiedDisk:
        format_ = layer.base_format if self.mode == "full" and layer.base_format in ("raw", "qcow2") else "qcow2"
        pool = pools.ensure_pool(self.hypervisor, self.pool or layer.pool)
        file_name = f"{name}{f'-{number}' if number else ''}.{'qcow2' if format_ == 'qcow2' else 'img'}"
        volume = self._free(pool, file_name, "disk", leftover)
        return CopiedDisk(layer.target, volume, format_, layer)

    def _seed(self, name: str, leftover: libvirt.virDomain | None) -> OwnedVolume | None:
        if self.seed is None:
            return None
        pool = pools.ensure_pool(self.hypervisor, self.seed.pool)
        return self._free(pool, f"{name}-seed.iso", "seed", leftover)

    def memory(self, name: str) -> OwnedVolume:
        """Where the source's memory waits until the copies have it."""
        pool = pools.ensure_pool(self.hypervisor, self.pool or self.layers[0].pool)
        return freeze.free_volume(pool, f"{name}-fork", ".memory", set(), "memory")

    def _free(
        self,
        pool: libvirt.virStoragePool,
        name: str,
        role: Literal["disk", "seed"],
        leftover: libvirt.virDomain | None,
    ) -> OwnedVolume:
        listed = {(v.pool, v.name) for v in metadata.read(leftover).volumes} if leftover is not None else set()
        if (pool.name(), name) not in listed and pools.find_volume(pool, name) is not None:
            raise Conflict(
                f"the storage pool {pool.name()} already has a volume {name}",
                "choose another name for the copy, or see whose it is with 'virsh vol-info'",
            )
        directory = pools.target_path(pool)
        if directory is None:
            raise Refused(f"the storage pool {pool.name()} has no directory to put a copy's disk in", "give --pool")
        return OwnedVolume(pool.name(), name, str(directory / name), role)


def _all_macs(hypervisor: Hypervisor) -> set[str]:
    """Every MAC address that a VM of this hypervisor has, so that no copy gets one twice."""
    found: set[str] = set()
    with translated(hypervisor.uri):
        for domain in hypervisor.conn.listAllDomains(0):
            try:
                found.update(copies.macs_of(xml.parse(domain.XMLDesc(0), "domain")))
            except libvirt.libvirtError:
                # Gone since it was listed.
                continue
    return found
