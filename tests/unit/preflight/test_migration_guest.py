from typing import Any

import pytest

from kvmctl.connection import Hypervisor
from kvmctl.model import xml
from kvmctl.model.migration import Wish
from kvmctl.preflight import migration_guest
from kvmctl.preflight.migration_sides import Sides


class Versioned:
    """virConnect of a host with this QEMU, as virConnectGetVersion counts."""

    def __init__(self, version: int) -> None:
        self.version = version

    def getURI(self) -> str:
        return "qemu:///system"

    def getVersion(self) -> int:
        return self.version


def levels(version: int, kind: str = "qemu", state: str = "running") -> list[str]:
    conn: Any = Versioned(version)
    domain: Any = None
    live = xml.parse(f"<domain type='{kind}'/>", "domain")
    host = xml.parse("<capabilities/>", "capabilities")
    sides = Sides(
        source=Hypervisor(conn),
        destination=Hypervisor(conn),
        domain=domain,
        name="vm",
        uuid="uuid",
        state=state,
        memory_bytes=2**28,
        most_memory_bytes=2**28,
        vcpus=1,
        live=live,
        config=None,
        here=host,
        there=host,
        wish=Wish("qemu:///x"),
    )
    return [check.level for check in migration_guest._emulated(sides)]


@pytest.mark.parametrize(("version", "level"), [(7_002_022, "warn"), (8_002_090, "warn"), (9_000_000, "ok")])
def test_an_emulator_that_forgets_writes_is_told(version: int, level: str) -> None:
    assert levels(version) == [level]


def test_what_does_not_write_or_is_not_emulated_is_safe() -> None:
    assert levels(7_002_022, kind="kvm") == []
    assert levels(7_002_022, state="paused") == []
    assert levels(7_002_022, state="shutoff") == []
