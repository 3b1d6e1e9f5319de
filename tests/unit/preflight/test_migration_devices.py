"""What a guest's cards find on the other host, as far as libvirt there tells."""

from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from kvmctl.model import xml
from kvmctl.preflight import migration_devices

CARD = xml.parse("<domain><devices><interface type='bridge'><source bridge='br0'/></interface></devices></domain>", "")
NODE = "<device><name>net_lan0</name><capability type='net'><interface>lan0</interface></capability></device>"


class Libvirt:
    """Of a host with br0, lan0 and lo: without its interface driver, libvirt 11.3 tells of lan0 and lo."""

    def __init__(self, interfaces: list[str] | None) -> None:
        self._interfaces = interfaces

    def _named(self, name: str) -> Any:
        return SimpleNamespace(name=lambda: name)

    def interfaceLookupByName(self, name: str) -> Any:
        if name not in (self._interfaces or []):
            raise libvirt.libvirtError("not supported, or not there")
        return self._named(name)

    def listAllInterfaces(self, _flags: int) -> list[Any]:
        if self._interfaces is None:
            raise libvirt.libvirtError("this function is not supported by the connection driver")
        return [self._named(name) for name in self._interfaces]

    def listAllDevices(self, _flags: int) -> list[Any]:
        return [SimpleNamespace(XMLDesc=lambda _flags: NODE)]


@pytest.mark.parametrize(
    ("interfaces", "level"), [(["lo", "br0"], "ok"), (["lo"], "refused"), ([], "refused"), (None, "unknown")]
)
def test_a_bridge_that_libvirt_does_not_tell_of_is_not_called_missing(interfaces: list[str] | None, level: str) -> None:
    there = SimpleNamespace(conn=Libvirt(interfaces), is_remote=True, uri="qemu+tcp://there/system")
    sides: Any = SimpleNamespace(destination=there)
    (interface,) = CARD.iterfind("devices/interface")
    check = migration_devices._card(sides, interface)
    assert (check.name, check.level) == ("bridge br0", level)
    assert ("libvirt-daemon-driver-interface" in (check.hint or "")) is (level == "unknown")
