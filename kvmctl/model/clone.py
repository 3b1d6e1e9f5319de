"""A copy's ``<domain>``, made from the source's own tree: what must differ between two machines, and nothing else."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kvmctl.model import xml
from kvmctl.model.metadata import Metadata, put

# The prefix that QEMU's guests have by custom (virMacAddrGenerate's callers in libvirt's qemu driver).
_OUI = (0x52, 0x54, 0x00)
_MAC_IN_MEMORY = ("e1000e", "igb", "rtl8139", "vmxnet3")


@dataclass(frozen=True)
class Identity:
    """What tells the copy from the source: ``macs`` maps each of the source's addresses to the copy's."""

    name: str
    uuid: str
    macs: Mapping[str, str]


def new_mac(taken: Collection[str]) -> str:
    """A MAC address in QEMU's range that is not in ``taken`` (lower case)."""
    while True:
        mac = ":".join(f"{octet:02x}" for octet in (*_OUI, *secrets.token_bytes(3)))
        if mac not in taken:
            return mac


def macs_of(domain: xml.Element) -> list[str]:
    """The MAC addresses of a ``<domain>``'s cards, lower case, in their order."""
    return [element.get("address", "").lower() for element in domain.iterfind("devices/interface/mac")]


def cards_in_networks(domain: xml.Element) -> list[tuple[str, str]]:
    """MAC (lower case) and network of each card that is in a network of libvirt's."""
    found = []
    for interface in domain.iterfind("devices/interface[@type='network']"):
        mac, source = interface.find("mac"), interface.find("source")
        if mac is not None and source is not None and source.get("network"):
            found.append((mac.get("address", "").lower(), source.get("network", "")))
    return found


def rename(domain: xml.Element, identity: Identity) -> None:
    """Give the tree the copy's name, UUID, MACs and a new generation id, in place."""
    _set(domain, "name", identity.name)
    _set(domain, "uuid", identity.uuid)
    genid = domain.find("genid")
    if genid is not None:
        # Left empty libvirt makes one: it tells Windows and ACPI guests that they are a copy.
        genid.text = None
    for entry in domain.iterfind("sysinfo/system/entry[@name='uuid']"):
        # libvirt insists that it is the domain's own.
        entry.text = identity.uuid
    for mac in domain.iterfind("devices/interface/mac"):
        mac.set("address", identity.macs[mac.get("address", "").lower()])
    for interface in domain.iterfind("devices/interface"):
        target = interface.find("target")
        if target is not None:
            # The name of a tap device exists once on a host; libvirt finds another.
            interface.remove(target)


def set_disks(domain: xml.Element, sources: Mapping[str, tuple[str, str]]) -> None:
    """Point disks at other files: ``sources`` maps a target to (path, format). The backing chain is looked up anew."""
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        wanted = sources.get(target.get("dev", "")) if target is not None else None
        if wanted is None:
            continue
        path, format_ = wanted
        disk.set("type", "file")
        for tag in ("source", "backingStore", "mirror"):
            old = disk.find(tag)
            if old is not None:
                disk.remove(old)
        driver = disk.find("driver")
        if driver is None:
            driver = xml.new("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", format_)
        disk.insert(list(disk).index(driver) + 1, xml.new("source", file=path))


def separate(domain: xml.Element) -> list[str]:
    """Take away, in place, what two machines cannot both have; returns a sentence for each thing that is lost."""
    lost = _drop_passthrough(domain)
    for graphics in domain.iterfind("devices/graphics"):
        if graphics.get("type") in ("vnc", "spice", "rdp") and graphics.get("autoport") == "no":
            graphics.set("autoport", "yes")
            for attribute in ("port", "tlsPort", "websocket"):
                graphics.attrib.pop(attribute, None)
            lost.append(f"its {graphics.get('type')} display gets a port of its own")
    for cid in domain.iterfind("devices/vsock/cid"):
        cid.attrib.pop("address", None)
        cid.set("auto", "yes")
    _own_paths(domain)
    if domain.find("devices/tpm") is not None:
        lost.append("the TPM of the copy is new and empty: what the source has sealed in its own will not open there")
    return lost


def _drop_passthrough(domain: xml.Element) -> list[str]:
    lost: list[str] = []
    devices = domain.find("devices")
    if devices is None:
        return lost
    for element in [*devices.findall("hostdev"), *devices.findall("interface[@type='hostdev']")]:
        devices.remove(element)
        lost.append(f"a {element.get('type', 'host')} device that is passed through stays with the source alone")
    return lost


def _own_paths(domain: xml.Element) -> None:
    """Sockets and log files that libvirt or QEMU creates by name: each copy gets its own, or libvirt's choice."""
    name = domain.findtext("name") or "copy"
    for kind in ("channel", "serial", "console", "parallel"):
        for element in domain.iterfind(f"devices/{kind}"):
            source = element.find("source")
            if source is not None and element.get("type") == "unix" and source.get("mode") == "bind":
                element.remove(source)
            elif source is not None and element.get("type") == "file" and source.get("path"):
                source.set("path", f"{source.get('path')}.{name}")
            log = element.find("log")
            if log is not None and log.get("file"):
                log.set("file", f"{log.get('file')}.{name}")


def set_nvram(domain: xml.Element, path: str | None) -> None:
    """Give the UEFI variables a file of the copy's own; with None libvirt chooses it and fills in its template."""
    nvram = domain.find("os/nvram")
    if nvram is None:
        return
    for child in list(nvram):
        nvram.remove(child)
    for attribute in ("type", "format"):
        nvram.attrib.pop(attribute, None)
    nvram.text = path


def remember(domain: xml.Element, metadata: Metadata) -> None:
    """Set what kvmctl remembers of the copy."""
    put(domain, metadata)


def cables_out(domain: xml.Element) -> frozenset[str]:
    """The MACs (lower case) of the cards whose cable is out."""
    return frozenset(
        mac.get("address", "").lower()
        for interface in domain.iterfind("devices/interface")
        for mac in interface.findall("mac")
        if interface.find("link[@state='down']") is not None
    )


def cards_bound_to_their_mac(domain: xml.Element) -> list[str]:
    """The cards that QEMU cannot restore with another MAC ("52:54:00:… (e1000e)").

    Either it is in their PCI Express serial number, which must be as it was saved (pcie_dev_ser_num_init in QEMU's
    hw/net), or QEMU takes it from what it restores and announces it on the wire at once (rtl8139's vmstate).
    """
    found = []
    for interface in domain.iterfind("devices/interface"):
        mac, model = interface.find("mac"), interface.find("model")
        if mac is not None and model is not None and model.get("type") in _MAC_IN_MEMORY:
            found.append(f"{mac.get('address', '').lower()} ({model.get('type')})")
    return found


def cut_network(domain: xml.Element) -> None:
    """Every card's link down, as it is when its cable is out."""
    for interface in domain.iterfind("devices/interface"):
        link = interface.find("link")
        if link is None:
            link = xml.add(interface, "link")
        link.set("state", "down")


def _set(domain: xml.Element, tag: str, text: str) -> None:
    element = domain.find(tag)
    if element is None:
        element = xml.new(tag)
        domain.insert(0, element)
    element.text = text
