"""Whether the other host can be a home for the guest: another machine, emulator, CPU, memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import libvirt

from kvmctl.connection import explain, translated
from kvmctl.errors import KvmctlError
from kvmctl.model import xml
from kvmctl.model.units import human_size
from kvmctl.preflight.check import Check
from kvmctl.preflight.migration_sides import Sides

if TYPE_CHECKING:
    from kvmctl.preflight.cpu_compare import Comparison

PAGES_KIB = {"k": 1, "kib": 1, "m": 1024, "mib": 1024, "g": 1024**2, "gib": 1024**2, "kb": 1, "mb": 1024, "gb": 1024**2}


def checks(sides: Sides) -> Iterator[Check]:
    """All but another_host(), which must hold for these to mean anything; each is on its own."""
    machine = _machine(sides)
    yield machine
    yield _versions(sides)
    if machine.level != "refused":
        yield cpu(sides)
    yield _memory(sides)
    yield from _hugepages(sides)
    yield _vcpus(sides)


def another_host(sides: Sides) -> Check:
    """The same machine by any name: libvirt tells hosts apart by their UUID and their own host name."""
    here, there = (tree.findtext("host/uuid") for tree in (sides.here, sides.there))
    with translated(sides.source.uri):
        name_here = sides.source.conn.getHostname()
    with translated(sides.destination.uri):
        name_there = sides.destination.conn.getHostname()
    if here is not None and here == there:
        return Check(
            "host",
            "refused",
            f"source and destination are the same host, {name_here} (UUID {here})",
            "name another host; where two machines have one UUID, give each its own host_uuid in libvirtd.conf",
        )
    if name_here == name_there:
        return Check(
            "host",
            "refused",
            f"both hosts call themselves {name_here}, so libvirt takes them for one",
            "give one of them another host name",
        )
    if name_there in ("localhost", "localhost.localdomain"):
        return Check(
            "host",
            "refused",
            "the destination calls itself localhost, and tells the source to send the guest there",
            "give it a host name that the source can resolve, or set migration_host in its qemu.conf",
        )
    return Check("host", "ok", f"{name_here} to {name_there}")


def _machine(sides: Sides) -> Check:
    """Accelerator, emulator and machine type in one: the destination's domain capabilities for exactly these."""
    kind = sides.live.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    emulator = sides.live.findtext("devices/emulator")
    what = f"{sides.virt} guest of type {arch}/{machine}"
    try:
        sides.destination.conn.getDomainCapabilities(emulator, arch, machine, sides.virt, 0)
    except libvirt.libvirtError as error:
        said = explain(error).message
        if sides.virt == "kvm":
            hint = "is KVM there (kvmctl -c DEST host check), and its QEMU at least as new as the source's?"
        else:
            hint = "install the same emulator there, at least as new as the source's"
        return Check("machine", "refused", f"the destination cannot run a {what} with {emulator}: {said}", hint)
    return Check("machine", "ok", f"both run a {what} with {emulator}")


def _versions(sides: Sides) -> Check:
    with translated(sides.source.uri):
        here = (sides.source.conn.getVersion(), sides.source.conn.getLibVersion())
    with translated(sides.destination.uri):
        there = (sides.destination.conn.getVersion(), sides.destination.conn.getLibVersion())
    seen = f"QEMU {_dotted(here[0])}, libvirt {_dotted(here[1])} here; {_dotted(there[0])}, {_dotted(there[1])} there"
    if there[0] < here[0]:
        return Check(
            "versions",
            "warn",
            f"{seen}: the way to an older QEMU is not tested by its makers",
            "update the destination",
        )
    return Check("versions", "ok", seen)


