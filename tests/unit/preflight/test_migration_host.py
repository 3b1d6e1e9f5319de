"""The other host as a home for a guest: what two machines of different makes, versions and sizes would say.

A lab on one machine has but one CPU and one QEMU, so their answers are told here; libvirt's CPU database is real.
"""

from typing import Any

import libvirt
import pytest

from kvmctl.connection import Hypervisor
from kvmctl.model import xml
from kvmctl.model.migration import Wish
from kvmctl.preflight import migration_host
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides

GIB = 2**30
CPUS = {
    "new Intel": "<arch>x86_64</arch><model>Haswell-noTSX</model><vendor>Intel</vendor>",
    "old Intel": "<arch>x86_64</arch><model>Nehalem</model><vendor>Intel</vendor>",
    "AMD": "<arch>x86_64</arch><model>EPYC-Rome</model><vendor>AMD</vendor>",
}


class Conn:
    """virConnect of a host that answers as told."""

    def __init__(self, name: str = "here", qemu: int = 7_002_000, cpu: Any = libvirt.VIR_CPU_COMPARE_SUPERSET) -> None:
        self.name, self.qemu, self.cpu = name, qemu, cpu

    def getURI(self) -> str:
        return f"qemu+tcp://{self.name}/system" if self.name != "here" else "qemu:///system"

    def getHostname(self) -> str:
        return self.name

    def getVersion(self) -> int:
        return self.qemu

    def getLibVersion(self) -> int:
        return 9_000_000

    def getMemoryStats(self, _cell: int, _flags: int) -> dict[str, int]:
        # KiB
        return {"total": 8 * 2**20, "free": 1 * 2**20, "cached": 2**20, "buffers": 0}

    def getFreePages(self, sizes: list[int], _first: int, _count: int, _flags: int) -> dict[int, dict[int, int]]:
        return {0: {sizes[0]: 512}}

    def getInfo(self) -> list[Any]:
        return ["x86_64", 8192, 4, 2000, 1, 1, 4, 1]

    def compareHypervisorCPU(self, *_: Any) -> Any:
        if isinstance(self.cpu, Exception):
            raise self.cpu
        return self.cpu


def incompatible(message: str) -> libvirt.libvirtError:
    """What virConnectCompareHypervisorCPU raises with VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE."""
    error = libvirt.libvirtError(message)
    said = f"the CPU is incompatible with host CPU: {message}"
    error.err = (libvirt.VIR_ERR_CPU_INCOMPATIBLE, libvirt.VIR_FROM_CPU, said, 2, None, None, None, 0, 0)
    return error


def capabilities(uuid: str, cpu: str) -> xml.Element:
    pages = "<pages unit='KiB' size='4'/><pages unit='KiB' size='2048'/>"
    text = f"<capabilities><host><uuid>{uuid}</uuid><cpu>{CPUS[cpu]}{pages}</cpu></host></capabilities>"
    return xml.parse(text, "capabilities")


def sides(
    domain: str = "<domain type='kvm'/>",
    cpus: tuple[str, str] = ("new Intel", "new Intel"),
    there: Conn | None = None,
    uuids: tuple[str, str] = ("1", "2"),
    memory: int = GIB,
    vcpus: int = 1,
) -> Sides:
    source: Any = Conn()
    destination: Any = there if there is not None else Conn("localhost.example")
    nobody: Any = None
    return Sides(
        source=Hypervisor(source),
        destination=Hypervisor(destination),
        domain=nobody,
        name="web",
        uuid="u",
        state="running",
        memory_bytes=memory,
        most_memory_bytes=memory,
        vcpus=vcpus,
        live=xml.parse(domain, "domain"),
        config=None,
        here=capabilities(uuids[0], cpus[0]),
        there=capabilities(uuids[1], cpus[1]),
        wish=Wish("qemu+tcp://there/system"),
    )


WHOLE = "<domain type='kvm'><cpu mode='host-passthrough'/></domain>"
MODEL = "<domain type='kvm'><cpu mode='custom' match='exact'><model>Haswell-noTSX</model></cpu></domain>"


