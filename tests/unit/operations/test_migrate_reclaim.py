"""What is done to a guest whose move with its disks failed, told by a domain that only remembers it."""

from typing import Any

import libvirt
import pytest

from kvmctl.operations import migrate_reclaim

MIRROR = "<mirror type='file' job='copy'/>"
COPY = {"type": libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY, "bandwidth": 0, "cur": 1, "end": 2}


class Domain:
    """``jobs``: how many more times each disk is seen being copied; ``refuses``: it does not resume."""

    def __init__(
        self,
        jobs: dict[str, int],
        mirrored: tuple[str, ...] = (),
        refuses: bool = False,
        disks: tuple[str, ...] = ("vda", "vdb"),
    ) -> None:
        self.jobs, self.mirrored, self.refuses, self.disks = jobs, mirrored, refuses, disks
        self.done: list[str] = []

    def isActive(self) -> int:
        return 1

    def XMLDesc(self, _flags: int) -> str:
        disks = "".join(
            f"<disk device='disk'>{MIRROR if dev in self.mirrored else ''}<target dev='{dev}'/></disk>"
            for dev in self.disks
        )
        return f"<domain><devices>{disks}<disk device='cdrom'><target dev='sda'/></disk></devices></domain>"

    def blockJobInfo(self, dev: str, _flags: int) -> dict[str, Any]:
        assert dev != "sda"
        self.jobs[dev] = self.jobs.get(dev, 0) - 1
        return COPY if self.jobs[dev] >= 0 else {}

    def blockJobAbort(self, dev: str, flags: int) -> None:
        assert flags == libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC
        self.done.append(f"end {dev}")

    def suspend(self) -> None:
        self.done.append("suspend")

    def resume(self) -> None:
        self.done.append("resume")
        if self.refuses:
            raise libvirt.libvirtError("no")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_reclaim, "_LOOK_SECONDS", 0)


def test_the_copying_ends_before_the_guest_is_paused_and_resumed() -> None:
    domain: Any = Domain({"vda": 3, "vdb": 1})
    assert migrate_reclaim.reclaim(domain, "running", 60) is None
    assert domain.done == ["end vda", "end vdb", "suspend", "resume"]


def test_a_guest_that_its_user_paused_stays_so_and_one_without_disks_runs_on() -> None:
    domain: Any = Domain({})
    assert migrate_reclaim.reclaim(domain, "paused", 60) is None and domain.done == []
    diskless: Any = Domain({}, disks=())
    assert migrate_reclaim.reclaim(diskless, "running", 60) is None and diskless.done == []


def test_a_copy_that_the_user_began_is_left_alone() -> None:
    domain: Any = Domain({"vdb": 99}, mirrored=("vdb",))
    assert migrate_reclaim.reclaim(domain, "running", 60) is None and domain.done == ["suspend", "resume"]


def test_what_does_not_end_or_cannot_go_on_is_said() -> None:
    refusing: Any = Domain({}, refuses=True)
    assert "could not be taken back" in str(migrate_reclaim.reclaim(refusing, "running", 60))
    endless: Any = Domain({"vdb": 10**9})
    assert "copying of vdb has not ended" in str(migrate_reclaim.reclaim(endless, "running", 0))
    assert "suspend" not in endless.done
