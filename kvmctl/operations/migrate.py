"""Moving a guest to another host: checked first, steered while it moves, and asked for afterwards.

The source's libvirt talks to the destination's by itself (peer to peer): then the move goes on, or is undone, even
when kvmctl is killed. Where the source cannot open the destination's URI, kvmctl stands between them (managed).
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import ConnectionFailed, Interrupted, KvmctlError, Refused, with_leftovers
from kvmctl.model import metadata as vm_metadata
from kvmctl.model import migration, xml
from kvmctl.model.migration import DiskMove, Note, Wish
from kvmctl.operations import migrate_after, migrate_offline, migrate_storage
from kvmctl.operations.abortable import Asking, abortable
from kvmctl.operations.migrate_steer import Moment, Steer
from kvmctl.operations.migrate_truth import Hosts, Truth, forget_source, settle
from kvmctl.operations.progress import Progress
from kvmctl.preflight import migration as preflight
from kvmctl.preflight import volumes
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides, look
from kvmctl.preflight.reachable import open_destination

# QEMU's first step and the one it adds each time that is not enough, in percent (its defaults: 20 and 10).
THROTTLE_FIRST, THROTTLE_STEP = 20, 20
# libvirt gives a dead connection up after 30 s. QEMU, copying a disk, waits for TCP, which takes a quarter of an hour.
STALLED_SECONDS = 45.0
# How long QEMU may take to hear that it is to end; it does not while its disks wait for a dead link.
ABORT_SECONDS = 10.0
# How long a cancelled migration may take to end, before kvmctl says what is true without it.
CANCEL_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What was seen on both sides and what shall be done."""

    sides: Sides
    checks: tuple[Check, ...]
    moves: tuple[DiskMove, ...]
    verdict: str
    autostart: bool

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.sides.name

    def as_check(self) -> dict[str, Any]:
        """``{"verdict", "checks"}``, with ``name``, ``source`` and ``destination``."""
        return {
            "name": self.name,
            "source": self.sides.source.uri,
            "destination": self.sides.wish.destination,
            "verdict": self.verdict,
            "checks": [check.as_dict() for check in self.checks],
        }

    def steps(self) -> list[str]:
        """What run() would do, in words."""
        kind = "definition" if self.sides.wish.offline else f"{self.sides.state} guest"
        copies = [
            f"copy disk {m.target} to {m.path} in pool {m.pool}, then remove nothing here"
            for m in self.moves
            if m.action == "copy"
        ]
        return [
            *copies,
            f"send the {kind} {self.name} to {self.sides.wish.destination}",
            "set autostart, metadata, reservations and published ports there, and take the definition away here",
        ]


def plan(source: Hypervisor, name: str, wish: Wish) -> Plan:
    """Look at both sides. Raises NotFound, ConnectionFailed, UsageProblem; a refusal is in the plan."""
    domain = source.find(name)
    destination = open_destination(wish.destination)
    sides = look(source, destination, domain, wish)
    found = preflight.judge(sides)
    with translated(source.uri):
        autostart = bool(domain.autostart()) if domain.isPersistent() else False
    return Plan(sides, found.checks, found.moves, found.verdict, autostart)


def require(found: Plan) -> None:
    """Raise Refused with every reason, where the checks say no."""
    refusals = [check for check in found.checks if check.level == "refused"]
    if not refusals:
        return
    first = refusals[0]
    more = "".join(f"; {check.name}: {check.detail}" for check in refusals[1:])
    raise Refused(f"{found.name} cannot move: {first.name}: {first.detail}{more}", first.hint)


def run(found: Plan, progress: Progress, tell: Callable[[Moment], object]) -> dict[str, Any]:
    """Do it. Returns the contract's object; on failure the guest is where the error says."""
    require(found)
    began = time.monotonic()
    if found.sides.wish.offline:
        result = migrate_offline.run(found.sides, found.moves, found.autostart, progress)
    else:
        result = _Move(found, progress, tell).run()
    result["total_seconds"] = round(time.monotonic() - began, 3)
    result["checks"] = [check.as_dict() for check in found.checks]
    return result


