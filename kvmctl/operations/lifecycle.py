"""Verbs that change whether a VM runs: start, stop, reboot, reset, destroy, suspend, resume.

Each is planned (what is true, what would be done) and then run. Being so already is no error, and what
happens between the look and the act is settled by asking libvirt again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.errors import Conflict, Refused, TimedOut
from kvmctl.model import xml
from kvmctl.model.state import ACTIVE, word
from kvmctl.operations import claim, limits, ports
from kvmctl.operations.progress import Progress
from kvmctl.operations.watch import Watch
from kvmctl.preflight import cards, dependents, nics, overcommit

# A guest that boots does not hear the power button yet, so it is pressed again; nova's
# _clean_shutdown() does so as often.
PRESS_AGAIN_SECONDS = 10.0
MODES = {
    "auto": 0,
    "acpi": libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
    "agent": libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
}


@dataclass(frozen=True)
class Plan:
    """What a verb found and would do: ``does`` is None where everything is so already."""

    domain: libvirt.virDomain
    name: str
    uuid: str
    state: str
    verb: str
    does: str | None

    def row(self, state: str | None = None, *, changed: bool | None = None) -> dict[str, Any]:
        """``{"name", "uuid", "state", "changed"}``, of before the deed unless told otherwise."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "state": state if state is not None else self.state,
            "changed": self.does is not None if changed is None else changed,
        }


# verb: ({state: what it does there}, states that are the goal already, what helps in any other).
_VERBS: dict[str, tuple[dict[str, str], frozenset[str], dict[str, str]]] = {
    "start": (
        {"shutoff": "start it", "crashed": "start it"},
        frozenset({"running", "blocked"}),
        {"paused": "resume", "pmsuspended": "resume", "shutdown": "wait --for stopped"},
    ),
    "stop": (
        {
            "running": "ask the guest to shut down",
            "blocked": "ask the guest to shut down",
            "shutdown": "wait for its shutdown",
        },
        frozenset({"shutoff"}),
        {"paused": "resume", "pmsuspended": "resume", "crashed": "destroy"},
    ),
    "destroy": (
        dict.fromkeys(ACTIVE, "power it off"),
        frozenset({"shutoff"}),
        {},
    ),
    "reboot": (
        {"running": "ask the guest to reboot", "blocked": "ask the guest to reboot"},
        frozenset(),
        {"shutoff": "start", "paused": "resume", "pmsuspended": "resume", "crashed": "reset"},
    ),
    "reset": (
        dict.fromkeys(("running", "blocked", "paused", "crashed"), "press its reset button"),
        frozenset(),
        {"shutoff": "start", "pmsuspended": "resume"},
    ),
    "suspend": (
        {"running": "pause it", "blocked": "pause it"},
        frozenset({"paused"}),
        {"shutoff": "start", "pmsuspended": "resume"},
    ),
    "resume": (
        {"paused": "let it run on", "pmsuspended": "wake it up"},
        frozenset({"running", "blocked"}),
        {"shutoff": "start", "crashed": "reset"},
    ),
}


def plan(hypervisor: Hypervisor, verb: str, name: str, *, force: bool = False) -> Plan:
    """Look at VM ``name``. Raises NotFound, and Conflict where ``verb`` makes no sense in its state.

    With ``force``, stop makes sense for a VM that cannot listen (a paused one) too: it is powered off.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        state = state_of(domain)
        shown = domain.name()
        found = Plan(domain, shown, domain.UUIDString(), state, verb, None)
        does, done, helps = _VERBS[verb]
        if state in done:
            return found
        if force and state not in does and state in ACTIVE:
            return Plan(domain, shown, found.uuid, state, verb, "power it off")
        if state not in does:
            raise Conflict(
                f"{shown} is {state}, so {verb} cannot be done",
                f"'kvmctl {helps[state]} {shown}' first" if state in helps else None,
            )
        action = does[state]
        if verb == "resume":
            # A copy that has its source's MAC address still must not run on.
            claim.check_finished(domain)
        if verb == "start":
            tree = xml.parse(domain.XMLDesc(0), "domain")
            dependents.check_ends(hypervisor, tree)
            stood_on = dependents.against_writing(hypervisor, tree)
            if stood_on is not None:
                raise Refused(
                    f"{stood_on}, and would be destroyed under it",
                    f"delete that first, or 'kvmctl clone {shown} NAME' and start the clone",
                )
        if verb == "start" and domain.isPersistent() and domain.hasManagedSaveImage(0):
            action = "resume it from its saved state"
        return Plan(domain, shown, found.uuid, state, verb, action)


def state_of(domain: libvirt.virDomain) -> str:
    """The state's word; a transient domain that has ended (and so is gone) is shutoff."""
    try:
        return word(domain.state(0)[0])
    except libvirt.libvirtError as error:
        if is_missing(error):
            return "shutoff"
        raise


def start(
    hypervisor: Hypervisor, found: Plan, *, paused: bool = False, fresh: bool = False, strict: bool = False
) -> dict[str, Any]:
    """Start it, from its saved state if there is one (``fresh`` throws that away), ``paused`` if wanted.

    Adds ``warnings``: what is not as it should be though the VM runs (a port that could not be published).
    Raises Refused where the host would have promised too much and that is ``strict``.
    """
    warnings: list[str] = []
    if found.does is not None:
        with translated(hypervisor.uri):
            _state, _most, memory, vcpus, _time = found.domain.info()
            too_much = overcommit.check(hypervisor, overcommit.Promise(vcpus, memory * 1024), strict=strict)
            nics.check_start(found.domain, cache(lambda: tuple(cards.everywhere(hypervisor))))
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        flags |= libvirt.VIR_DOMAIN_START_FORCE_BOOT if fresh else 0
        goal = {"running", "blocked", "paused"}
        changed = _act(hypervisor, found, lambda: found.domain.createWithFlags(flags), goal)
        warnings = [*too_much, *ports.reapply(hypervisor, found.domain), *limits.not_in_force(found.domain)]
        return {**found.row(state_of(found.domain), changed=changed), "warnings": warnings}
    return {**found.row(), "warnings": warnings}


