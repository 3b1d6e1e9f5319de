"""Published ports are put back when somebody changes the rules after kvmctl's own."""

from functools import partial
from typing import Any

import pytest

from kvmctl.operations import firewall, port_settle, ports
from kvmctl.operations.firewall import Iptables, Seen

AHEAD = Iptables("ACCEPT", "ahead", True, ("-A KVMCTL_FWD -j ACCEPT",))
BEHIND = Iptables("ACCEPT", "behind", True, ("-A KVMCTL_FWD -j ACCEPT",))


class Firewall:
    """Rules that libvirt changes whenever ``changes`` says so, counted in looks, and that repair() sets right."""

    def __init__(self, changes: set[int]) -> None:
        self.changes, self.looks, self.repairs, self.now = changes, 0, 0, 0.0
        self.good = True

    def __enter__(self) -> "Firewall":
        return self

    def __exit__(self, *_: object) -> None: ...

    def repair(self, _hypervisor: Any) -> int:
        self.repairs += 1
        self.good = True
        return 3

    def look(self) -> Seen:
        self.looks += 1
        if self.looks in self.changes:
            self.good = False
        # The handles are others after each repair, and mean nothing.
        handles = (self.repairs, self.looks)
        return Seen(frozenset(), frozenset(), AHEAD if self.good else BEHIND, True, handles, True, frozenset())

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def settled(monkeypatch: pytest.MonkeyPatch, changes: set[int], most: float = 60.0) -> Firewall:
    fake = Firewall(changes)
    monkeypatch.setattr(ports, "repair", fake.repair)
    monkeypatch.setattr(firewall, "look", fake.look)
    monkeypatch.setattr("kvmctl.operations.port_settle.time.monotonic", lambda: fake.now)
    monkeypatch.setattr("kvmctl.operations.port_settle.time.sleep", fake.sleep)
    connect: Any = partial(lambda hypervisor: hypervisor, fake)
    count = port_settle.settle(connect, port_settle.Pace(quiet=3.0, most=most))
    assert count == 3
    return fake


def test_it_looks_until_nobody_has_changed_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = settled(monkeypatch, set())
    assert quiet.repairs == 1 and quiet.now == pytest.approx(3.0, abs=0.4)


def test_what_others_change_is_put_right_and_watched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = settled(monkeypatch, {4, 12})
    assert busy.repairs == 3 and busy.good
    assert busy.now > 5.0


def test_it_ends_where_somebody_never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = settled(monkeypatch, set(range(2, 10_000, 3)), most=20.0)
    assert endless.now == pytest.approx(20.0, abs=0.4)
