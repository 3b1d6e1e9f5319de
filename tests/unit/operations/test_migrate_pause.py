"""The pause by statistics of hosts whose clocks differ, which one machine's two hosts cannot have."""

import pytest

from kvmctl.operations.migrate_pause import Pause, read


@pytest.mark.parametrize(
    ("stats", "trip", "pause"),
    [
        ({}, 0.001, Pause(None)),
        # The destination's clock is behind: libvirt gives QEMU's own figure, and no other.
        ({"downtime": 13}, 0.001, Pause(13, behind=True)),
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


def test_what_is_not_known_is_not_said_to_be_kept() -> None:
    assert (Pause(27).within(30), Pause(31).within(30), Pause(None).within(30)) == (True, False, None)
    assert (Pause(13, behind=True).within(30), Pause(31, behind=True).within(30)) == (None, False)
    assert Pause(27).warnings() == [] and "is 90.0 s ahead of" in Pause(27, 90.0).warnings()[0]
    assert "13 ms is QEMU's own" in Pause(13, behind=True).warnings()[0]
