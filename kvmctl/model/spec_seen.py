"""An existing VM in the terms of a spec: what its domain XML says of each key.

Reading only, and with patience: what another tool wrote and a spec cannot say is named in ``beyond``.
"""

from dataclasses import dataclass
from typing import Literal

from kvmctl.model import domain_view, extras, metadata, start_order, tuned, xml
from kvmctl.model.domain_os import os_name
from kvmctl.model.domain_view import DomainView
from kvmctl.model.metadata import Forward, OwnedVolume
from kvmctl.model.nic import MACVTAP_MODES, BridgeNic, MacvtapNic, NetworkNic, Nic, UserNic, check_macvtap_mode
from kvmctl.model.start_order import StartOrder

_OSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
# What create puts into every domain of its kind, or what a key of the spec stands for.
_MODELLED = {
    *("name", "uuid", "title", "description", "metadata", "memory", "currentMemory", "vcpu", "os", "features"),
    *("cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm", "devices"),
    # What of these no spec can say, tuned.beyond() tells.
    *("memtune", "cputune", "numatune", "memoryBacking"),
}
_MODELLED_DEVICES = {
    *("emulator", "disk", "controller", "interface", "serial", "console", "channel", "input", "graphics", "video"),
    # libvirt adds an <audio> to every domain with graphics.
    *("sound", "tpm", "rng", "memballoon", "hostdev", "audio"),
    *("watchdog", "vsock", "panic", "parallel", "filesystem"),
}


@dataclass(frozen=True)
class SeenDisk:
    """One disk or CD drive. ``owned``: the volume that kvmctl made for it; ``capacity_bytes`` None if not known."""

    target: str
    source: str | None
    device: str
    bus: str | None
    format: str | None
    cache: str | None
    discard: str | None
    serial: str | None
    readonly: bool
    shareable: bool
    owned: OwnedVolume | None = None
    capacity_bytes: int | None = None
    iops: int = 0
    bps: int = 0


@dataclass(frozen=True)
class SeenNic:
    """One card; ``nic`` is None where it is of a kind that ``--net`` does not have (``kind`` names it)."""

    kind: str
    nic: Nic | None


@dataclass(frozen=True)
class Seen:
    """What a VM's definition has, in a spec's terms. ``beyond``: what no spec can say, in a few words each."""

    view: DomainView
    tree: xml.Element
    disks: tuple[SeenDisk, ...]
    nics: tuple[SeenNic, ...]
    image: str | None
    user: str | None
    forwards: tuple[Forward, ...]
    volumes: tuple[OwnedVolume, ...]
    kernel: str | None
    initrd: str | None
    cmdline: str | None
    pxe: bool
    tpm: bool
    sound: bool
    graphics: str
    graphics_listen: str | None
    graphics_tls: bool
    profile: Literal["linux", "windows", "generic"]
    os: str | None
    seeded: bool
    beyond: tuple[str, ...]
    devices: tuple[str, ...] = ()
    video: str | None = None
    autostart: bool = False
    order: StartOrder | None = None
    running: bool = False


def read(domain: xml.Element) -> Seen:
    """A ``<domain>``, best the saved definition (a running one's CPU and addresses are filled in)."""
    view = domain_view.view(domain)
    screen = domain.find("devices/graphics")
    remembered = metadata.from_domain(domain)
    disks = tuple(_disk(element, remembered.volumes) for element in domain.iterfind("devices/disk"))
    return Seen(
        view=view,
        tree=domain,
        # The seed is made from other keys, and is no disk that anybody asked for.
        disks=tuple(disk for disk in disks if disk.owned is None or disk.owned.role != "seed"),
        nics=tuple(_nic(element, remembered) for element in domain.iterfind("devices/interface")),
        image=remembered.image,
        user=remembered.user,
        forwards=remembered.forwards,
        volumes=remembered.volumes,
        kernel=domain.findtext("os/kernel"),
        initrd=domain.findtext("os/initrd"),
        cmdline=domain.findtext("os/cmdline"),
        pxe=_boots_from_network(domain),
        tpm=domain.find("devices/tpm") is not None,
        sound=domain.find("devices/sound") is not None,
        graphics=screen.get("type", "") if screen is not None else "none",
        graphics_listen=_listens(screen),
        graphics_tls=screen is not None and screen.get("defaultMode") == "secure",
        profile=_profile(domain),
        os=os_name(domain) if domain.find(f"metadata/{{{_OSINFO}}}libosinfo") is not None else None,
        seeded=any(volume.role == "seed" for volume in remembered.volumes),
        beyond=tuple(_beyond(domain)),
        order=start_order.read(remembered),
        video=next((m.get("type") for m in domain.iterfind("devices/video/model")), None),
        devices=tuple(text for device in extras.chosen(domain) if (text := extras.text_of(device)) is not None),
    )


