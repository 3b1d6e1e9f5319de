"""Changing a VM's vCPUs, memory, title, description and autostart: in the run, in the definition, or both.

Each setting is one Change, which knows what is so, makes it so, and can take that back: set() makes all of
them or none. A further setting is a further function in _CHANGES.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, Refused, UsageProblem
from kvmctl.model import domain_view, tuning, xml
from kvmctl.model.domain_view import DomainView
from kvmctl.model.names import harmless
from kvmctl.model.state import ACTIVE
from kvmctl.model.tuned import Tuning
from kvmctl.model.units import human_size
from kvmctl.operations import settings_tuning, start_order
from kvmctl.operations.kept_definition import cannot_be_undone, definition_kept
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.undo import Undo
from kvmctl.preflight import overcommit

KIB = 1024
Where = Literal["both", "live", "config"]
LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
# A balloon gives memory back as fast as the guest lets go of it.
_BALLOON_SECONDS = 10.0
# Guests other than tiny ones do not survive with less (Debian's own minimum is more).
_LEAST_MEMORY = 16 * 1024 * KIB


@dataclass(frozen=True)
class Settings:
    """What to set; None leaves it. Memory in bytes."""

    vcpus: int | None = None
    max_vcpus: int | None = None
    memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    title: str | None = None
    description: str | None = None
    autostart: bool | None = None
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True)
class Change:
    """One step: ``what`` as a person reads it, ``make`` and ``undo``."""

    what: str
    make: Callable[[], object]
    undo: Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """``changes`` in their order; none where everything is so already."""

    domain: libvirt.virDomain
    name: str
    uuid: str
    state: str
    where: Where
    settings: Settings
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What is so: ``live`` is None for a VM that is off, ``config`` for one without a definition."""

    domain: libvirt.virDomain
    name: str
    live: DomainView | None
    config: DomainView | None

    def most(self, key: str) -> str:
        """What to do where the running VM's maximum is too small."""
        return f"'kvmctl set {self.name} --config --{key}' saves it for the next start"


