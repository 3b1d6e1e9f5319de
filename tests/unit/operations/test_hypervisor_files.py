"""Looking at a file of the hypervisor's host: what must not be looked at through a storage pool."""

from typing import Any, cast

import pytest

from kvmctl.operations import hypervisor_files


@pytest.mark.parametrize("path", ["/dev/vmlinuz", "/srv/../dev/vmlinuz"])
def test_devices_are_not_made_a_pool_of(path: str) -> None:
    """libvirt, which would be asked for that, is not there."""
    nobody = cast("Any", None)
    with hypervisor_files.beside(nobody, path):
        pass
    with pytest.raises(AttributeError), hypervisor_files.beside(nobody, "/srv/vmlinuz"):
        pass