def _listens(screen: xml.Element | None) -> str | None:
    """The address that the screen is served on, None where it is none (a socket, a network's own)."""
    if screen is None:
        return None
    listen = screen.find("listen")
    return (listen.get("address") if listen is not None else None) or screen.get("listen")


def _disk(element: xml.Element, volumes: tuple[OwnedVolume, ...]) -> SeenDisk:
    view = domain_view.disk(element)
    driver, source = element.find("driver"), element.find("source")
    pool, name = (source.get("pool"), source.get("volume")) if source is not None else (None, None)
    owned = next(
        (v for v in volumes if (v.path is not None and v.path == view.source) or (v.pool, v.name) == (pool, name)), None
    )
    return SeenDisk(
        target=view.target,
        source=view.source,
        device=view.device,
        bus=view.bus,
        format=view.format,
        cache=driver.get("cache") if driver is not None else None,
        discard=driver.get("discard") if driver is not None else None,
        serial=element.findtext("serial"),
        readonly=view.readonly,
        shareable=element.find("shareable") is not None,
        owned=owned,
        iops=_number(element.findtext("iotune/total_iops_sec")),
        bps=_number(element.findtext("iotune/total_bytes_sec")),
    )


def _nic(element: xml.Element, remembered: metadata.Metadata) -> SeenNic:
    view = domain_view.nic(element)
    nic: Nic | None = None
    if view.mode == "user":
        nic = UserNic()
    elif view.mode == "network" and view.source:
        kept = next((r.ip for r in remembered.reservations if r.network == view.source and r.mac == view.mac), None)
        nic = NetworkNic(view.source, ip=kept)
    elif view.mode == "bridge" and view.source:
        nic = BridgeNic(view.source)
    elif view.mode == "macvtap" and view.source and view.macvtap_mode in MACVTAP_MODES:
        nic = MacvtapNic(view.source, check_macvtap_mode(view.macvtap_mode))
    if nic is None:
        return SeenNic(view.mode, None)
    # libvirt counts in KiB a second.
    inbound, outbound = (element.find(f"bandwidth/{side}") for side in ("inbound", "outbound"))
    return SeenNic(
        view.mode,
        nic._replace(model=view.model, mac=view.mac, inbound=_rate(inbound), outbound=_rate(outbound)),
    )


def _rate(side: xml.Element | None) -> int:
    return _number(side.get("average")) * 1024 if side is not None else 0


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0


def _boots_from_network(domain: xml.Element) -> bool:
    if domain.find("devices/interface/boot") is not None:
        return True
    return any(boot.get("dev") == "network" for boot in domain.iterfind("os/boot"))


def _profile(domain: xml.Element) -> Literal["linux", "windows", "generic"]:
    if domain.find("features/hyperv") is not None:
        return "windows"
    channel = domain.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    return "generic" if channel is None and domain.find("devices/rng") is None else "linux"


def _beyond(domain: xml.Element) -> list[str]:
    found: dict[str, None] = {}
    for child in domain:
        if isinstance(child.tag, str) and child.tag not in _MODELLED:
            found[f"<{xml.etree.QName(child).localname}>"] = None
    for device in domain.iterfind("devices/*"):
        if isinstance(device.tag, str) and device.tag not in _MODELLED_DEVICES:
            found[f"the device <{device.tag}>"] = None
    for hostdev in domain.iterfind("devices/hostdev"):
        if hostdev.get("type") not in ("pci", "mdev"):
            found[f"the {hostdev.get('type', '')} device that is passed through"] = None
    for extra in extras.chosen(domain):
        if extras.text_of(extra) is None:
            found[f"the device {extra.name}"] = None
    for child in domain.iterfind("cpu/*"):
        if child.tag in ("topology", "feature", "cache"):
            found[f"the CPU's <{child.tag}>"] = None
    for child in domain.iterfind("metadata/*"):
        if isinstance(child.tag, str) and xml.etree.QName(child).namespace not in (metadata.NAMESPACE, _OSINFO):
            found["other tools' metadata"] = None
    found.update(dict.fromkeys(tuned.beyond(domain)))
    return list(found)
