"""Watching a migration under way and steering it: as little pause as promised, or none at all.

QEMU stops the guest when what is left to send fits into its downtime limit. That limit is only the time for the
memory: stopping the guest, sending its devices, and the two libvirts' agreeing on it come on top (20 ms and more).
So kvmctl begins with a limit well below the promise, and lets it grow only as far as the guest makes it.
"""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import libvirt

from kvmctl.errors import KvmctlError, TimedOut
from kvmctl.model.migration import Wish
from kvmctl.model.units import human_duration, human_size

# "setup": QEMU or libvirt prepares, and nothing is sent.
Phase = Literal["setup", "disks", "memory", "post-copy"]

# Parts of the promised pause that the memory may take, by how many times QEMU has gone over it. Measured with an idle
# guest, six moves each in turn: limits of 3, 6, 9, 15 and 300 ms gave 18, 18, 20, 30 and 66 ms of pause in median, and
# at most 36, 24, 28, 48 and 143. The first is what counts for a small guest: QEMU reckons anew after 100 ms.
FIRST, LATER, LAST = 0.3, 0.4, 0.85
PATIENT_ROUNDS, LAST_ROUNDS = 12, 30
# QEMU's limit is raised by no more than this, at first and later: a guest that gets busy in the next moment would pay.
SOON_UNDERRATED, MOST_UNDERRATED = 8.0, 30.0
# Of compressed pages no more than this is believed, for the same reason: what a page shrank to, as a part of it.
LEAST_SHRUNK = 0.125
# Above this QEMU slows the guest's CPUs no further (its max-cpu-throttle is 99).
FULL_THROTTLE = 95
# How long the guest may be slowed down to the utmost, in vain, before post-copy or giving up.
IN_VAIN_SECONDS = 20.0
# The parts of the timeout after which post-copy, where allowed, is what is left to do.
PRESSING, PRESSING_AT_ONCE = 0.6, 0.7
# What must be left of the timeout when the migration is cancelled, so that the end comes before it.
MARGIN_SECONDS = 1.0


class Moment(NamedTuple):
    """How far it is. Bytes and bytes a second; None where QEMU does not say yet."""

    phase: Phase
    elapsed_seconds: float
    total_bytes: int
    remaining_bytes: int
    transferred_bytes: int
    bytes_per_second: int | None
    dirty_bytes_per_second: int | None
    iteration: int
    throttle_percent: int
    expected_downtime_ms: int | None

    def as_dict(self) -> dict[str, Any]:
        """The keys of one line of progress."""
        return self._asdict()


def read(stats: dict[str, Any], postcopy: bool) -> Moment:
    """libvirt's job statistics (virDomainGetJobStats) as a Moment."""
    disk_left = int(stats.get("disk_remaining", 0))
    started = bool(stats.get("memory_iteration") or stats.get("memory_processed"))
    page = int(stats.get("memory_page_size", 4096))
    dirty = stats.get("memory_dirty_rate")
    # virDomainGetJobStats: bandwidth in bytes a second, the dirty rate in pages.
    bps = stats.get("memory_bps") if started else stats.get("disk_bps")
    return Moment(
        phase="post-copy" if postcopy else "memory" if started else "disks" if disk_left else "setup",
        elapsed_seconds=round(int(stats.get("time_elapsed", 0)) / 1000, 3),
        total_bytes=int(stats.get("data_total", 0)),
        remaining_bytes=int(stats.get("data_remaining", 0)),
        transferred_bytes=int(stats.get("data_processed", 0)),
        bytes_per_second=int(bps) if bps is not None else None,
        dirty_bytes_per_second=int(dirty) * page if dirty is not None else None,
        iteration=int(stats.get("memory_iteration", 0)),
        throttle_percent=int(stats.get("auto_converge_throttle", 0)),
        expected_downtime_ms=int(stats["downtime"]) if "downtime" in stats else None,
    )


