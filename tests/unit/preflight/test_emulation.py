"""Which guests cannot be trusted to be sent whole while they run."""

from types import SimpleNamespace
from typing import cast

import pytest

from kvmctl.connection import Hypervisor
from kvmctl.preflight import emulation


@pytest.mark.parametrize(
    ("virt", "version", "forgets"),
    [("kvm", 7_002_022, False), ("qemu", 7_002_022, True), ("qemu", 9_000_000, False), (None, 7_002_022, False)],
)
def test_only_old_emulators_forget_what_a_guest_writes(virt: str | None, version: int, forgets: bool) -> None:
    hypervisor = SimpleNamespace(uri="qemu:///system", conn=SimpleNamespace(getVersion=lambda: version))
    assert emulation.forgets_writes(cast("Hypervisor", hypervisor), virt) is forgets
