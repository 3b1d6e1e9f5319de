"""Making VMs be as their specs say: look, say what differs, create or change; each VM all of it or nothing."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, Refused
from kvmctl.model import spec_compare, spec_seen, spec_tuning, xml
from kvmctl.model.forward import written
from kvmctl.model.metadata import Forward
from kvmctl.model.nic import NetworkNic
from kvmctl.model.spec import Spec
from kvmctl.model.spec_compare import Difference
from kvmctl.model.spec_seen import Seen, SeenDisk, SeenNic
from kvmctl.operations import create, create_options, create_plan, lifecycle, metadata, networks, ports, settings
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo


@dataclass(frozen=True)
class Plan:
    """What apply does for one VM: ``creation``, or change what differs. Nothing of it: it is so already."""

    name: str
    spec: Spec
    domain: libvirt.virDomain | None = None
    creation: create_plan.Plan | None = None
    differences: tuple[Difference, ...] = ()
    changes: tuple[settings.Change, ...] = ()
    unpublish: tuple[Forward, ...] = ()
    publish: tuple[Forward, ...] = ()
    power: lifecycle.Plan | None = None
    warnings: tuple[str, ...] = ()

    def steps(self) -> list[str]:
        """What will be done, a few words each."""
        if self.creation is not None:
            return self.creation.steps()
        told = [change.what for change in self.changes]
        told += [f"take back {written(forward)}" for forward in self.unpublish]
        told += [f"publish {written(forward)}" for forward in self.publish]
        return told + ([self.power.verb] if self.power is not None else [])


def look(hypervisor: Hypervisor, name: str) -> tuple[libvirt.virDomain, Seen] | None:
    """The VM of that name as specs see it; None where there is none, or one that a killed ``create`` left."""
    domain = hypervisor.find_or_none(name)
    if domain is None:
        return None
    with translated(hypervisor.uri):
        if metadata.read(domain).creator is not None:
            return None
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
        seen = spec_seen.read(xml.parse(domain.XMLDesc(flags), "domain", "domain"))
        return domain, replace(
            seen,
            disks=tuple(_measured(domain, disk) for disk in seen.disks),
            nics=tuple(_reserved(hypervisor, nic) for nic in seen.nics),
            # A start order is meant so, whether or not this host has yet what keeps it.
            autostart=bool(domain.isPersistent() and (domain.autostart() or seen.order is not None)),
            running=bool(domain.isActive()),
        )


def _measured(domain: libvirt.virDomain, disk: SeenDisk) -> SeenDisk:
    if disk.source is None or disk.device != "disk":
        return disk
    try:
        return replace(disk, capacity_bytes=domain.blockInfo(disk.target, 0)[0])
    except libvirt.libvirtError:
        # Its file is gone, or libvirt does not measure such a disk while the VM is off.
        return disk


def _reserved(hypervisor: Hypervisor, seen: SeenNic) -> SeenNic:
    """The card with the address that its network keeps for it, whoever had that reserved."""
    if not isinstance(seen.nic, NetworkNic) or seen.nic.ip is not None:
        return seen
    network = networks.find_or_none(hypervisor, seen.nic.network)
    if network is None:
        return seen
    return replace(seen, nic=seen.nic._replace(ip=networks.read(network).reserved(seen.nic.mac or "")))


def differences(hypervisor: Hypervisor, spec: Spec) -> tuple[Difference, ...] | None:
    """What of the VM is not as ``spec`` says, or None where there is no such VM. Changes nothing."""
    assert spec.name is not None
    found = look(hypervisor, spec.name)
    return spec_compare.compare(spec, found[1]) if found is not None else None


def plan(hypervisor: Hypervisor, spec: Spec, progress: Progress | None = None, *, bring: bool = True) -> Plan:
    """Decide what to do so that the VM is as ``spec`` says; ``bring`` as create's plan has it.

    Raises what create's plan raises for a new VM; Refused, naming each key, where an existing one would
    have to be made anew.
    """
    assert spec.name is not None
    found = look(hypervisor, spec.name)
    if found is None:
        request = create_options.from_spec(spec.name, spec, {})
        made = create_plan.plan(hypervisor, request, progress, bring=bring)
        return Plan(spec.name, spec, creation=made, warnings=made.warnings)
    domain, seen = found
    different = spec_compare.compare(spec, seen)
    _refuse_anew(spec.name, different)
    keys = {difference.key for difference in different}
    changes, warnings = _plan_settings(hypervisor, spec, keys, seen)
    gone, new = _plan_ports(hypervisor, spec, seen, keys)
    power = None
    if "start" in keys:
        power = lifecycle.plan(hypervisor, "start" if spec.start else "stop", spec.name)
    return Plan(spec.name, spec, domain, None, different, changes, gone, new, power, tuple(warnings))


def _refuse_anew(name: str, different: tuple[Difference, ...]) -> None:
    anew = [difference for difference in different if difference.how == "recreate"]
    if not anew:
        return
    told = "; ".join(f"{d.key} is {d.now}, the spec says {d.wanted}" for d in anew)
    hints = list(dict.fromkeys(d.hint for d in anew if d.hint))
    rest = [d.key for d in anew if not d.hint]
    if rest:
        hints.append(
            f"only a new VM can have another {', '.join(rest)}: 'kvmctl delete {name}' first, "
            "which takes its disks with it, or leave it out of the spec"
        )
    raise Refused(f"{name} cannot be changed to its spec: {told}", "; ".join(hints))


def _plan_settings(
    hypervisor: Hypervisor, spec: Spec, keys: set[str], seen: Seen
) -> tuple[tuple[settings.Change, ...], list[str]]:
    """The changes, live and saved where the run has room for them; a warning for each key that has to wait."""
    wanted = {
        "vcpus": settings.Settings(**_amount("vcpus", "max_vcpus", spec.vcpus)),
        "memory": settings.Settings(**_amount("memory_bytes", "max_memory_bytes", spec.memory)),
        "title": settings.Settings(title=spec.title),
        "description": settings.Settings(description=spec.description),
        "autostart": settings.Settings(autostart=spec.autostart),
    }
    for key in spec_tuning.KEYS:
        wanted[key] = settings.Settings(tuning=spec_tuning.wanted(spec, key, seen.tree))
    changes: list[settings.Change] = []
    warnings = []
    for key in (key for key in wanted if key in keys):
        name = spec.name or ""
        try:
            planned = settings.plan(hypervisor, name, wanted[key])
        except (Conflict, Refused) as why:
            planned = settings.plan(hypervisor, name, wanted[key], "config")
            warnings.append(f"{name} has its {key} from the next start on: {why.message}")
        changes += planned.changes
    return tuple(changes), warnings


def _amount(now: str, most: str, value: tuple[int, int | None] | None) -> dict[str, Any]:
    return {now: value[0], most: value[1]} if value is not None else {}


def _plan_ports(
    hypervisor: Hypervisor, spec: Spec, seen: Seen, keys: set[str]
) -> tuple[tuple[Forward, ...], tuple[Forward, ...]]:
    if "publish" not in keys or spec.name is None:
        return (), ()
    wanted = spec_compare.wanted_forwards(spec)
    gone = tuple(forward for forward in seen.forwards if forward not in wanted)
    new = tuple(forward for forward in wanted if forward not in seen.forwards)
    # A port that one of the VM's own forwards still holds is free only once that has gone.
    held = {(forward.protocol, forward.host_port) for forward in gone}
    ports.plan_add(hypervisor, spec.name, [f for f in new if (f.protocol, f.host_port) not in held])
    ports.plan_remove(hypervisor, spec.name, [written(forward) for forward in gone])
    return gone, new


def run(hypervisor: Hypervisor, plan: Plan, progress: Progress, timeout: float) -> dict[str, Any]:
    """Do it, or none of it: ``{"name", "uuid", "state", "created", "changed", "changes", "warnings"}``.

    ``timeout`` (seconds) is how long a guest that shall be off may take to shut down.
    """
    if plan.creation is not None:
        row = create.run(hypervisor, plan.creation, progress, full=False)
        return _row(plan, row["uuid"], row["state"], created=True, warnings=[])
    assert plan.domain is not None
    warnings: list[str] = []
    with Undo() as undo, translated(hypervisor.uri):
        for change in plan.changes:
            with undo.step():
                change.make()
                undo.add(change.what, change.undo)
        _change_ports(hypervisor, plan, undo)
        if plan.power is not None and plan.power.verb == "start":
            progress.step(f"starting {plan.name}")
            warnings += lifecycle.start(hypervisor, plan.power)["warnings"]
        elif plan.power is not None:
            lifecycle.stop(hypervisor, plan.power, timeout=timeout, progress=progress)
        undo.keep()
    with translated(hypervisor.uri):
        state = lifecycle.state_of(plan.domain)
        return _row(plan, plan.domain.UUIDString(), state, created=False, warnings=warnings)


def _change_ports(hypervisor: Hypervisor, plan: Plan, undo: Undo) -> None:
    def take_back(forwards: tuple[Forward, ...]) -> None:
        named = [written(forward) for forward in forwards]
        ports.remove(hypervisor, ports.plan_remove(hypervisor, plan.name, named))

    def publish(forwards: tuple[Forward, ...]) -> None:
        ports.add(hypervisor, ports.plan_add(hypervisor, plan.name, forwards))

    for act, back, forwards, what in (
        (take_back, publish, plan.unpublish, "publish again"),
        (publish, take_back, plan.publish, "take back"),
    ):
        if forwards:
            act(forwards)
            undo.add(f"{what} {', '.join(map(written, forwards))}", functools.partial(back, forwards))


def _row(plan: Plan, uuid: str | None, state: str, *, created: bool, warnings: list[str]) -> dict[str, Any]:
    return {
        "name": plan.name,
        "uuid": uuid,
        "state": state,
        "created": created,
        "changed": created or bool(plan.steps()),
        "changes": plan.steps(),
        "warnings": [*plan.warnings, *warnings],
    }


def described(plan: Plan) -> dict[str, Any]:
    """The plan as ``apply --dry-run`` prints it: run()'s keys, and ``would`` and ``xml`` (of a VM to be created)."""
    state = lifecycle.state_of(plan.domain) if plan.domain is not None else "absent"
    would = "create" if plan.creation is not None else "change" if plan.steps() else None
    uuid = plan.domain.UUIDString() if plan.domain is not None else None
    row = _row(plan, uuid, state, created=False, warnings=[])
    text = xml.text(plan.creation.domain) if plan.creation is not None else None
    return {**row, "changed": False, "dry_run": True, "would": would, "xml": text}
