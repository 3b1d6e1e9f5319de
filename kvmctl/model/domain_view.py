"""A domain's XML as kvmctl shows it: what another tool wrote is read with the same patience as its own.

Reading only. Nothing here is written back: an existing domain is edited in its own tree.
"""

from typing import NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import metadata, xml
from kvmctl.model.domain_os import os_name
from kvmctl.model.metadata import Metadata

KIB = 1024
# formatdomain: the units of <memory>; without one it is KiB.
_UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 10**3,
    "k": KIB,
    "kib": KIB,
    "mb": 10**6,
    "m": KIB**2,
    "mib": KIB**2,
    "gb": 10**9,
    "g": KIB**3,
    "gib": KIB**3,
    "tb": 10**12,
    "t": KIB**4,
    "tib": KIB**4,
}
_ACCELS = {"kvm": "kvm", "qemu": "tcg"}


class DiskView(NamedTuple):
    """One ``<disk>``. ``source`` is a path, ``pool/volume``, a URL or None (an empty drive)."""

    target: str
    bus: str | None
    source: str | None
    format: str | None
    device: str
    readonly: bool


class NicView(NamedTuple):
    """One ``<interface>``. ``mode`` is a word of ``--net``, or libvirt's own type for any other kind."""

    mac: str | None
    model: str | None
    mode: str
    source: str | None
    target: str | None
    link_up: bool
    macvtap_mode: str | None


class GraphicsView(NamedTuple):
    """One ``<graphics>``; ``port`` is None where none is assigned (a VM that is off)."""

    type: str
    listen: str | None
    port: int | None
    tls_port: int | None


class DomainView(NamedTuple):
    """One ``<domain>``. Sizes in bytes; ``pci`` holds addresses as ``0000:01:00.0``."""

    name: str
    uuid: str | None
    title: str | None
    description: str | None
    accel: str
    arch: str | None
    machine: str | None
    firmware: str | None
    cpu: str | None
    vcpus: int
    max_vcpus: int
    memory_bytes: int | None
    max_memory_bytes: int | None
    os: str | None
    disks: tuple[DiskView, ...]
    nics: tuple[NicView, ...]
    pci: tuple[str, ...]
    graphics: tuple[GraphicsView, ...]
    consoles: tuple[str, ...]
    agent_channel: str | None
    kvmctl: Metadata


def view(domain: xml.Element) -> DomainView:
    """Read a ``<domain>`` tree."""
    vcpu = domain.find("vcpu")
    most = _number(vcpu.text if vcpu is not None else None) or 1
    current = _number(vcpu.get("current")) if vcpu is not None else None
    maximum = _size(domain.find("memory"))
    return DomainView(
        name=domain.findtext("name") or "",
        uuid=domain.findtext("uuid"),
        title=domain.findtext("title"),
        description=domain.findtext("description"),
        accel=_ACCELS.get(domain.get("type", ""), domain.get("type", "")),
        arch=_attribute(domain, "os/type", "arch"),
        machine=_attribute(domain, "os/type", "machine"),
        firmware=_firmware(domain),
        cpu=domain.findtext("cpu/model") or _attribute(domain, "cpu", "mode"),
        vcpus=current or most,
        max_vcpus=most,
        memory_bytes=_size(domain.find("currentMemory")) or maximum,
        max_memory_bytes=maximum,
        os=os_name(domain),
        disks=tuple(disk(element) for element in domain.iterfind("devices/disk")),
        nics=tuple(nic(element) for element in domain.iterfind("devices/interface")),
        pci=tuple(filter(None, map(_pci, domain.iterfind("devices/hostdev[@type='pci']")))),
        graphics=tuple(_graphics(element) for element in domain.iterfind("devices/graphics")),
        consoles=tuple(e.get("type", "") for e in domain.iterfind("devices/console")),
        agent_channel=agent_channel(domain),
        kvmctl=metadata.from_domain(domain),
    )


def agent_channel(domain: xml.Element) -> str | None:
    """``connected`` or ``disconnected`` as libvirt sees the guest agent's channel; None where there is none.

    A domain that is off has ``disconnected``.
    """
    target = domain.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    return target.get("state", "disconnected") if target is not None else None


