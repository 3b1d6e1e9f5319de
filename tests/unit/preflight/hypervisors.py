"""A hypervisor that only describes itself: machines with CPUs that the testing machine does not have."""

from typing import Any

import libvirt

from kvmctl.connection import Hypervisor


def guest(arch: str, *types: str, emulator: str | None = None) -> str:
    domains = "".join(f"<domain type='{name}'/>" for name in types)
    path = emulator or f"/usr/bin/qemu-system-{arch}"
    return (
        f"<guest><os_type>hvm</os_type><arch name='{arch}'><wordsize>64</wordsize><emulator>{path}</emulator>"
        f"<machine maxCpus='288'>q35</machine>{domains}</arch></guest>"
    )


def capabilities(cpu: str, *guests: str, arch: str = "x86_64", vendor: str = "Intel", extra: str = "") -> str:
    return (
        f"<capabilities><host><uuid>1f059851-0ed0-4f2d-b6a5-d42dbd8e62e6</uuid><cpu><arch>{arch}</arch>"
        f"<model>Skylake-Server</model><vendor>{vendor}</vendor>{cpu}</cpu>{extra}</host>{''.join(guests)}</capabilities>"
    )


class Described:
    """virConnect, as far as a hypervisor describes itself. ``expanded`` is what baselineCPU answers."""

    def __init__(self, uri: str, xml: str, expanded: str | None = None) -> None:
        self.uri = uri
        self.xml = xml
        self.expanded = expanded

    def getURI(self) -> str:
        return self.uri

    def getCapabilities(self) -> str:
        return self.xml

    def baselineCPU(self, cpus: list[str], flags: int) -> str:
        assert cpus[0].startswith("<cpu>")
        if self.expanded is None:
            raise libvirt.libvirtError("this function is not supported by the connection driver")
        return self.expanded


def described(uri: str, xml: str, expanded: str | None = None) -> Hypervisor:
    conn: Any = Described(uri, xml, expanded)
    return Hypervisor(conn)
