"""Steering a migration by what libvirt's statistics say, with a domain that only remembers what it was told."""

from typing import Any

import libvirt
import pytest

from kvmctl.errors import KvmctlError, TimedOut
from kvmctl.model.migration import Wish
from kvmctl.operations import migrate_steer
from kvmctl.operations.migrate_steer import Moment, Steer

STATS = {
    "type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
    "time_elapsed": 1500,
    "data_total": 1000,
    "data_remaining": 400,
    "data_processed": 600,
    "memory_total": 1000,
    "memory_processed": 600,
    "memory_iteration": 1,
    "memory_page_size": 4096,
    "memory_dirty_rate": 10,
    "memory_bps": 2**20,
}


class Domain:
    """Answers jobStats with ``stats`` and notes what it is told."""

    def __init__(self, **stats: int) -> None:
        self.stats: dict[str, Any] = {**STATS, **stats}
        self.limits: list[int] = []
        self.postcopy = 0

    def jobStats(self, _flags: int) -> dict[str, Any]:
        return self.stats

    def migrateSetMaxDowntime(self, limit: int, _flags: int) -> None:
        self.limits.append(limit)

    def migrateStartPostCopy(self, _flags: int) -> None:
        self.postcopy += 1


def steer(domain: Domain, **wish: Any) -> tuple[Steer, list[Moment]]:
    told: list[Moment] = []
    return Steer(domain, Wish("qemu+tcp://b/system", **wish), told.append), told


def test_reads_statistics() -> None:
    _, told = made = steer(Domain())
    made[0].tick()
    assert told[0] == Moment("memory", 1.5, 1000, 400, 600, 2**20, 40960, 1, 0, None)
    assert list(told[0].as_dict()) == list(Moment._fields)


def test_disks_come_first() -> None:
    domain = Domain(memory_iteration=0, memory_processed=0, disk_remaining=5)
    made, told = steer(domain)
    made.tick()
    assert told[0].phase == "disks"
    domain.stats["disk_remaining"] = 0
    made.tick()
    assert told[1].phase == "setup"


def test_the_limit_begins_below_the_promise_and_never_passes_it() -> None:
    domain = Domain()
    made, _ = steer(domain, max_downtime=0.03)
    made.first_limit()
    for iteration in range(1, 60):
        domain.stats["memory_iteration"] = iteration
        made.tick()
    assert domain.limits[0] < 15 and domain.limits == sorted(set(domain.limits)) and domain.limits[-1] <= 30


def test_a_link_that_qemu_takes_for_slow_does_not_keep_it_from_finishing() -> None:
    """The rest would be sent in 4 ms at the speed of before; QEMU reckons with a hundredth of that."""
    domain = Domain(memory_bps=200 * 2**20, data_remaining=50 * 2**20)
    made, _ = steer(domain, max_downtime=0.03)
    made.tick()
    assert domain.limits == []
    domain.stats.update(memory_iteration=15, memory_bps=20 * 2**20, data_remaining=800 * 2**10)
    made.tick()
    # 12 ms at a tenth of the speed.
    assert domain.limits == [120]
    domain.stats.update(memory_bps=2**10)
    made.tick()
    assert domain.limits[-1] == round(30 * migrate_steer.LATER * migrate_steer.MOST_UNDERRATED)


def test_a_rest_too_large_for_the_promise_is_not_let_through() -> None:
    domain = Domain(memory_bps=200 * 2**20)
    made, _ = steer(domain, max_downtime=0.03)
    made.tick()
    domain.stats.update(memory_iteration=15, memory_bps=20 * 2**20, data_remaining=8 * 2**20)
    made.tick()
    assert domain.limits == [round(30 * migrate_steer.LATER)]


@pytest.mark.parametrize("kind", ["compression_pages", "memory_constant"])
@pytest.mark.parametrize(("iteration", "limit"), [(2, 36), (15, 48)])
def test_pages_that_shrink_are_not_counted_whole(kind: str, iteration: int, limit: int) -> None:
    """2 MiB are left, which take 5 ms at a quarter of their size, and 20 ms whole."""
    domain = Domain(memory_bps=100 * 2**20, memory_processed=40 * 2**20, memory_normal=10240, **{kind: 0})
    made, _ = steer(domain, max_downtime=0.03)
    made.tick()
    sent = 40 * 2**20 + 1024 * 1024
    domain.stats.update(
        {"memory_iteration": iteration, "memory_processed": sent, kind: 1024, "data_remaining": 2 * 2**20}
    )
    made.tick()
    assert domain.limits == [limit]


def test_at_first_it_is_raised_less_than_later() -> None:
    """A guest that gets busy in the next moment would pay for it."""
    domain = Domain(memory_bps=200 * 2**20)
    made, _ = steer(domain, max_downtime=0.03)
    made.tick()
    domain.stats.update(memory_iteration=2, memory_bps=2**20, data_remaining=100)
    made.tick()
    assert domain.limits == [round(30 * migrate_steer.FIRST * migrate_steer.SOON_UNDERRATED)]


def test_gives_up_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("kvmctl.operations.migrate_steer.time.monotonic", lambda: clock[0])
    made, _ = steer(Domain(), timeout=10.0)
    made.tick()
    clock[0] += 8.9
    made.tick()
    clock[0] += 0.2
    with pytest.raises(TimedOut, match="not finished within 10 s"):
        made.tick()
    made.tick()


def test_slowing_the_guest_in_vain_ends_it_or_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("kvmctl.operations.migrate_steer.time.monotonic", lambda: clock[0])
    for postcopy in ("never", "auto"):
        domain = Domain(auto_converge_throttle=99, memory_iteration=9)
        made, _ = steer(domain, postcopy=postcopy)
        made.tick()
        clock[0] += migrate_steer.IN_VAIN_SECONDS + 1
        if postcopy == "auto":
            made.tick()
            assert domain.postcopy == 1 and made.strategy == "post-copy"
        else:
            with pytest.raises(KvmctlError, match="faster than it can be sent") as error:
                made.tick()
            assert error.value.hint and "--postcopy auto" in error.value.hint
            assert domain.postcopy == 0 and made.strategy == "auto-converge"


def test_post_copy_now_waits_for_the_first_round() -> None:
    domain = Domain(memory_iteration=1)
    made, _ = steer(domain, postcopy="now")
    made.tick()
    assert domain.postcopy == 0
    domain.stats["memory_iteration"] = 2
    made.tick()
    made.tick()
    assert domain.postcopy == 1


def test_after_the_switch_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("kvmctl.operations.migrate_steer.time.monotonic", lambda: clock[0])
    made, _ = steer(Domain(memory_iteration=2), postcopy="now", timeout=5.0)
    made.tick()
    clock[0] += 100
    made.tick()


def test_post_copy_before_the_time_is_up_on_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one round was sent in most of the time that there is."""
    clock = [100.0]
    monkeypatch.setattr("kvmctl.operations.migrate_steer.time.monotonic", lambda: clock[0])
    domain = Domain(memory_iteration=1)
    made, _ = steer(domain, postcopy="auto", timeout=10.0)
    clock[0] += 6.5
    made.tick()
    assert domain.postcopy == 0
    clock[0] += 1
    made.tick()
    assert domain.postcopy == 1