def plan(hypervisor: Hypervisor, name: str, settings: Settings, where: Where = "both", *, strict: bool = False) -> Plan:
    """Look what would have to change. Raises NotFound; Conflict and UsageProblem for what cannot be.

    With ``strict`` Refused where the host would promise its guests too much; else Plan.warnings says so.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        state, persistent = state_of(domain), bool(domain.isPersistent())
        shown = domain.name()
        active = state in ACTIVE
        if where == "live" and not active:
            raise Conflict(f"{shown} is {state}, so nothing can be set live", "leave --live out, or start it first")
        if where == "config" and not persistent:
            raise Conflict(f"{shown} is transient: it has no saved definition", "leave --config out")
        look = _Look(
            domain,
            shown,
            domain_view.read(domain.XMLDesc(0)) if active and where != "config" else None,
            domain_view.read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            if persistent and where != "live"
            else None,
        )
        changes = [change for find in _CHANGES for change in find(look, settings)]
        said = overcommit.check(hypervisor, _promised(look, settings), strict=strict)
        return Plan(domain, shown, domain.UUIDString(), state, where, settings, tuple(changes), tuple(said))


def _promised(look: _Look, settings: Settings) -> overcommit.Promise:
    """What the running guest gets on top of what it has."""
    if look.live is None:
        return overcommit.Promise(0, 0)
    vcpus = (settings.vcpus or look.live.vcpus) - look.live.vcpus
    has = look.live.memory_bytes or 0
    return overcommit.Promise(max(0, vcpus), max(0, (settings.memory_bytes or has) - has))


def run(hypervisor: Hypervisor, found: Plan) -> dict[str, Any]:
    """Make all the changes, or none: ``{"name", "uuid", "state", "changed", "changes", ...}`` and what is so now.

    ``vcpus`` and ``memory_bytes`` are the running VM's where it runs and was meant, else the definition's.
    ``warnings`` says what a guest has not followed yet.
    """
    with translated(hypervisor.uri), definition_kept(found.domain, f"set {found.name}"), Undo() as undo:
        for change in found.changes:
            change.make()
            undo.add(change.what, change.undo)
        undo.keep()
    with translated(hypervisor.uri):
        if found.changes and found.where == "live":
            cannot_be_undone(
                found.domain, f"set {found.name} --live", "it set the running guest alone, until that stops"
            )
        return _result(hypervisor, found)


def _result(hypervisor: Hypervisor, found: Plan) -> dict[str, Any]:
    domain = found.domain
    state = state_of(domain)
    live = state in ACTIVE and found.where != "config"
    warnings = list(found.warnings)
    if found.settings.tuning.start_order and not start_order.in_force(hypervisor):
        warnings.append(start_order.NOT_IN_FORCE)
    wanted = found.settings.memory_bytes
    if live and wanted is not None and found.changes and (short := _balloon_short(domain, wanted)) is not None:
        warnings.append(
            f"the guest has {human_size(short)} for now: its balloon driver has not followed to {human_size(wanted)}"
        )
    seen = domain_view.read(domain.XMLDesc(0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE))
    return {
        "name": found.name,
        "uuid": found.uuid,
        "state": state,
        "changed": bool(found.changes),
        "changes": [change.what for change in found.changes],
        "vcpus": seen.vcpus,
        "max_vcpus": seen.max_vcpus,
        "memory_bytes": seen.memory_bytes,
        "max_memory_bytes": seen.max_memory_bytes,
        "title": seen.title,
        "description": seen.description,
        "autostart": start_order.starts_with_host(hypervisor, domain),
        "warnings": warnings,
    }


def _balloon_short(domain: libvirt.virDomain, wanted: int) -> int | None:
    """What the guest has, where after a while it is still not what it was asked for (to 1 %)."""
    until = time.monotonic() + _BALLOON_SECONDS
    while True:
        # Not memoryStats(): QEMU answers that at once, but libvirt's own record, which everybody is shown,
        # follows QEMU's event, at most once a second.
        actual = int(domain.info()[2])
        if abs(actual * KIB - wanted) <= wanted // 100:
            return None
        if time.monotonic() >= until:
            return actual * KIB
        time.sleep(0.2)


def _vcpus(look: _Look, settings: Settings) -> list[Change]:
    wanted, most = settings.vcpus, settings.max_vcpus
    if wanted is not None and most is not None and wanted > most:
        raise UsageProblem(f"{wanted} vCPUs are more than the maximum of {most} asked for with them")
    changes = []
    if look.live is not None and wanted is not None and wanted != look.live.vcpus:
        if wanted > look.live.max_vcpus:
            raise Conflict(
                f"{look.name} runs with room for at most {look.live.max_vcpus} vCPUs", look.most(f"vcpus {wanted}")
            )
        changes.append(_vcpu_change(look, wanted, look.live.vcpus, LIVE, "of the running VM"))
    if look.config is not None:
        room = most or max(look.config.max_vcpus, wanted or 0)
        now = wanted if wanted is not None else min(look.config.vcpus, room)
        before = look.config
        if room > before.max_vcpus:
            _check_most_vcpus(look, room)
        if room != before.max_vcpus:
            changes.append(
                Change(
                    f"at most {room} vCPUs in the definition",
                    lambda: _set_vcpu_room(look.domain, now, room, before.vcpus),
                    lambda: _set_vcpu_room(look.domain, before.vcpus, before.max_vcpus, now),
                )
            )
        if now != before.vcpus or (room != before.max_vcpus and now != room):
            changes.append(_vcpu_change(look, now, before.vcpus, CONFIG, "in the definition"))
    elif most is not None and look.live is not None and most != look.live.max_vcpus:
        raise Conflict(f"the maximum of vCPUs of {look.name} cannot change while it runs", "leave --live out")
    return changes


def _check_most_vcpus(look: _Look, wanted: int) -> None:
    """Raise UsageProblem past what its machine type takes: libvirt itself says so only when it starts."""
    tree = xml.parse(look.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "domain", "domain")
    type_ = tree.find("os/type")
    arch, machine = (type_.get("arch"), type_.get("machine")) if type_ is not None else (None, None)
    text = look.domain.connect().getDomainCapabilities(None, arch, machine, tree.get("type"), 0)
    most = xml.parse(text, "domain capabilities", "domainCapabilities").find("vcpu")
    if most is not None and wanted > int(most.get("max", "0")):
        raise UsageProblem(
            f"{wanted} vCPUs are more than the machine type of {look.name} can have",
            f"it takes up to {most.get('max')}",
        )


def _vcpu_change(look: _Look, wanted: int, before: int, flag: int, where: str) -> Change:
    return Change(
        f"{wanted} vCPU{'s' if wanted != 1 else ''} {where}",
        lambda: _set_vcpus(look.domain, wanted, flag),
        lambda: look.domain.setVcpusFlags(before, flag),
    )


def _set_vcpus(domain: libvirt.virDomain, wanted: int, flag: int) -> None:
    domain.setVcpusFlags(wanted, flag)
    if domain.vcpusFlags(flag) != wanted:
        where = "the running VM" if flag == LIVE else "the definition"
        raise KvmctlError(f"{where} did not take {wanted} vCPUs though libvirt reported no error")


def _set_vcpu_room(domain: libvirt.virDomain, now: int, room: int, before: int) -> None:
    # libvirt keeps the present number within the maximum, so a smaller maximum needs a smaller number first.
    if room < before:
        domain.setVcpusFlags(min(now, room), CONFIG)
    domain.setVcpusFlags(room, CONFIG | libvirt.VIR_DOMAIN_VCPU_MAXIMUM)


def _memory(look: _Look, settings: Settings) -> list[Change]:
    wanted, most = _in_kib(settings.memory_bytes), _in_kib(settings.max_memory_bytes)
    if wanted is not None and most is not None and wanted > most:
        raise UsageProblem("that memory is more than the maximum asked for with it")
    if wanted is not None and wanted < _LEAST_MEMORY:
        raise UsageProblem(f"{human_size(wanted)} of memory is less than any guest can use", "give at least 16 MiB")
    changes = []
    if look.live is not None and wanted is not None and wanted != look.live.memory_bytes:
        room = look.live.max_memory_bytes or 0
        if wanted > room:
            raise Conflict(
                f"{look.name} runs with room for at most {human_size(room)}",
                look.most(f"memory {wanted // (KIB * KIB)}M"),
            )
        _check_balloon(look, wanted)
        changes.append(_memory_change(look, wanted, look.live.memory_bytes or room, LIVE, "for the running VM"))
    if look.config is not None:
        before, room = look.config.memory_bytes or 0, look.config.max_memory_bytes or 0
        new_room = most or max(room, wanted or 0)
        now = wanted if wanted is not None else min(before, new_room)
        if new_room != room:
            _check_undivided(look)
            flags = CONFIG | libvirt.VIR_DOMAIN_MEM_MAXIMUM
            changes.append(_memory_change(look, new_room, room, flags, "at most in the definition"))
        if now != before or new_room != room:
            changes.append(_memory_change(look, now, before, CONFIG, "in the definition"))
    elif most is not None and look.live is not None and most != look.live.max_memory_bytes:
        raise Conflict(f"the maximum of memory of {look.name} cannot change while it runs", "leave --live out")
    return changes


def _check_undivided(look: _Look) -> None:
    """Raise Conflict where the memory is divided among NUMA nodes: libvirt then changes no maximum."""
    tree = xml.parse(look.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "domain", "domain")
    if tuning.numa_of(tree).cells:
        raise Conflict(
            f"the memory of {look.name} is divided among NUMA nodes, so its maximum stays",
            f"'kvmctl set {look.name} --numa 0' first, and --numa again afterwards",
        )


def _in_kib(size: int | None) -> int | None:
    # libvirt counts in KiB; what it would round is rounded before it is compared.
    return None if size is None else size // KIB * KIB


def _memory_change(look: _Look, wanted: int, before: int, flags: int, where: str) -> Change:
    return Change(
        f"{human_size(wanted)} {where}",
        lambda: look.domain.setMemoryFlags(wanted // KIB, flags),
        lambda: look.domain.setMemoryFlags(before // KIB, flags),
    )


def _check_balloon(look: _Look, wanted: int) -> None:
    """Raise Refused where the guest says that it uses more than it would keep."""
    stats = look.domain.memoryStats()
    available, usable = stats.get("available"), stats.get("usable")
    if available is None or usable is None or look.live is None:
        return
    used = (available - usable) * KIB
    if used > wanted:
        raise Refused(
            f"the guest {look.name} uses {human_size(used)}, more than the {human_size(wanted)} it would keep",
            "its kernel would kill programs; free memory in the guest first, or --config for the next start",
        )


def _texts(look: _Look, settings: Settings) -> list[Change]:
    changes = []
    for key, wanted, kind in (
        ("title", settings.title, libvirt.VIR_DOMAIN_METADATA_TITLE),
        ("description", settings.description, libvirt.VIR_DOMAIN_METADATA_DESCRIPTION),
    ):
        if wanted is None:
            continue
        _check_text(key, wanted)
        for view, flag in ((look.live, LIVE), (look.config, CONFIG)):
            before = getattr(view, key) if view is not None else None
            if view is not None and (before or "") != wanted:
                changes.append(_text_change(look, key, kind, (wanted, before), flag))
    return changes


def _check_text(key: str, text: str) -> None:
    lines = text.split("\n")
    if key == "title" and len(lines) > 1:
        raise UsageProblem("a title is one line", "--description may have several")
    if any(harmless(line) != line for line in lines):
        raise UsageProblem(f"the {key} has control characters in it, which could harm a terminal", "leave them out")
    if len(text) > 64 * KIB:
        raise UsageProblem(f"the {key} is longer than 64 KiB")


def _text_change(look: _Look, key: str, kind: int, texts: tuple[str, str | None], flag: int) -> Change:
    wanted, before = texts
    return Change(
        f"{key} {'of the running VM' if flag == LIVE else 'in the definition'}",
        lambda: look.domain.setMetadata(kind, wanted or None, None, None, flag),
        lambda: look.domain.setMetadata(kind, before or None, None, None, flag),
    )


def _autostart(look: _Look, settings: Settings) -> list[Change]:
    wanted = settings.autostart
    if wanted is None:
        return []
    if not look.domain.isPersistent():
        raise Conflict(f"{look.name} is transient, so it cannot start with its host")
    hypervisor = Hypervisor(look.domain.connect())
    changes = []
    if bool(look.domain.autostart()) != wanted and not (
        wanted and start_order.starts_with_host(hypervisor, look.domain)
    ):
        changes.append(
            Change(
                f"autostart {'on' if wanted else 'off'}",
                lambda: look.domain.setAutostart(int(wanted)),
                lambda: look.domain.setAutostart(int(not wanted)),
            )
        )
    order = start_order.of(look.domain)
    if not wanted and order is not None:
        changes.append(
            Change(
                "no start order",
                lambda: start_order.note(hypervisor, look.domain, None),
                lambda: start_order.note(hypervisor, look.domain, order),
            )
        )
    return changes


def _tuned(look: _Look, settings: Settings) -> list[Change]:
    found = settings_tuning.steps(
        look.domain, look.name, settings.tuning, look.live is not None, look.config is not None
    )
    return [Change(what, make, undo) for what, make, undo in found]


_CHANGES: tuple[Callable[[_Look, Settings], list[Change]], ...] = (_vcpus, _memory, _texts, _autostart, _tuned)