def act(hypervisor: Hypervisor, found: Plan) -> dict[str, Any]:
    """Do what needs no waiting: destroy, reset, suspend, resume, and reboot without --wait."""
    if found.does is None:
        return found.row()
    domain = found.domain
    deeds: dict[str, tuple[Callable[[], object], set[str]]] = {
        "destroy": (lambda: domain.destroyFlags(0), {"shutoff"}),
        "reset": (lambda: domain.reset(0), set()),
        "reboot": (lambda: domain.reboot(0), set()),
        "suspend": (domain.suspend, {"paused"}),
        "resume": (
            (lambda: domain.pMWakeup(0)) if found.state == "pmsuspended" else domain.resume,
            {"running", "blocked"},
        ),
    }
    deed, goal = deeds[found.verb]
    changed = _act(hypervisor, found, deed, goal)
    if found.verb == "destroy":
        ports.settle(hypervisor, domain)
    with translated(hypervisor.uri):
        return found.row(state_of(domain), changed=changed)


def reboot(hypervisor: Hypervisor, found: Plan, timeout: float, progress: Progress | None = None) -> dict[str, Any]:
    """Ask for a reboot and return when the guest has really begun anew. Raises TimedOut."""
    (progress or Progress()).step(f"waiting for {found.name} to reboot")
    with Watch(hypervisor, found.domain) as watch, translated(hypervisor.uri):
        row = act(hypervisor, found)
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            event = watch.next(left)
            if event is not None and event.kind == "reboot":
                return row
            if state_of(found.domain) == "shutoff":
                raise Conflict(f"{found.name} shut down instead of rebooting", f"'kvmctl start {found.name}' starts it")
    raise TimedOut(
        f"{found.name} did not reboot within {timeout:g} s",
        f"it may not listen to the power button yet or at all; 'kvmctl reset {found.name}' does not ask it",
    )


def _act(hypervisor: Hypervisor, found: Plan, deed: Callable[[], object], goal: set[str]) -> bool:
    """Do it, and return whether this did it: somebody else may have come first, which is no error."""
    try:
        deed()
    except libvirt.libvirtError as error:
        with translated(hypervisor.uri):
            if found.state not in goal and state_of(found.domain) in goal:
                return False
        raise explain(error, hypervisor.uri) from error
    return True


def stop(
    hypervisor: Hypervisor,
    found: Plan,
    *,
    timeout: float,
    force: bool = False,
    mode: str = "auto",
    wait: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask the guest to shut down and wait until it is off, at most ``timeout`` seconds.

    A guest that did not is powered off with ``force``, else TimedOut is raised and it runs on. Without
    ``wait`` this returns when it was asked.
    """
    if found.does is None:
        return found.row()
    progress = progress or Progress()
    domain = found.domain
    if found.state not in _VERBS["stop"][0]:
        _act(hypervisor, found, lambda: domain.destroyFlags(0), {"shutoff"})
        ports.settle(hypervisor, domain)
        return {**found.row("shutoff", changed=True), "forced": True}
    if not wait:
        _press(hypervisor, found, mode)
        with translated(hypervisor.uri):
            return found.row(state_of(domain), changed=True)
    progress.step(f"waiting for {found.name} to shut down")
    with Watch(hypervisor, domain) as watch, translated(hypervisor.uri):
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0 or timeout <= 0:
            if state_of(domain) != "shutdown":
                _press(hypervisor, found, mode)
            if _gone_off(watch, domain, min(left, PRESS_AGAIN_SECONDS)):
                ports.settle(hypervisor, domain)
                return {**found.row("shutoff", changed=True), "forced": False}
            if timeout <= 0:
                break
        if force:
            progress.step(f"powering {found.name} off")
            _act(hypervisor, found, lambda: domain.destroyFlags(0), {"shutoff"})
            ports.settle(hypervisor, domain)
            return {**found.row("shutoff", changed=True), "forced": True}
    raise TimedOut(
        f"{found.name} did not shut down within {timeout:g} s",
        f"it may not listen to the power button yet or at all; "
        f"'kvmctl stop --force {found.name}' powers it off after --timeout",
    )


def _press(hypervisor: Hypervisor, found: Plan, mode: str) -> None:
    try:
        found.domain.shutdownFlags(MODES[mode])
    except libvirt.libvirtError as error:
        with translated(hypervisor.uri):
            if state_of(found.domain) in ("shutoff", "shutdown"):
                return
        if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE and mode != "agent":
            # The guest's agent hangs or is going down with the rest already: the button needs none.
            found.domain.shutdownFlags(MODES["acpi"])
            return
        raise explain(error, hypervisor.uri) from error


def _gone_off(watch: Watch, domain: libvirt.virDomain, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        if state_of(domain) == "shutoff":
            return True
        left = until - time.monotonic()
        if left <= 0:
            return False
        watch.next(left)


def has_saved_state(found: Plan) -> bool:
    """Whether a managed save is there, from which start would run on."""
    with translated():
        return bool(found.domain.isPersistent() and found.domain.hasManagedSaveImage(0))
