"""What two hosts' answers mean together: no answer may ever lead to two running guests, or to none."""

import itertools

import libvirt
import pytest

from kvmctl.operations import migrate_truth
from kvmctl.operations.migrate_truth import Hosts, Seen, judge

HOSTS = Hosts.__new__(Hosts)
HOSTS.source_uri, HOSTS.destination_uri = "qemu:///a", "qemu:///b"
WORDS = ("running", "paused", "shutoff", "absent", "unreachable", "crashed")


@pytest.mark.parametrize(
    ("here", "there", "before", "place", "settled"),
    [
        ("running", "absent", "running", "source", True),
        ("absent", "running", "running", "destination", True),
        ("shutoff", "running", "running", "destination", True),
        ("running", "paused", "running", "source", False),
        ("paused", "running", "running", "destination", False),
        ("paused", "absent", "running", "source", False),
        ("paused", "absent", "paused", "source", True),
        ("absent", "paused", "paused", "destination", True),
        ("absent", "paused", "running", "unclear", False),
        ("running", "unreachable", "running", "source", False),
        ("paused", "unreachable", "running", "unclear", False),
        ("unreachable", "running", "running", "destination", False),
        ("unreachable", "unreachable", "running", "unclear", False),
        ("shutoff", "absent", "running", "off", True),
        ("absent", "absent", "running", "off", True),
        ("running", "running", "running", "unclear", False),
    ],
)
def test_judge(here: str, there: str, before: str, place: str, settled: bool) -> None:
    truth = judge(Seen(here), Seen(there), before, HOSTS)
    assert (truth.place, truth.settled) == (place, settled)
    assert truth.sentence


@pytest.mark.parametrize(
    ("here", "there", "half"),
    [
        ("running", "absent", True),
        ("shutoff", "absent", True),
        ("absent", "shutoff", False),
        ("absent", "running", False),
        ("unreachable", "unreachable", False),
    ],
)
def test_the_copied_disks_of_a_guest_that_arrived_are_its_own(here: str, there: str, half: bool) -> None:
    """It ended over there, by itself or by a crash, after it had run from them: they are all that there is."""
    assert judge(Seen(here), Seen(there), "running", HOSTS).never_arrived is half


def test_torn_by_post_copy_is_never_settled() -> None:
    for reason in (libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED):
        truth = judge(Seen("paused", reason), Seen("paused", reason), "running", HOSTS)
        assert truth.place == "unclear" and not truth.settled and "runs nowhere" in truth.sentence


@pytest.mark.parametrize("before", ["running", "paused"])
def test_help_only_ends_what_stands_still(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is ended only while it does not run and the other one does; one resumes only where the other is absent."""
    for here, there in itertools.product(WORDS, WORDS):
        done: list[str] = []

        class Domain:
            def __init__(self, where: str, log: list[str]) -> None:
                self.where, self.log = where, log

            def resume(self) -> None:
                self.log.append(f"resume {self.where}")

        class Fake(Hosts):
            def __init__(self, log: list[str]) -> None:
                self.log = log

            def domain(self, where: str) -> Domain:
                return Domain(where, self.log)

        monkeypatch.setattr(migrate_truth, "_end", lambda domain: domain.log.append(f"end {domain.where}"))
        migrate_truth._help(Fake(done), Seen(here), Seen(there), before)
        for deed in done:
            if deed == "end destination":
                assert here == "running" and there == "paused"
            elif deed == "end source":
                assert there == "running" and here == "paused"
            else:
                assert deed == "resume source" and here == "paused" and there == "absent" and before != "paused"


@pytest.mark.parametrize(("job", "runs_still", "ended"), [(0, True, True), (1, True, False), (0, False, False)])
def test_of_two_that_run_one_is_ended_only_while_none_is_on_its_way(
    job: int, runs_still: bool, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Domain:
        def __init__(self, where: str) -> None:
            self.where = where

        def jobInfo(self) -> list[int]:
            return [job]

    class Fake(Hosts):
        def __init__(self) -> None:
            pass

        def domain(self, where: str) -> Domain:
            return Domain(where)

        def see(self, where: str) -> Seen:
            return Seen("running" if runs_still else "absent")

    monkeypatch.setattr(migrate_truth, "_end", lambda domain: done.append(domain.where))
    assert migrate_truth._end_twin(Fake()) is ended
    assert done == (["destination"] if ended else [])