def _firmware(domain: xml.Element) -> str | None:
    loader = domain.find("os/loader")
    efi = _attribute(domain, "os", "firmware") == "efi"
    if efi or (loader is not None and loader.get("type") == "pflash"):
        enrolled = domain.find("os/firmware/feature[@name='secure-boot']")
        secure = (loader is not None and loader.get("secure") == "yes") or (
            enrolled is not None and enrolled.get("enabled") == "yes"
        )
        return "uefi-secure" if secure else "uefi"
    return "bios" if _attribute(domain, "os/type", "arch") in ("x86_64", "i686") else None


def disk(element: xml.Element) -> DiskView:
    """Read one ``<disk>``."""
    source = element.find("source")
    target = element.find("target")
    return DiskView(
        target=(target.get("dev") if target is not None else None) or "",
        bus=target.get("bus") if target is not None else None,
        source=_disk_source(source) if source is not None else None,
        format=_attribute(element, "driver", "type"),
        device=element.get("device", "disk"),
        readonly=element.find("readonly") is not None,
    )


def _disk_source(source: xml.Element) -> str | None:
    for key in ("file", "dev", "dir"):
        if source.get(key):
            return source.get(key)
    if source.get("pool"):
        return f"{source.get('pool')}/{source.get('volume')}"
    if source.get("protocol"):
        host = source.find("host")
        where = f"{host.get('name', '')}:{host.get('port', '')}".rstrip(":") if host is not None else ""
        return f"{source.get('protocol')}://{where}/{source.get('name', '')}"
    return None


def nic(interface: xml.Element) -> NicView:
    """Read one ``<interface>``."""
    kind = interface.get("type", "")
    source = interface.find("source")
    # A network of macvtap or bridge mode makes its cards that when the guest starts, and libvirt then shows
    # the card's new kind with the network's name beside it: it is a card of that network all the same.
    via = kind
    if source is not None and source.get("network"):
        kind = "network"
    key = {"network": "network", "bridge": "bridge", "direct": "dev", "ethernet": "dev"}.get(kind)
    return NicView(
        mac=_attribute(interface, "mac", "address"),
        model=_attribute(interface, "model", "type"),
        mode="macvtap" if kind == "direct" else kind,
        source=source.get(key) if source is not None and key is not None else None,
        target=_attribute(interface, "target", "dev"),
        link_up=_attribute(interface, "link", "state") != "down",
        macvtap_mode=source.get("mode", "vepa") if source is not None and via == "direct" else None,
    )


def _pci(hostdev: xml.Element) -> str | None:
    address = hostdev.find("source/address")
    if address is None:
        return None
    try:
        domain, bus, slot, function = (int(address.get(key) or "0", 0) for key in ("domain", "bus", "slot", "function"))
    except ValueError:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _graphics(graphics: xml.Element) -> GraphicsView:
    listen = graphics.get("listen") or _attribute(graphics, "listen[@type='address']", "address")
    return GraphicsView(
        type=graphics.get("type", ""),
        listen=listen or _attribute(graphics, "listen", "socket") or graphics.get("socket"),
        port=_port(graphics.get("port")),
        tls_port=_port(graphics.get("tlsPort")),
    )


def _attribute(parent: xml.Element, path: str, name: str) -> str | None:
    element = parent.find(path)
    return element.get(name) if element is not None else None


def _number(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() and len(stripped) < 19 else None


def _port(text: str | None) -> int | None:
    number = _number(text)
    return number if number and number < 65536 else None


def _size(element: xml.Element | None) -> int | None:
    number = _number(element.text) if element is not None else None
    if element is None or number is None:
        return None
    return number * _UNITS.get(element.get("unit", "KiB").lower(), KIB)


def read(text: str) -> DomainView:
    """``view()`` of XML text. Raises UsageProblem where it is no ``<domain>``."""
    tree = xml.parse(text, "domain", "domain")
    if not tree.findtext("name"):
        raise UsageProblem("the domain has no name")
    return view(tree)