class Steer:
    """Call tick() a few times a second while the migration runs; it raises when it is to be cancelled."""

    def __init__(self, domain: libvirt.virDomain, wish: Wish, tell: Callable[[Moment], object]) -> None:
        self.domain, self.wish, self.tell = domain, wish, tell
        self.began = time.monotonic()
        self.limit_ms = 0
        self.postcopy = False
        self.throttled = False
        self.given_up: KvmctlError | None = None
        self.last: Moment | None = None
        self._in_vain_since: float | None = None
        # The fastest that was seen, in bytes a second.
        self._peak = 0
        # With compression: bytes and pages sent when last looked at, and what a page cost since, as a part of it.
        self._paid = (0, 0)
        self._shrunk = 1.0

    def first_limit(self) -> None:
        """Set QEMU's limit before the migration starts: its own is 300 ms.

        Not later, while the other side starts its QEMU: libvirt lets this beside the move, but one that came at its
        beginning was seen to wait for the end of it all, probably as the job had begun and not yet said so.
        """
        self._limit(FIRST)

    def _limit(self, part: float, factor: float = 1.0) -> None:
        wanted = max(1, round(self.wish.max_downtime * 1000 * part * factor))
        # Little changes are not worth a question to QEMU, which moves the guest meanwhile.
        if abs(wanted - self.limit_ms) * 5 > self.limit_ms:
            self.domain.migrateSetMaxDowntime(wanted, 0)
            self.limit_ms = wanted

    def tick(self) -> None:
        """Look, tell, steer. Raises TimedOut or KvmctlError when it shall be given up."""
        if self.given_up is not None:
            return
        self.check_deadline()
        stats = self.domain.jobStats(0)
        if stats.get("type") == libvirt.VIR_DOMAIN_JOB_NONE:
            return
        now = read(stats, self.postcopy)
        self.last = now
        self.throttled = self.throttled or now.throttle_percent > 0
        if now.phase == "memory":
            self._peak = max(self._peak, now.bytes_per_second or 0)
            self._learn(stats)
        self.tell(now)
        if self.postcopy or now.iteration == 0:
            return
        self._grow(now)
        if self.wish.postcopy == "now" and now.iteration >= 2:
            self._switch()
        elif self._in_vain(now):
            if self.wish.postcopy == "auto":
                self._switch()
            else:
                self._give_up(self._does_not_converge(now))

    def _grow(self, now: Moment) -> None:
        if now.iteration < 2:
            return
        if now.throttle_percent >= FULL_THROTTLE or now.iteration >= LAST_ROUNDS:
            part, most = LAST, MOST_UNDERRATED
        elif now.iteration >= PATIENT_ROUNDS:
            part, most = LATER, MOST_UNDERRATED
        else:
            part, most = FIRST, SOON_UNDERRATED
        self._limit(part, min(self._underrated(now, part), most))

    def _learn(self, stats: dict[str, Any]) -> None:
        """See what the pages since the last time cost, that QEMU counts whole when it reckons what is left."""
        sent = int(stats.get("memory_processed", 0))
        pages = sum(int(stats.get(key, 0)) for key in ("memory_constant", "memory_normal", "compression_pages"))
        before, self._paid = self._paid, (sent, pages)
        if pages > before[1]:
            whole = (pages - before[1]) * int(stats.get("memory_page_size", 4096))
            self._shrunk = min(1.0, max(LEAST_SHRUNK, (sent - before[0]) / whole))

    def _underrated(self, now: Moment, part: float) -> float:
        """By how much QEMU takes the link for slower than it is, where that alone keeps it from finishing.

        It reckons with what it sent in the last tenth of a second. Of a guest that changes little that is little,
        and so it would go round and round over a rest that takes a moment to send. Where the rest fits into this
        part of the promise at the speed that was seen before, QEMU's limit is raised by as much as it is wrong. So it
        is where pages shrink: both the little that was sent, and a rest counted as if they did not, are wrong then.
        """
        if not now.bytes_per_second:
            return 1.0
        if now.remaining_bytes * self._shrunk > self._peak * self.wish.max_downtime * part:
            return 1.0
        return max(1.0, self._peak / now.bytes_per_second / self._shrunk)

    def _in_vain(self, now: Moment) -> bool:
        """Whether all that slows the guest down has not helped for long enough, or time presses."""
        clock = time.monotonic()
        if now.throttle_percent >= FULL_THROTTLE:
            self._in_vain_since = self._in_vain_since or clock
            return clock - self._in_vain_since > IN_VAIN_SECONDS
        if self.wish.timeout is not None and self.wish.postcopy == "auto":
            # Better when all of the memory has been sent once; on a slow link that may take longer than there is time.
            spent = (clock - self.began) / self.wish.timeout
            return spent > PRESSING_AT_ONCE or (now.iteration >= 3 and spent > PRESSING)
        return False

    def _switch(self) -> None:
        try:
            self.domain.migrateStartPostCopy(0)
        except libvirt.libvirtError:
            # Just finishing, or not possible in this moment: the next tick tries again.
            return
        self.postcopy = True

    def check_deadline(self) -> None:
        """Raise TimedOut where it has taken too long; asks nobody. Does nothing where it was given up already."""
        timeout = self.wish.timeout
        if self.given_up is not None:
            return
        # Once the guest runs on the other side with its memory still coming, there is no way back.
        if timeout is None or self.postcopy:
            return
        if time.monotonic() - self.began > max(timeout - MARGIN_SECONDS, timeout * 0.8):
            why = f": {self._rates(self.last)}" if self.last is not None and self.last.iteration > 1 else ""
            self._give_up(TimedOut(f"not finished within {human_duration(timeout)}{why}", _ways_out(self.wish)))

    def _give_up(self, error: KvmctlError) -> None:
        self.given_up = error
        raise error

    def _does_not_converge(self, now: Moment) -> KvmctlError:
        return KvmctlError(
            f"the guest changes its memory faster than it can be sent: {self._rates(now)}", _ways_out(self.wish)
        )

    @staticmethod
    def _rates(now: Moment | None) -> str:
        if now is None:
            return "nothing known of its progress"
        return (
            f"{human_size(now.dirty_bytes_per_second)}/s changed, {human_size(now.bytes_per_second)}/s sent, "
            f"{human_size(now.remaining_bytes)} left in round {now.iteration}"
        )

    @property
    def strategy(self) -> str:
        """What it took: ``pre-copy``, ``auto-converge``, or ``post-copy``."""
        if self.postcopy:
            return "post-copy"
        return "auto-converge" if self.throttled else "pre-copy"


def _ways_out(wish: Wish) -> str:
    ways = ["a longer --max-downtime or --timeout", "a quieter guest"]
    if wish.bandwidth is not None:
        ways.insert(0, "more --bandwidth")
    if wish.postcopy == "never":
        ways.append("--postcopy auto")
    return f"what helps: {', '.join(ways)}"