@dataclass
class _Move:
    """One live migration: its steps, what it made, and what it has to put right."""

    found: Plan
    progress: Progress
    tell: Callable[[Moment], object]
    made: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sides = self.found.sides
        self.sides = sides
        self.steer = Steer(sides.domain, sides.wish, self.tell)
        self.hosts = Hosts(sides.source, sides.destination, sides.wish.destination, sides.uuid)
        self._sent = (0, time.monotonic())
        self._asking: Asking[None] | None = None

    def run(self) -> dict[str, Any]:
        """Prepare, move, and say the truth about it."""
        try:
            self._prepare()
            self.progress.step(f"moving {self.sides.name}")
            self._send()
        except BaseException as error:  # noqa: BLE001 - whatever happened, both hosts are asked; it is raised again
            return self._after_failure(error)
        return self._after_success(settle(self.hosts, self.sides.state))

    def _prepare(self) -> None:
        self._note()
        for move in self.found.moves:
            if move.action != "copy" or move.pool is None:
                continue
            self.made.append((move.pool, migrate_storage.name_of(move)))
            # Noted before it is made: whoever finds this after a kill -9 knows what to remove.
            self._note()
            if move.readonly:
                migrate_storage.send(self.sides.source, self.sides.destination, move, self.progress)
            else:
                migrate_storage.make(self.sides.destination, move)
        with translated(self.sides.source.uri):
            self.steer.first_limit()

    def _note(self) -> None:
        note = Note(
            self.sides.source.uri, self.sides.wish.destination, tuple(self.made), autostart=self.found.autostart
        )
        migrate_after.write_note(self.sides.domain, note)

    def _send(self) -> None:
        """Peer to peer where the source can open the URI, else by way of this process."""
        sides = self.sides
        flags, parameters = self._flags(), self._parameters()
        if sides.destination.is_remote:
            try:
                self._call(
                    lambda: sides.domain.migrateToURI3(
                        sides.destination.uri, parameters, flags | libvirt.VIR_MIGRATE_PEER2PEER
                    )
                )
                return
            except libvirt.libvirtError as error:
                if not self._never_began(error):
                    raise
        self._call(lambda: sides.domain.migrate3(sides.destination.conn, parameters, flags))

    def _never_began(self, error: libvirt.libvirtError) -> bool:
        """Whether the source's libvirt could not even open the destination's URI (its keys are not this user's)."""
        sent = self.steer.last.transferred_bytes if self.steer.last is not None else 0
        if sent or not isinstance(explain(error), ConnectionFailed):
            return False
        here, there = self.hosts.see("source"), self.hosts.see("destination")
        return here.word == self.sides.state and there.word == "absent"

    def _call(self, call: Callable[[], object]) -> None:
        abortable(call, abort=self._abort, tick=self._tick, patience=CANCEL_SECONDS)

    def _tick(self) -> None:
        # Neither the deadline, nor Ctrl-C, nor the move's own end may wait for an answer: a QEMU whose disks wait for a
        # dead link gives none. So the answer is looked for at the next tick.
        asking = self._asking
        if asking is None or asking.ended():
            self._asking = Asking(self.steer.tick)
            if asking is not None:
                asking.result()
                self._stalled()
            return
        self.steer.check_deadline()
        if asking.seconds > STALLED_SECONDS and self.steer.given_up is None:
            self.steer.given_up = KvmctlError(
                f"the guest's QEMU has answered nothing for {STALLED_SECONDS:g} s",
                f"is the link to {self.sides.wish.destination} up?",
            )
            raise self.steer.given_up

    def _stalled(self) -> None:
        """Raise ConnectionFailed where nothing is sent any more and the destination does not answer either."""
        last = self.steer.last
        if last is None or self.steer.postcopy or self.steer.given_up is not None:
            return
        sent, since = self._sent
        if last.transferred_bytes != sent:
            self._sent = (last.transferred_bytes, time.monotonic())
        elif time.monotonic() - since > STALLED_SECONDS and not self.sides.destination.conn.isAlive():
            uri = self.sides.wish.destination
            self.steer.given_up = ConnectionFailed(
                f"nothing was sent for {STALLED_SECONDS:g} s, and {uri} does not answer", "is the link between them up?"
            )
            raise self.steer.given_up

    def _abort(self) -> bool:
        """Have libvirt cancel it; False where nobody listens."""
        if self.steer.postcopy:
            # There is no way back from here: the guest runs on the other side already.
            return True
        self.progress.step("cancelling, the guest stays where it is")
        cancelling = Asking(self._cancel)
        if not cancelling.ended(ABORT_SECONDS):
            return False
        cancelling.result()
        return True

    def _cancel(self) -> None:
        # The call may not have begun yet when it is to be cancelled.
        for _ in range(20):
            try:
                self.sides.domain.abortJob()
                return
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                    raise
                time.sleep(0.1)

    def _flags(self) -> int:
        wish = self.sides.wish
        flags: int = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_AUTO_CONVERGE
        if self.sides.config is not None:
            flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        if wish.postcopy != "never":
            flags |= libvirt.VIR_MIGRATE_POSTCOPY
        if wish.connections is not None:
            flags |= libvirt.VIR_MIGRATE_PARALLEL
        if wish.compress:
            flags |= libvirt.VIR_MIGRATE_COMPRESSED
        if wish.tls:
            flags |= libvirt.VIR_MIGRATE_TLS
        if any(move.unsafe for move in self.found.moves):
            flags |= libvirt.VIR_MIGRATE_UNSAFE
        if self._copied_by_qemu():
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC if wish.copy == "top" else libvirt.VIR_MIGRATE_NON_SHARED_DISK
        return flags

    def _copied_by_qemu(self) -> list[str]:
        return [m.target for m in self.found.moves if m.action == "copy" and not m.readonly]

    def _parameters(self) -> dict[str, Any]:
        wish = self.sides.wish
        parameters: dict[str, Any] = {
            libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL: THROTTLE_FIRST,
            libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT: THROTTLE_STEP,
        }
        if wish.bandwidth is not None:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, round(wish.bandwidth / 1024**2))
        if wish.connections is not None:
            parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = wish.connections
        if disks := self._copied_by_qemu():
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = disks
        if any(move.action == "copy" for move in self.found.moves):
            live, config = self._there()
            parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = live
            if config is not None:
                parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = config
        return parameters

    def _there(self) -> tuple[str, str | None]:
        """The domain as the destination shall have it, running and saved, with the disks' places there."""
        there = volumes.pools(self.sides.destination)
        with translated(self.sides.source.uri):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            texts = [self.sides.domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_MIGRATABLE)]
            if self.sides.config is not None:
                texts.append(self.sides.domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE))
        trees = []
        for text in texts:
            tree = migration.moved_disks(xml.parse(text, "domain", "domain"), self.found.moves)
            migration.strip(tree)
            if tree.find(f"metadata/{{{vm_metadata.NAMESPACE}}}vm") is not None:
                known = migrate_storage.owned_there(vm_metadata.from_domain(tree), self.found.moves, there)
                vm_metadata.put(tree, known)
            trees.append(xml.raw(tree))
        return trees[0], trees[1] if len(trees) > 1 else None

    def _after_success(self, truth: Truth) -> dict[str, Any]:
        if truth.place != "destination":
            raise KvmctlError(f"libvirt reports success, but {truth.sentence}", self._recover_hint())
        with _undisturbed():
            forget_source(self.hosts)
            warnings = migrate_after.arrive(self.hosts, self.found.autostart)
        return self._result(truth, warnings)

    def _after_failure(self, error: BaseException) -> dict[str, Any]:
        """Ask both hosts, put right what can be, and raise what happened with what is true now."""
        with _undisturbed():
            self.progress.step("asking both hosts what is true")
            truth = settle(self.hosts, self.sides.state)
            if truth.place == "destination":
                # Too late to be stopped, or the last word got lost: it has moved.
                forget_source(self.hosts)
                warnings = migrate_after.arrive(self.hosts, self.found.autostart)
                cause = _as_kvmctl(error, self.sides.wish.destination).message
                return self._result(truth, [f"{cause}; but the guest had moved already", *warnings])
            left: list[str] = []
            if truth.never_arrived:
                left = self._tidy(truth.settled)
        raise self._told(error, truth, left) from error

    def _tidy(self, settled: bool) -> list[str]:
        """Nothing left over: no volume on the destination; no note in the guest's metadata that --recover may need."""
        left = []
        if self.made:
            try:
                left = migrate_storage.delete(self.hosts.hypervisor("destination"), self.made)
            except (KvmctlError, libvirt.libvirtError) as error:
                left = [f"volume {name} of pool {pool} ({error})" for pool, name in self.made]
        if settled and not left:
            with contextlib.suppress(KvmctlError, libvirt.libvirtError):
                migrate_after.remove_note(self.hosts.domain("source"))
        return left

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
        downtime = stats.get("downtime") if not paused else None
        last = self.steer.last
        transferred = stats.get("data_processed", last.transferred_bytes if last is not None else None)
        limit = wish.max_downtime * 1000
        return {
            "name": self.sides.name,
            "source": self.hosts.source_uri,
            "destination": self.hosts.destination_uri,
            "state": truth.destination.word,
            "total_seconds": 0.0,
            "downtime_ms": downtime,
            "max_downtime_ms": round(limit, 3),
            "within_max_downtime": downtime <= limit if downtime is not None else None,
            "transferred_bytes": transferred,
            "iterations": stats.get("memory_iteration", last.iteration if last is not None else None),
            "strategy": self.steer.strategy,
            "warnings": warnings,
        }


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
    held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
