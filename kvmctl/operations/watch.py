"""What happens to one VM, as libvirt's events tell it."""

import contextlib
import queue
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import ConnectionFailed

# virDomainEventType of libvirt-domain.h, in its order and words.
LIFECYCLE = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
)
# virDomainEventStoppedDetailType: why it stopped.
STOPPED = ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from-snapshot")

# How often a silent wait looks whether the connection still stands. This asks nobody: libvirt's own
# keep-alive notices the loss, and isAlive() only tells what it found.
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Event:
    """``kind`` lifecycle (``what`` of LIFECYCLE, ``why`` of STOPPED), agent (connected, disconnected), or reboot."""

    kind: Literal["lifecycle", "agent", "reboot"]
    what: str
    why: str | None = None


class Watch:
    """The events of ``domain`` from when it is entered; leave it and they end.

    The hypervisor must have been opened with ``events=True``. Begin to watch before you look at the state
    or change it: then nothing that happens in between is missed.
    """

    def __init__(self, hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
        self._conn = hypervisor.conn
        self._uri = hypervisor.uri
        self._domain = domain
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ids: list[int] = []

    def __enter__(self) -> "Watch":
        with translated(self._uri):
            for number, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._agent),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot),
            ):
                self._ids.append(self._conn.domainEventRegisterAny(self._domain, number, callback, None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._ids:
            with contextlib.suppress(libvirt.libvirtError):
                self._conn.domainEventDeregisterAny(number)

    def next(self, seconds: float) -> Event | None:
        """The next event, or None after ``seconds`` without one. Raises ConnectionFailed when libvirt is lost."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            try:
                return self._events.get(timeout=max(0.0, min(left, _LOOK_SECONDS)))
            except queue.Empty:
                if not self._conn.isAlive():
                    raise ConnectionFailed(
                        f"the connection to {self._uri} was lost while waiting", "is libvirtd still running there?"
                    ) from None
                if left <= _LOOK_SECONDS:
                    return None

    def _lifecycle(self, _conn: object, _domain: object, event: int, detail: int, _opaque: object) -> None:
        what = LIFECYCLE[event] if event < len(LIFECYCLE) else str(event)
        why = STOPPED[detail] if what == "stopped" and detail < len(STOPPED) else None
        self._events.put(Event("lifecycle", what, why))

    def _agent(self, _conn: object, _domain: object, state: int, _reason: int, _opaque: object) -> None:
        up = state == libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
        self._events.put(Event("agent", "connected" if up else "disconnected"))

    def _reboot(self, _conn: object, _domain: object, _opaque: object) -> None:
        self._events.put(Event("reboot", "rebooted"))
