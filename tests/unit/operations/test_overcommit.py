"""Figures and words about overcommitment, and what balloons are asked for."""

from dataclasses import replace

import pytest

from kvmctl.model.units import GIB, MIB
from kvmctl.operations.host_info import HostMemory, _meminfo
from kvmctl.operations.overcommit import Guest, Ksm, Overcommit, guest_of, warnings
from kvmctl.operations.reclaim import KEEP_BYTES, plan

RAM = HostMemory(total=8 * GIB, free=4 * GIB, available=5 * GIB, swap_total=2 * GIB, swap_used=0)
GUEST = Guest("web", "u", "running", 2, 2 * GIB, 2 * GIB, spare_bytes=GIB, used_bytes=GIB, resident_bytes=GIB)


def found(*guests: Guest, cpus: int = 4, ram: HostMemory = RAM) -> Overcommit:
    return Overcommit(cpus, ram, Ksm(False, 0), 1.0, guests)


def test_the_contracts_keys_and_sums() -> None:
    row = found(GUEST, replace(GUEST, name="off", state="shutoff", vcpus=8)).as_dict()
    assert row["vcpus_allocated"] == 2
    assert row["vcpus_defined"] == 10
    assert (row["cpus"], row["cpu_ratio"]) == (4, 0.5)
    assert row["memory_allocated_bytes"] == 2 * GIB
    assert (row["memory_bytes"], row["memory_ratio"]) == (8 * GIB, 0.25)
    assert row["ksm"] == {"on": False, "saved_bytes": 0}
    assert [guest["name"] for guest in row["guests"]] == ["web", "off"]
    assert row["warnings"] == []


@pytest.mark.parametrize(
    ("ram", "memory", "word"),
    [
        (RAM, 8 * GIB, None),
        (RAM, 9 * GIB, "very slow"),
        (RAM, 11 * GIB, "(OOM)"),
        (replace(RAM, swap_total=None), 9 * GIB, "swap or kill"),
        (replace(RAM, available=100 * MIB), GIB, "only 100 MiB"),
        (replace(RAM, swap_used=GIB), GIB, "swapped out already"),
    ],
)
def test_memory_in_plain_words(ram: HostMemory, memory: int, word: str | None) -> None:
    said = warnings(found(replace(GUEST, memory_bytes=memory), ram=ram))
    assert said == [] if word is None else len(said) == 1 and word in said[0]


def test_cpus_in_plain_words() -> None:
    assert warnings(found(replace(GUEST, vcpus=16))) == []
    assert "17 vCPUs share 4 CPUs" in warnings(found(replace(GUEST, vcpus=17)))[0]


def test_guests_that_are_off_count_for_nothing() -> None:
    assert warnings(found(replace(GUEST, state="shutoff", vcpus=100, memory_bytes=100 * GIB))) == []


def test_a_guest_from_its_statistics() -> None:
    values = {
        "state.state": 1,
        "vcpu.current": 2,
        "balloon.current": 1048576,
        "balloon.maximum": 2097152,
        "balloon.rss": 524288,
        "balloon.available": 1000000,
        "balloon.unused": 300000,
        "balloon.usable": 400000,
    }
    guest = guest_of("a", "u", values, 12.5)
    assert (guest.memory_bytes, guest.memory_max_bytes, guest.ballooned_bytes) == (GIB, 2 * GIB, GIB)
    assert (guest.resident_bytes, guest.used_bytes, guest.spare_bytes) == (GIB // 2, 600000 * 1024, 400000 * 1024)
    bare = guest_of("a", "u", {"state.state": 1, "vcpu.current": 1, "balloon.maximum": 1024}, None)
    assert (bare.memory_bytes, bare.spare_bytes, bare.used_bytes) == (MIB, None, None)
    off = guest_of("a", "u", {"state.state": 5, "balloon.maximum": 1024, "balloon.current": 1024}, None)
    assert (off.active, off.ballooned_bytes) == (False, None)


def test_what_balloons_are_asked_for() -> None:
    big, idle = plan(found(GUEST, replace(GUEST, spare_bytes=KEEP_BYTES)))
    assert big.to is not None
    assert GIB < big.to < 2 * GIB
    assert big.to % MIB == 0
    assert (idle.to, idle.reason) == (None, "it has nothing to spare")


def test_who_is_left_alone() -> None:
    silent, paused = plan(found(replace(GUEST, spare_bytes=None), replace(GUEST, state="paused")))
    assert silent.to is None
    assert "does not say" in (silent.reason or "")
    assert paused.to is None
    assert "paused" in (paused.reason or "")
    assert plan(found(replace(GUEST, state="shutoff"))) == []


def test_meminfo() -> None:
    assert _meminfo("MemTotal:  8 kB\nHugePages_Total:  3\nodd\nMemFree: x kB\n") == {"MemTotal": 8192}
