"""The pause by statistics of hosts whose clocks differ, which one machine's two hosts cannot have."""

import pytest

from kvmctl.operations.migrate_pause import Pause, read


@pytest.mark.parametrize(
    ("stats", "trip", "pause"),
    [
        ({}, 0.001, Pause(None)),
        ({"downtime": 27}, 0.001, Pause(27)),
        ({"downtime": 27, "downtime_net": 24}, 0.001, Pause(27)),
        # Over an ocean: a way of 100 ms, and some of it there and back.
        ({"downtime": 520, "downtime_net": 120}, 0.2, Pause(520)),
        # The destination is an hour ahead, and a second behind.
        ({"downtime": 3600027, "downtime_net": 24}, 0.002, Pause(25, 3600.002)),
        ({"downtime": 30, "downtime_net": 1030}, 0.002, Pause(1031, -1.001)),
        # A tenth of a second behind: the pause would seem shorter than it was.
        ({"downtime": 5, "downtime_net": 105}, 0.0, Pause(105, -0.1)),
    ],
)
def test_clocks_that_differ_do_not_change_the_pause(stats: dict[str, int], trip: float, pause: Pause) -> None:
    assert read(stats, lambda: trip) == pause
