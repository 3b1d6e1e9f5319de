"""Copying a VM: all of it, or nothing."""

import time
from collections.abc import Sequence
from typing import Any

from kvmctl.connection import Hypervisor, translated
from kvmctl.model import clone as copies
from kvmctl.model import xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.operations import claim, clone_disks, clone_seed, freeze, nvram, pools, ports, recovery, removal
from kvmctl.operations.clone_plan import Copy, Plan, disks_as_dicts
from kvmctl.operations.progress import Progress
from kvmctl.operations.seed import hostname_for
from kvmctl.operations.undo import Undo
from kvmctl.operations.volume_reader import find_by_path


def run(hypervisor: Hypervisor, plan: Plan, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Make the copies and return ``{name, uuid, source, mode, disks, seconds}`` each.

    If anything fails, or Ctrl-C arrives, every copy is taken back and the source stands where it stood.
    """
    progress = progress or Progress()
    domain = hypervisor.find(plan.source)
    began = time.monotonic()
    with Undo() as undo:
        for copy in plan.copies:
            progress.step(f"defining {copy.identity.name}")
            take_name(hypervisor, plan, copy, undo)
        if plan.mode == "full":
            clone_disks.copy_all(hypervisor, domain, plan, undo, progress)
        else:
            progress.step(f"freezing the disks of {plan.source}")
            freeze.freeze(hypervisor, domain, plan.layers, undo, quiesce=plan.quiesce)
            for copy in plan.copies:
                make_overlays(hypervisor, copy, undo)
            recovery.done(domain)
        for copy in plan.copies:
            make_seed(hypervisor, plan, copy, undo)
            define(hypervisor, plan, copy, undo)
        if plan.start:
            for copy in plan.copies:
                progress.step(f"starting {copy.identity.name}")
                _start(hypervisor, copy, undo)
        undo.keep()
    seconds = time.monotonic() - began
    return [row(plan, copy, seconds) for copy in plan.copies]


def row(plan: Plan, copy: Copy, seconds: float) -> dict[str, Any]:
    """``{name, uuid, source, mode, disks, seconds}``."""
    return {
        "name": copy.identity.name,
        "uuid": copy.identity.uuid,
        "source": plan.source,
        "mode": plan.mode,
        "disks": disks_as_dicts(copy, plan.mode),
        "seconds": round(seconds, 3),
    }


def take_name(hypervisor: Hypervisor, plan: Plan, copy: Copy, undo: Undo, more: Sequence[OwnedVolume] = ()) -> None:
    """Hold the copy's name, with all that is about to be made for it (and ``more``), before the first volume is."""
    volumes = [*copy.volumes(), *more]
    with undo.step():
        domain = claim.take(hypervisor, copy.identity.name, copy.identity.uuid, plan.hardware, volumes, copy.leftover)
        undo.add(f"undefine {copy.identity.name}", lambda: removal.undefine(domain))


def make_overlays(hypervisor: Hypervisor, copy: Copy, undo: Undo) -> None:
    """The copy's own disks, empty and above what was frozen."""
    for disk in copy.disks:
        freeze.make_overlay(hypervisor, disk.volume, disk.layer, undo)


def make_seed(hypervisor: Hypervisor, plan: Plan, copy: Copy, undo: Undo) -> None:
    """The copy's seed: for a new machine, or with --keep-identity the source's as it is."""
    if copy.seed is None or plan.seed_source is None:
        return
    volume = find_by_path(hypervisor, plan.seed_source)
    if volume is None:
        # The source can do without it after its first boot, and so can a copy that stays the same machine.
        content: dict[str, bytes] = {}
    else:
        content = clone_seed.read(volume)
    hostname = hostname_for(copy.identity.name)
    if not plan.keep_identity:
        # A fork with an agent is given its identity while it runs; a second one at its next boot would be wrong.
        forked = plan.mode == "live" and plan.agent
        content = (
            clone_seed.renamed(content, hostname)
            if forked
            else clone_seed.renewed(content, copy.identity.uuid, hostname)
        )
    data = clone_seed.pack(content)
    owned = copy.seed
    pools.upload(pools.ensure_pool(hypervisor, owned.pool), owned.name, data, len(data))
    undo.add(f"delete volume {owned.name}", lambda: pools.delete_volume(hypervisor, owned.pool, owned.name))


def define(hypervisor: Hypervisor, plan: Plan, copy: Copy, undo: Undo, variables: bytes | None = None) -> str | None:
    """Put the copy's whole definition in the place of the one that only held its name.

    Returns the path of its UEFI variables, None where it has none; ``variables`` see nvram.copy().
    """
    path = None
    if plan.nvram is not None:
        path = nvram.copy(hypervisor, plan.nvram, copy.identity.name, undo, variables)
        copies.set_nvram(copy.domain, path)
    with translated(hypervisor.uri):
        hypervisor.conn.defineXML(xml.raw(copy.domain))
    return path


def _start(hypervisor: Hypervisor, copy: Copy, undo: Undo) -> None:
    with translated(hypervisor.uri):
        domain = hypervisor.conn.lookupByUUIDString(copy.identity.uuid)
        domain.create()
        undo.add(f"power off {copy.identity.name}", lambda: removal.power_off(domain))
        ports.reapply(hypervisor, domain)


def names(rows: Sequence[dict[str, Any]]) -> str:
    """The copies' names in a sentence."""
    return ", ".join(str(made["name"]) for made in rows)
