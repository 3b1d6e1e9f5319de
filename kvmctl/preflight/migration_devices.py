"""Whether the guest's devices find on the other host what they stand on here."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict
from kvmctl.model import xml
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides

if TYPE_CHECKING:
    from kvmctl.model.network import Network


def checks(sides: Sides) -> Iterator[Check]:
    """All of them: one for each card, and one for each device that stands in the way."""
    for interface in sides.live.iterfind("devices/interface"):
        yield _card(sides, interface)
    yield from _passthrough(sides)
    yield from _tied(sides)
    yield from _tpm(sides)
    yield from _firmware(sides)


def _card(sides: Sides, interface: xml.Element) -> Check:
    source = interface.find("source")
    place = dict(source.attrib) if source is not None else {}
    kind = interface.get("type", "")
    if kind == "network":
        return _network(sides, str(place.get("network", "")))
    if kind == "bridge":
        return _device(sides, "bridge", str(place.get("bridge", "")))
    if kind == "direct":
        return _device(sides, "macvtap", str(place.get("dev", "")))
    if kind == "user":
        return _user(sides)
    if kind == "hostdev":
        return Check(
            "network",
            "refused",
            "a network card of the host is passed through to the guest",
            "detach it, and attach one of the destination's afterwards",
        )
    if kind == "vdpa":
        return Check("network", "refused", "libvirt moves no vDPA card", "detach it first ('kvmctl nic detach')")
    return Check("network", "unknown", f"whether the destination has what a card of type {kind} needs")


def _network(sides: Sides, name: str) -> Check:
    title = f"network {name}"
    here, _ = _read_network(sides.source, name)
    there, running = _read_network(sides.destination, name)
    if there is None:
        return Check(
            title,
            "refused",
            "the destination has no network of this name",
            f"'kvmctl -c {sides.wish.destination} net create {name} …' makes it there",
        )
    if not running:
        return Check(
            title,
            "refused",
            "it is not running on the destination",
            f"'kvmctl -c {sides.wish.destination} net start {name}'",
        )
    if there.mode in ("nat", "route", "isolated", "open"):
        subnets = [", ".join(str(s) for s in net.subnets) if net is not None else "" for net in (here, there)]
        if subnets[0] != subnets[1]:
            detail = f"{subnets[0]} here and {subnets[1]} there: the guest keeps an address that is not of that network"
            return Check(title, "warn", detail, "let the guest ask for an address anew, or use a bridge to one LAN")
        detail = f"{there.mode}, {subnets[1]} on both: each host has its own, so open connections end"
        return Check(title, "warn", detail, "a bridge to one LAN (--net bridge:BR) keeps them")
    return Check(title, "ok", f"{there.mode}, runs on both")


def _read_network(hypervisor: Hypervisor, name: str) -> tuple["Network | None", bool]:
    # These and others of the kind are imported late: many guests have but a card on a bridge, and wait for each import.
    from kvmctl.model import network

    with translated(hypervisor.uri):
        try:
            found = hypervisor.conn.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if is_missing(error):
                return None, False
            raise
        return network.from_element(xml.parse(found.XMLDesc(0), "network")), bool(found.isActive())


def _device(sides: Sides, kind: str, name: str) -> Check:
    title = f"{kind} {name}"
    if _is_interface(sides.destination, name):
        return Check(title, "ok", "both hosts have it")
    known, all_of_them = _links(sides.destination)
    if name not in known and not all_of_them:
        return Check(
            title,
            "unknown",
            "libvirt on the destination does not tell of all its network devices",
            "with its interface driver (in Debian 13 the package libvirt-daemon-driver-interface) it would",
        )
    if name not in known:
        return Check(
            title,
            "refused",
            f"the destination has no device {name}",
            f"make it there: 'ip link add {name} type bridge'" if kind == "bridge" else "name a device that both have",
        )
    return Check(title, "ok", "both hosts have it")


def _is_interface(hypervisor: Hypervisor, name: str) -> bool:
    """Whether libvirt knows it at once by its name, as it does most; False says nothing."""
    try:
        return bool(hypervisor.conn.interfaceLookupByName(name).name() == name)
    except libvirt.libvirtError:
        return False


def _links(hypervisor: Hypervisor) -> tuple[set[str], bool]:
    """The names of the host's network devices that it or libvirt tells of, and whether these are all.

    libvirt's interfaces are looked up when asked for, but ports of a bridge are not among them, and Debian 13 has their
    driver in a package of its own. Its node devices have the ports, but no bridges, and follow udev, which is not
    everywhere.
    """
    if not hypervisor.is_remote:
        from kvmctl.preflight import hostnet

        host = hostnet.look(hypervisor)
        if host is not None:
            return set(host.links), True
    names: set[str] = set()
    driver = False
    with contextlib.suppress(libvirt.libvirtError):
        names.update(interface.name() for interface in hypervisor.conn.listAllInterfaces(0))
        driver = True
    with contextlib.suppress(libvirt.libvirtError):
        for device in hypervisor.conn.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET):
            names.add(xml.parse(device.XMLDesc(0), "device").findtext("capability/interface") or "lo")
    # A host always has its loopback: an empty list means that libvirt does not look.
    return names, driver and bool(names)


def _user(sides: Sides) -> Check:
    from kvmctl.model import metadata

    forwards = metadata.from_domain(sides.config if sides.config is not None else sides.live).forwards
    wanted = {(f.protocol, f.host_port) for f in forwards}
    try:
        with translated(sides.destination.uri):
            for other in sides.destination.conn.listAllDomains(0):
                tree = xml.parse(other.XMLDesc(0), "domain", "domain")
                taken = wanted & {(f.protocol, f.host_port) for f in metadata.from_domain(tree).forwards}
                if taken:
                    port = sorted(taken)[0]
                    raise Conflict(f"port {port[1]}/{port[0]} is published there for {other.name()}")
    except Conflict as error:
        return Check("user networking", "refused", error.message, "remove that port first ('kvmctl port remove')")
    ports = f", and {len(wanted)} published ports move along" if wanted else ""
    return Check(
        "user networking",
        "warn",
        f"the guest's open connections end, as they are its QEMU's own{ports}",
        "a bridge to one LAN (--net bridge:BR) keeps them",
    )


def _passthrough(sides: Sides) -> Iterator[Check]:
    hosts = sides.live.findall("devices/hostdev")
    for device in hosts:
        kind = device.get("type", "device")
        yield Check(
            "passthrough",
            "refused",
            f"a {kind} device of this host is passed through to the guest",
            f"detach it first ('kvmctl {kind if kind in ('pci', 'usb') else 'pci'} list' shows it)",
        )
    if not hosts:
        yield Check("passthrough", "ok", "no device of the host is passed through")


def _tied(sides: Sides) -> Iterator[Check]:
    """Devices that libvirt or QEMU 7.2 will not move, or only together with something outside the guest."""
    live = sides.live
    for share in live.iterfind("devices/filesystem"):
        driver = share.find("driver")
        kind = driver.get("type", "9p") if driver is not None else "9p"
        yield Check(
            "shared folder",
            "refused",
            f"a folder of this host is mounted in the guest ({'virtiofs' if kind == 'virtiofs' else '9p'})",
            "detach it first; use a network file system instead",
        )
    for memory in live.iterfind("devices/shmem"):
        model = memory.find("model")
        legacy = model is None or model.get("type") == "ivshmem"
        if legacy or memory.get("role") != "master":
            what = f"shmem {memory.get('name', '')} is memory that it shares with others on this host"
            yield Check("shared memory", "refused", what, "detach it first")
    if live.find("launchSecurity") is not None:
        yield Check(
            "memory encryption",
            "refused",
            "the guest's memory is encrypted for this host's CPU (SEV)",
            "such a guest moves only when it is off (--offline)",
        )
    for card in live.iterfind("devices/smartcard"):
        if card.get("mode") in ("host", "host-certificates"):
            yield Check("smart card", "refused", "the guest uses a smart card of this host", "detach it first")
    for port in (*live.iterfind("devices/serial"), *live.iterfind("devices/parallel")):
        if port.get("type") == "dev":
            source = port.find("source")
            path = source.get("path", "") if source is not None else ""
            yield Check(f"{port.tag!s} port", "warn", f"it is this host's {path}, and will be the destination's there")


def _tpm(sides: Sides) -> Iterator[Check]:
    backend = sides.live.find("devices/tpm/backend")
    if backend is None:
        return
    if backend.get("type") != "emulator":
        yield Check("TPM", "refused", "the guest has this host's own TPM", "give it an emulated one (--tpm)")
        return
    kind = sides.live.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    with translated(sides.destination.uri):
        text = sides.destination.conn.getDomainCapabilities(None, arch, machine, sides.virt, 0)
    values = {
        v.text for v in xml.parse(text, "domain capabilities").iterfind("devices/tpm/enum[@name='backendModel']/value")
    }
    if "emulator" in values:
        yield Check("TPM", "ok", "both hosts emulate it; its state moves along")
    else:
        yield Check("TPM", "refused", "the destination emulates no TPM", "install swtpm and swtpm-tools there")


def _firmware(sides: Sides) -> Iterator[Check]:
    loader = sides.live.findtext("os/loader")
    if loader is None:
        return
    kind = sides.live.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    with translated(sides.destination.uri):
        text = sides.destination.conn.getDomainCapabilities(None, arch, machine, sides.virt, 0)
    known = {v.text for v in xml.parse(text, "domain capabilities").iterfind("os/loader/value")}
    if loader not in known:
        yield Check(
            "firmware",
            "refused" if known else "unknown",
            f"the destination does not list {loader}",
            "install the same UEFI firmware there (Debian: ovmf)",
        )
    elif sides.wish.offline and sides.live.find("os/nvram") is not None:
        yield Check(
            "firmware",
            "warn",
            "libvirt leaves the UEFI variables of a VM that is off on its host",
            "move it while it runs, or copy its NVRAM file by hand",
        )
    else:
        yield Check("firmware", "ok", f"both have {loader}")
