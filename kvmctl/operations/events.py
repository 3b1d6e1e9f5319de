"""What happens on a hypervisor, as it happens."""

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import ConnectionFailed
from kvmctl.operations.watch import LIFECYCLE, STOPPED

_LOOK_SECONDS = 0.5
Details = Callable[..., dict[str, Any]]

# libvirt-domain.h, virConnectDomainEventAgentLifecycleState and -Reason.
_AGENT_STATES = (None, "connected", "disconnected")
_BLOCK_JOBS = ("unknown", "pull", "copy", "commit", "active-commit", "backup")
_BLOCK_STATES = ("completed", "failed", "canceled", "ready")
_WATCHDOG = ("none", "pause", "reset", "poweroff", "shutdown", "debug", "inject-nmi")


def _word(words: tuple[str | None, ...], number: int) -> str | None:
    return words[number] if 0 <= number < len(words) else str(number)


def _lifecycle(event: int, detail: int) -> dict[str, Any]:
    what = _word(LIFECYCLE, event)
    return {"what": what, "why": _word(STOPPED, detail) if what == "stopped" else None}


# Event: (libvirt's id, what its callback's own arguments mean).
_KINDS: dict[str, tuple[str, Details]] = {
    "lifecycle": ("LIFECYCLE", _lifecycle),
    "reboot": ("REBOOT", lambda: {}),
    "agent": ("AGENT_LIFECYCLE", lambda state, _reason: {"what": _word(_AGENT_STATES, state)}),
    "watchdog": ("WATCHDOG", lambda action: {"what": _word(_WATCHDOG, action)}),
    "io-error": (
        "IO_ERROR_REASON",
        lambda path, alias, _action, reason: {"disk": alias, "source": path, "why": reason or None},
    ),
    "block-job": (
        "BLOCK_JOB_2",
        lambda disk, kind, status: {
            "disk": disk,
            "job": _word(_BLOCK_JOBS, kind),
            "what": _word(_BLOCK_STATES, status),
        },
    ),
    "job-completed": ("JOB_COMPLETED", lambda stats: {"stats": _numbers(stats)}),
    "migration-iteration": ("MIGRATION_ITERATION", lambda iteration: {"iteration": iteration}),
    "device-added": ("DEVICE_ADDED", lambda alias: {"device": alias}),
    "device-removed": ("DEVICE_REMOVED", lambda alias: {"device": alias}),
    "device-removal-failed": ("DEVICE_REMOVAL_FAILED", lambda alias: {"device": alias}),
    "balloon": ("BALLOON_CHANGE", lambda actual: {"memory_bytes": actual * 1024}),
    "tray": ("TRAY_CHANGE", lambda alias, reason: {"device": alias, "what": "opened" if reason == 0 else "closed"}),
    "metadata": ("METADATA_CHANGE", lambda _kind, namespace: {"namespace": namespace}),
    "clock": ("RTC_CHANGE", lambda offset: {"offset_seconds": offset}),
    "suspend": ("PMSUSPEND", lambda _reason: {}),
    "wakeup": ("PMWAKEUP", lambda _reason: {}),
    "block-threshold": (
        "BLOCK_THRESHOLD",
        lambda disk, path, threshold, excess: {
            "disk": disk,
            "source": path,
            "threshold_bytes": threshold,
            "excess_bytes": excess,
        },
    ),
    "memory-failure": ("MEMORY_FAILURE", lambda *numbers: {"numbers": list(numbers)}),
}
KINDS: tuple[str, ...] = tuple(_KINDS)


def _numbers(stats: Any) -> dict[str, Any]:
    return {str(key): value for key, value in dict(stats).items() if isinstance(value, (int, float, str, bool))}


def follow(
    hypervisor: Hypervisor,
    names: list[str],
    kinds: tuple[str, ...] = (),
    *,
    timeout: float | None = None,
    count: int | None = None,
    ready: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Yield ``{"time", "event", "name", "uuid", ...}`` of VMs ``names`` (all without any) as they come.

    Ends after ``timeout`` seconds or ``count`` events. ``ready`` is called when nothing can be missed any
    more. The connection needs ``events=True``. Raises NotFound, ConnectionFailed when libvirt is lost.
    """
    wanted = {hypervisor.find(name).UUIDString() for name in names}
    arrived: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    ids = []
    with translated(hypervisor.uri):
        try:
            for kind in kinds or KINDS:
                # A libvirt client older than an event does not know its number.
                number = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{_KINDS[kind][0]}", None)
                if number is not None:
                    callback = _callback(kind, _KINDS[kind][1], wanted, arrived)
                    with contextlib.suppress(libvirt.libvirtError):
                        ids.append(hypervisor.conn.domainEventRegisterAny(None, number, callback, None))
            ready()
            yield from _drained(hypervisor, arrived, timeout, count)
        finally:
            for number in ids:
                with contextlib.suppress(libvirt.libvirtError):
                    hypervisor.conn.domainEventDeregisterAny(number)


def _drained(
    hypervisor: Hypervisor, arrived: "queue.SimpleQueue[dict[str, Any]]", timeout: float | None, count: int | None
) -> Iterator[dict[str, Any]]:
    until = None if timeout is None else time.monotonic() + timeout
    seen = 0
    while count is None or seen < count:
        left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - time.monotonic())
        if left < 0:
            return
        try:
            yield arrived.get(timeout=left)
            seen += 1
        except queue.Empty:
            if not hypervisor.conn.isAlive():
                raise ConnectionFailed(
                    f"the connection to {hypervisor.uri} was lost", "is libvirtd still running there?"
                ) from None


def _callback(
    kind: str, details: Details, wanted: set[str], arrived: "queue.SimpleQueue[dict[str, Any]]"
) -> Callable[..., None]:
    def arrive(_conn: object, domain: libvirt.virDomain, *arguments: Any) -> None:
        uuid = domain.UUIDString()
        if wanted and uuid not in wanted:
            return
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind}
        row |= {"name": domain.name(), "uuid": uuid}
        # The last argument is what was registered with the callback.
        arrived.put(row | details(*arguments[:-1]))

    return arrive
