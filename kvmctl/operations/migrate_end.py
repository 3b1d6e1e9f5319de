"""The end of a move, good or bad: both hosts are asked what is true, and put in order."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import libvirt

from kvmctl.connection import explain
from kvmctl.errors import ConnectionFailed, Interrupted, KvmctlError, with_leftovers
from kvmctl.operations import migrate_after, migrate_pause
from kvmctl.operations.migrate_note import remove_note
from kvmctl.operations.migrate_steer import Steer
from kvmctl.operations.migrate_truth import Hosts, Truth, forget_source, settle
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import disregard
from kvmctl.preflight.migration_sides import Sides

# A copy ends at once where its connection lives or is seen to be dead; else TCP decides, and --recover waits for it.
COPY_SECONDS = 10.0


class End:
    """Call succeeded() or failed() once. ``made``: the volumes made on the destination, as (pool, name)."""

    def __init__(
        self, sides: Sides, autostart: bool, made: list[tuple[str, str]], steer: Steer, progress: Progress
    ) -> None:
        self.sides, self.autostart, self.made, self.steer, self.progress = sides, autostart, made, steer, progress
        self.hosts = Hosts(sides.source, sides.destination, sides.wish.destination, sides.uuid)

    def succeeded(self) -> dict[str, Any]:
        """libvirt says that it has moved: put the rest in order there, and return the contract's object."""
        with _undisturbed():
            truth = settle(self.hosts, self.sides.state)
            if truth.place != "destination":
                raise KvmctlError(f"libvirt reports success, but {truth.sentence}", self._recover_hint())
            forget_source(self.hosts)
            warnings = migrate_after.arrive(self.hosts, self.autostart)
            return self._result(truth, warnings)

    def failed(self, error: BaseException) -> dict[str, Any]:
        """Ask both hosts, put right what can be, and raise what happened with what is true now."""
        with _undisturbed():
            self.progress.step("asking both hosts what is true")
            truth = settle(self.hosts, self.sides.state)
            if truth.place == "destination":
                # Too late to be stopped, or the last word got lost: it has moved.
                forget_source(self.hosts)
                warnings = migrate_after.arrive(self.hosts, self.autostart)
                cause = _as_kvmctl(error, self.sides.wish.destination).message
                return self._result(truth, [f"{cause}; but the guest had moved already", *warnings])
            left: list[str] = []
            if truth.never_arrived:
                left = self._tidy(truth)
        raise self._told(error, truth, left) from error

    def _tidy(self, truth: Truth) -> list[str]:
        """Nothing left over: no volume on the destination; no note in the guest's metadata that --recover may need."""
        left = self._give_back(truth)
        if self.made:
            left += self._tidy_copies()
        if truth.settled and not left:
            with contextlib.suppress(KvmctlError, libvirt.libvirtError):
                remove_note(self.hosts.domain("source"))
        return left

    def _give_back(self, truth: Truth) -> list[str]:
        if not truth.settled or truth.place != "source":
            return []
        from kvmctl.operations import migrate_reclaim

        try:
            problem = migrate_reclaim.reclaim(self.hosts.domain("source"), self.sides.state, COPY_SECONDS)
        except (KvmctlError, libvirt.libvirtError) as error:
            return [f"the guest's disks ({error})"]
        return [problem] if problem else []

    def _tidy_copies(self) -> list[str]:
        from kvmctl.operations import migrate_storage

        try:
            return migrate_storage.delete(self.hosts.hypervisor("destination"), self.made)
        except (KvmctlError, libvirt.libvirtError) as error:
            return [f"volume {name} of pool {pool} ({error})" for pool, name in self.made]

    def _told(self, error: BaseException, truth: Truth, left: list[str]) -> KvmctlError:
        cause = self.steer.given_up or _as_kvmctl(error, self.sides.wish.destination)
        told = type(cause)(f"{self.sides.name} was not moved: {cause.message}; {truth.sentence}", cause.hint)
        if not truth.settled:
            told.hint = f"{told.hint}; {self._recover_hint()}" if told.hint else self._recover_hint()
        return with_leftovers(told, left)

    def _recover_hint(self) -> str:
        return f"'kvmctl migrate {self.sides.name} {self.sides.wish.destination} --recover' puts it right"

    def _result(self, truth: Truth, warnings: list[str]) -> dict[str, Any]:
        stats = migrate_after.completed(self.hosts)
        wish = self.sides.wish
        paused = self.sides.state == "paused"
        pause = migrate_pause.read(stats, self._round_trip)
        if paused:
            pause = migrate_pause.Pause(None, pause.apart)
        last = self.steer.last
        transferred = stats.get("data_processed", last.transferred_bytes if last is not None else None)
        limit = wish.max_downtime * 1000
        return {
            "name": self.sides.name,
            "source": self.hosts.source_uri,
            "destination": self.hosts.destination_uri,
            "state": truth.destination.word,
            "total_seconds": 0.0,
            "downtime_ms": pause.ms,
            "max_downtime_ms": round(limit, 3),
            "within_max_downtime": pause.within(limit),
            "transferred_bytes": transferred,
            "iterations": stats.get("memory_iteration", last.iteration if last is not None else None),
            "strategy": self.steer.strategy,
            "warnings": [*warnings, *pause.warnings()],
        }

    def _round_trip(self) -> float:
        """How many seconds a question to the destination takes."""
        began = time.monotonic()
        with contextlib.suppress(KvmctlError, libvirt.libvirtError):
            self.hosts.hypervisor("destination").conn.getLibVersion()
        return time.monotonic() - began


def _as_kvmctl(error: BaseException, uri: str) -> KvmctlError:
    if isinstance(error, KvmctlError):
        return error
    if isinstance(error, libvirt.libvirtError):
        found = explain(error)
        if isinstance(found, ConnectionFailed):
            found.hint = f"is {uri} still up, and the network between the hosts?"
        return found
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    return KvmctlError(f"unexpected {type(error).__name__}: {error}")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM: putting both hosts right must not stop half-way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.signal(number, disregard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