def _dotted(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def cpu(sides: Sides) -> Check:
    """The guest's CPU, as it runs, against what the destination's hypervisor can give a guest."""
    element = sides.live.find("cpu")
    if element is None:
        return Check("cpu", "ok", "the guest has QEMU's default CPU, which every host gives")
    unsafe = next((f for f in element.findall("feature[@name='invtsc']") if f.get("policy") == "require"), None)
    if unsafe is not None and sides.live.find("clock/timer[@name='tsc'][@frequency]") is None:
        return Check(
            "cpu",
            "refused",
            "the guest's CPU has invtsc without a fixed frequency, which QEMU does not move",
            "take the feature out of its <cpu>, or give <timer name='tsc'> a frequency, and restart it",
        )
    mode = element.get("mode", "custom")
    if mode in ("host-passthrough", "maximum") and sides.virt == "kvm":
        return _whole_cpu(sides)
    return _cpu_of_guest(sides, element)


def _compared(sides: Sides) -> "Comparison":
    # Imported late: the destination's hypervisor judges most guests' CPUs by itself.
    from kvmctl.model.host_cpu import from_document
    from kvmctl.preflight import cpu_compare

    return cpu_compare.compare(from_document(sides.here, "the source"), from_document(sides.there, "the destination"))


def _whole_cpu(sides: Sides) -> Check:
    """host-passthrough: the guest sees the source's CPU, so nothing of it may be missing on the other side."""
    try:
        found = _compared(sides)
    except KvmctlError as error:
        return Check("cpu", "unknown", f"the hosts' CPUs cannot be compared: {error.message}", error.hint)
    if found.as_is:
        return Check("cpu", "ok", "host-passthrough, and the destination's CPU has all of the source's")
    return Check("cpu", "refused", f"host-passthrough, and {found.reason}", _baseline_hint(found.baseline))


def _cpu_of_guest(sides: Sides, element: xml.Element) -> Check:
    kind = sides.live.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    emulator = sides.live.findtext("devices/emulator")
    shown = element.findtext("model") or element.get("mode", "custom")
    try:
        result = sides.destination.conn.compareHypervisorCPU(
            emulator,
            arch,
            machine,
            sides.virt,
            xml.raw(element),
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return Check("cpu", "unknown", f"the destination does not judge CPUs: {explain(error).message}")
        said = explain(error).message.partition(": ")[2] or explain(error).message
        return Check("cpu", "refused", f"the destination cannot give {shown}: {said}", _common(sides))
    if result == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE:
        return Check("cpu", "refused", f"the destination cannot give {shown}", _common(sides))
    return Check("cpu", "ok", f"the destination gives {shown} with all its features")


def _common(sides: Sides) -> str | None:
    try:
        found = _compared(sides)
    except KvmctlError:
        return "give the guest a CPU model that both hosts have: 'virsh domcapabilities' lists them"
    return _baseline_hint(found.baseline)


def _baseline_hint(baseline: str | None) -> str:
    if baseline is None:
        return "no CPU model runs on both: such a guest moves only when it is off"
    model = xml.parse(baseline, "baseline").findtext("model")
    return f"give it the CPU that both have ({model}: 'kvmctl host cpu compare' prints it whole) and restart it"


def _memory(sides: Sides) -> Check:
    need = sides.memory_bytes
    with translated(sides.destination.uri):
        stats = sides.destination.conn.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    # KiB. What is cached gives way to a guest.
    total = stats.get("total", 0) * 1024
    free = sum(stats.get(key, 0) for key in ("free", "cached", "buffers")) * 1024
    seen = f"the guest has {human_size(need)}, the destination {human_size(free)} available of {human_size(total)}"
    if need > total:
        return Check("memory", "refused", seen, "choose a larger host, or give the guest less")
    if need > free and sides.active:
        return Check("memory", "refused", seen, "free some there: stop or move another guest")
    return Check("memory", "ok", seen)


def _hugepages(sides: Sides) -> Iterator[Check]:
    backing = sides.live.find("memoryBacking/hugepages")
    if backing is None:
        return
    need = sides.most_memory_bytes // 1024
    page = backing.find("page")
    size = int(page.get("size", "0")) * PAGES_KIB.get(page.get("unit", "KiB").lower(), 1) if page is not None else 0
    with translated(sides.destination.uri):
        sizes = [int(p.get("size", "0")) for p in sides.there.iterfind("host/cpu/pages")]
        size = size or next((s for s in sorted(sizes) if s > 4), 0)
        cells = max(1, len(sides.there.findall("host/topology/cells/cell")))
        try:
            counted = sides.destination.conn.getFreePages([size], 0, cells, 0)
        except libvirt.libvirtError as error:
            yield Check("huge pages", "refused", f"no pages of {size} KiB there: {explain(error).message}")
            return
    # {cell: {page size: count}}
    free = sum(count for pages in counted.values() for count in pages.values()) * size
    seen = f"needs {human_size(need * 1024)} in pages of {size} KiB; {human_size(free * 1024)} are free there"
    if free < need:
        yield Check(
            "huge pages", "refused", seen, f"'virsh -c {sides.wish.destination} allocpages {size}KiB COUNT' adds some"
        )
    else:
        yield Check("huge pages", "ok", seen)


def _vcpus(sides: Sides) -> Check:
    need = sides.vcpus
    with translated(sides.destination.uri):
        there = sides.destination.conn.getInfo()[2]
    seen = f"{need} of the guest's, and the destination has {there}"
    if need > there:
        return Check("vcpus", "warn", seen, "it will run, slowly")
    return Check("vcpus", "ok", seen)
