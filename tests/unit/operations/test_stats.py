from typing import Any

from kvmctl.operations import stats


def sample(when: float, **values: Any) -> dict[str, stats.Sample]:
    base = {"name": "a", "uuid": "u", "state.state": 1, "block.count": 2, "block.0.rd.bytes": 5, **values}
    return {"u": (when, base)}


def test_rates_are_over_the_time_between_and_never_negative() -> None:
    before = sample(10.0, **{"cpu.time": 10**9, "net.count": 1, "net.0.rx.bytes": 100})
    after = sample(12.0, **{"cpu.time": 4 * 10**9, "net.count": 1, "net.0.rx.bytes": 50, "block.1.rd.bytes": 2000})
    (row,) = stats.rows(before, after)
    assert (row["cpu_percent"], row["state"]) == (150.0, "running")
    assert (row["disk_read_bytes"], row["disk_read_bytes_per_second"]) == (2005, 1000)
    assert row["net_received_bytes_per_second"] == 0


def test_a_vm_that_just_started_has_no_rates() -> None:
    (row,) = stats.rows({}, sample(1.0))
    assert (row["cpu_percent"], row["disk_read_bytes_per_second"], row["memory_bytes"]) == (None, None, None)
    assert stats.rows({}, sample(1.0), ["other"]) == []
