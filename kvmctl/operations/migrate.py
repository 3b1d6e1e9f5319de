"""Moving a guest to another host: checked first, steered while it moves, and asked for afterwards.

The source's libvirt talks to the destination's by itself (peer to peer): then the move goes on, or is undone, even
when kvmctl is killed. Where the source cannot open the destination's URI, kvmctl stands between them (managed).
"""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import ConnectionFailed, KvmctlError, Refused
from kvmctl.model.migration import DiskMove, Note, Wish
from kvmctl.operations.abortable import abortable
from kvmctl.operations.migrate_note import write_note
from kvmctl.operations.migrate_steer import Moment, Steer
from kvmctl.operations.progress import Progress
from kvmctl.preflight import migration as preflight
from kvmctl.preflight.asking import Asking
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides, look
from kvmctl.preflight.reachable import open_destination

if TYPE_CHECKING:
    from kvmctl.operations.migrate_end import End

# QEMU's first step and the one it adds each time that is not enough, in percent (its defaults: 20 and 10).
THROTTLE_FIRST, THROTTLE_STEP = 20, 20
# libvirt gives a dead connection up after 30 s. QEMU, copying a disk, waits for TCP, which takes a quarter of an hour.
STALLED_SECONDS = 45.0
# How long QEMU may take to hear that it is to end; it does not while its disks wait for a dead link.
ABORT_SECONDS = 10.0
# How long a cancelled migration may take to end, before kvmctl says what is true without it.
CANCEL_SECONDS = 60.0
# How often it is looked at. QEMU reckons anew ten times a second, and a small guest is over there within half of one.
LOOK_SECONDS = 0.05


class Plan(NamedTuple):
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
            f"copy disk {m.target} to {m.path} in pool {m.pool}; the one here stays"
            for m in self.moves
            if m.action == "copy"
        ]
        return [
            *copies,
            f"send the {kind} {self.name} to {self.sides.wish.destination}",
            "set autostart, metadata, reservations and published ports there, and take the definition away here",
        ]


def plan(source: Hypervisor, name: str, wish: Wish, opening: Asking[Hypervisor] | None = None) -> Plan:
    """Look at both sides. Raises NotFound, ConnectionFailed, UsageProblem; a refusal is in the plan.

    ``opening``: open_destination() under way, where the caller has begun it already.
    """
    domain = source.find(name)
    destination = opening.result() if opening is not None else open_destination(wish.destination)
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
        from kvmctl.operations import migrate_offline

        result = migrate_offline.run(found.sides, found.moves, found.autostart, progress)
    else:
        result = _Move(found, progress, tell).run()
    result["total_seconds"] = round(time.monotonic() - began, 3)
    result["checks"] = [check.as_dict() for check in found.checks]
    return result


class _Move:
    """One live migration: its steps, and what it made on the way."""

    def __init__(self, found: Plan, progress: Progress, tell: Callable[[Moment], object]) -> None:
        self.found, self.progress, self.sides = found, progress, found.sides
        self.steer = Steer(self.sides.domain, self.sides.wish, tell)
        self.made: list[tuple[str, str]] = []
        self._sent = (0, time.monotonic())
        self._asking: Asking[None] | None = None

    @functools.cached_property
    def end(self) -> "End":
        """What is done when the move is over. Imported while libvirt works, so that it does not begin later."""
        from kvmctl.operations.migrate_end import End

        return End(self.sides, self.found.autostart, self.made, self.steer, self.progress)

    def run(self) -> dict[str, Any]:
        """Prepare, move, and say the truth about it."""
        try:
            self._prepare()
            self.progress.step(f"moving {self.sides.name}")
            self._send()
        except BaseException as error:  # noqa: BLE001 - whatever happened, both hosts are asked; it is raised again
            return self.end.failed(error)
        return self.end.succeeded()

    def _prepare(self) -> None:
        self._note()
        for move in self.found.moves:
            if move.action != "copy" or move.pool is None:
                continue
            from kvmctl.operations import migrate_storage

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
        write_note(self.sides.domain, note)

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
        here, there = self.end.hosts.see("source"), self.end.hosts.see("destination")
        return here.word == self.sides.state and there.word == "absent"

    def _call(self, call: Callable[[], object]) -> None:
        abortable(call, abort=self._abort, tick=self._tick, patience=CANCEL_SECONDS, every=LOOK_SECONDS)

    def _tick(self) -> None:
        # Neither the deadline, nor Ctrl-C, nor the move's own end may wait for an answer: a QEMU whose disks wait for a
        # dead link gives none. So the answer is looked for at the next tick.
        _ = self.end
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
            from kvmctl.operations import migrate_storage

            there = functools.partial(migrate_storage.definition_there, self.sides, self.found.moves)
            parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = there(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            if self.sides.config is not None:
                parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = there(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return parameters