@pytest.mark.parametrize("cpus", [("new Intel", "AMD"), ("AMD", "new Intel")])
def test_another_vendor_is_the_reason_and_nothing_helps(cpus: tuple[str, str]) -> None:
    found = migration_host.cpu(sides(WHOLE, cpus))
    assert found.level == "refused" and "Intel" in found.detail and "AMD" in found.detail
    assert "vendor" in found.detail and found.hint and "only when it is off" in found.hint


def test_what_is_missing_is_named_and_a_model_offered() -> None:
    found = migration_host.cpu(sides(WHOLE, ("new Intel", "old Intel")))
    assert found.level == "refused" and "lacks" in found.detail and "avx" in found.detail
    assert found.hint and "Nehalem" in found.hint and "host cpu compare" in found.hint
    assert migration_host.cpu(sides(WHOLE, ("old Intel", "new Intel"))).level == "ok"


def test_the_destinations_hypervisor_judges_a_guests_own_model() -> None:
    assert migration_host.cpu(sides(MODEL)).level == "ok"
    poor = Conn("there", cpu=incompatible("guest CPU doesn't match specification: missing features: avx2,bmi2"))
    found = migration_host.cpu(sides(MODEL, ("new Intel", "old Intel"), poor))
    assert found.level == "refused" and "missing features: avx2,bmi2" in found.detail
    assert found.hint and "Nehalem" in found.hint
    amd = migration_host.cpu(sides(MODEL, ("new Intel", "AMD"), poor))
    assert amd.level == "refused" and amd.hint and "only when it is off" in amd.hint
    unequal = Conn("there", cpu=libvirt.VIR_CPU_COMPARE_INCOMPATIBLE)
    assert migration_host.cpu(sides(MODEL, ("new Intel", "old Intel"), unequal)).level == "refused"


@pytest.mark.parametrize(("timer", "level"), [("", "refused"), ("<timer name='tsc' frequency='2000000000'/>", "ok")])
def test_invtsc_moves_only_with_a_frequency(timer: str, level: str) -> None:
    cpu = "<cpu mode='custom'><model>Haswell-noTSX</model><feature policy='require' name='invtsc'/></cpu>"
    text = f"<domain type='kvm'>{cpu}<clock>{timer}</clock></domain>"
    found = migration_host.cpu(sides(text))
    assert found.level == level and (level == "ok" or "invtsc" in found.detail)


@pytest.mark.parametrize(
    ("there", "uuids", "says"),
    [
        (Conn("other"), ("7", "7"), "the same host"),
        (Conn("here"), ("1", "2"), "call themselves here"),
        (Conn("localhost"), ("1", "2"), "calls itself localhost"),
    ],
)
def test_one_host_by_two_names_and_two_by_one(there: Conn, uuids: tuple[str, str], says: str) -> None:
    found = migration_host.another_host(sides(there=there, uuids=uuids))
    assert found.level == "refused" and says in found.detail and found.hint
    assert migration_host.another_host(sides(there=Conn("other"))).level == "ok"


def one(found: list[Check], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


def test_an_older_qemu_and_fewer_cpus_are_warned_of() -> None:
    assert migration_host._versions(sides(there=Conn("there", qemu=7_000_000))).level == "warn"
    assert migration_host._versions(sides(there=Conn("there", qemu=9_000_000))).level == "ok"
    assert migration_host._vcpus(sides(vcpus=5)).level == "warn" and migration_host._vcpus(sides(vcpus=4)).level == "ok"


@pytest.mark.parametrize(("gib", "level"), [(1, "ok"), (3, "refused"), (9, "refused")])
def test_memory_is_what_is_available_there(gib: int, level: str) -> None:
    found = migration_host._memory(sides(memory=gib * GIB))
    assert found.level == level and "2 GiB available of 8 GiB" in found.detail
    assert (found.hint is not None) is (level == "refused")


@pytest.mark.parametrize(("gib", "level"), [(1, "ok"), (2, "refused")])
@pytest.mark.parametrize("page", ["", "<page size='2' unit='M'/>"])
def test_huge_pages_are_counted(page: str, gib: int, level: str) -> None:
    text = f"<domain type='kvm'><memoryBacking><hugepages>{page}</hugepages></memoryBacking></domain>"
    (found,) = migration_host._hugepages(sides(text, memory=gib * GIB))
    assert found.level == level and "in pages of 2048 KiB; 1 GiB are free there" in found.detail
    assert list(migration_host._hugepages(sides())) == []
