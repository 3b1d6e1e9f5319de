"""What can be tuned of a VM: the words of ``kvmctl set``, and the XML they mean."""

import re
from typing import NamedTuple

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model import xml
from kvmctl.model.units import KIB, MIB, parse_size

CPU_MODES = ("host-passthrough", "host-model", "maximum")


class Pin(NamedTuple):
    """A vCPU and the host CPUs that it may run on; ``cpus`` empty: on all."""

    vcpu: int
    cpus: frozenset[int]


def parse_pin(text: str) -> Pin:
    """``VCPU:CPUS``, CPUS as ``0-3,7`` or ``all``. Raises UsageProblem."""
    match = re.fullmatch(r"([0-9]{1,4}):(all|[0-9,-]{1,200})", text)
    cpus: set[int] = set()
    for part in match[2].split(",") if match and match[2] != "all" else []:
        span = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if span is None or int(span[2] or span[1]) < int(span[1]):
            match = None
            break
        cpus |= set(range(int(span[1]), int(span[2] or span[1]) + 1))
    if match is None:
        raise UsageProblem(f"--pin {text[:60]!a} is no VCPU:CPUS", "write it like 0:2-3 or 1:all")
    return Pin(int(match[1]), frozenset(cpus))


def set_pin(domain: xml.Element, pin: Pin) -> None:
    """Pin this vCPU in the ``<domain>``, or let it run on all of the host's CPUs again."""
    tune = domain.find("cputune")
    if tune is None:
        tune = xml.add(domain, "cputune")
    for old in tune.findall(f"vcpupin[@vcpu='{pin.vcpu}']"):
        tune.remove(old)
    if pin.cpus:
        xml.add(tune, "vcpupin", vcpu=pin.vcpu, cpuset=",".join(map(str, sorted(pin.cpus))))
    if not len(tune):
        domain.remove(tune)


class DiskLimit(NamedTuple):
    """Operations and bytes a second of a disk; None leaves one, 0 takes it away."""

    target: str
    iops: int | None
    bps: int | None


def parse_disk_limit(text: str) -> DiskLimit:
    """``TARGET,iops=N,bps=SIZE``, one of the two at least. Raises UsageProblem."""
    target, *options = text.split(",")
    given = dict(option.partition("=")[::2] for option in options)
    if not target or not given or set(given) - {"iops", "bps"} or len(given) != len(options):
        raise UsageProblem(
            f"--disk-limit {text[:60]!a} is no limit", "write it like vda,iops=500,bps=100M; 0 takes it away"
        )
    iops = given.get("iops")
    if iops is not None and not re.fullmatch(r"[0-9]{1,9}", iops):
        raise UsageProblem(f"--disk-limit {text[:60]!a}: iops is a number of operations a second")
    bps = given.get("bps")
    return DiskLimit(
        target, None if iops is None else int(iops), None if bps is None else 0 if bps == "0" else parse_size(bps)
    )


class NetLimit(NamedTuple):
    """Bytes a second into the guest and out of it; None leaves one, 0 takes it away."""

    mac: str
    inbound: int | None
    outbound: int | None


def parse_net_limit(text: str) -> NetLimit:
    """``MAC,in=SIZE,out=SIZE``, one of the two at least. Raises UsageProblem."""
    mac, *options = text.split(",")
    given = dict(option.partition("=")[::2] for option in options)
    if not mac or not given or set(given) - {"in", "out"} or len(given) != len(options):
        raise UsageProblem(f"--net-limit {text[:60]!a} is no limit", "write it like 52:54:00:12:34:56,in=10M,out=2M")
    rates = {}
    for key, value in given.items():
        rates[key] = 0 if value == "0" else parse_size(value)
        if 0 < rates[key] < 1024:
            raise UsageProblem(f"--net-limit {text[:60]!a}: the least rate is 1 KiB a second")
    return NetLimit(mac.lower(), rates.get("in"), rates.get("out"))


class MemoryLimit(NamedTuple):
    """Bytes of the host that the guest's QEMU may hold; None leaves a limit, 0 takes it away.

    Past ``hard`` the host's kernel kills it; ``soft`` is what it is pressed down to when the host is short.
    """

    hard: int | None
    soft: int | None


def parse_memory_limit(text: str) -> MemoryLimit:
    """``hard=SIZE,soft=SIZE``, one of the two at least. Raises UsageProblem."""
    options = text.split(",")
    given = dict(option.partition("=")[::2] for option in options)
    if set(given) - {"hard", "soft"} or len(given) != len(options):
        raise UsageProblem(
            f"--memory-limit {text[:60]!a} is no limit", "write it like hard=6G or soft=2G,hard=6G; 0 takes it away"
        )
    sizes = {key: 0 if value == "0" else parse_size(value, MIB) // KIB * KIB for key, value in given.items()}
    hard, soft = sizes.get("hard"), sizes.get("soft")
    if hard and soft and soft > hard:
        raise UsageProblem(f"--memory-limit {text[:60]!a}: the soft limit is above the hard one")
    return MemoryLimit(hard, soft)


def set_memory_limit(domain: xml.Element, limit: MemoryLimit) -> None:
    """Set the limits in the ``<domain>``'s ``<memtune>``."""
    tune = domain.find("memtune")
    if tune is None:
        tune = xml.add(domain, "memtune")
    for tag, value in (("hard_limit", limit.hard), ("soft_limit", limit.soft)):
        if value is None:
            continue
        for old in tune.findall(tag):
            tune.remove(old)
        if value:
            xml.add(tune, tag, value // KIB, unit="KiB")
    if not len(tune):
        domain.remove(tune)


def memory_limit_of(domain: xml.Element) -> MemoryLimit:
    """The limits that a ``<domain>`` says (libvirt always writes them in KiB); 0 for none."""
    found = []
    for tag in ("hard_limit", "soft_limit"):
        text = domain.findtext(f"memtune/{tag}", "").strip()
        found.append(int(text) * KIB if text.isascii() and text.isdigit() else 0)
    return MemoryLimit(*found)


class Numa(NamedTuple):
    """``cells`` NUMA nodes in the guest, its vCPUs and memory divided among them; 0: none.

    ``host_nodes`` are the host's nodes that all its memory shall come from, as libvirt writes them; None: any.
    """

    cells: int
    host_nodes: str | None = None


def parse_numa(text: str) -> Numa:
    """``CELLS[,host=NODES]``, NODES as ``0-1,3``. Raises UsageProblem."""
    match = re.fullmatch(r"([0-9]{1,3})(?:,host=([0-9]{1,3}(?:-[0-9]{1,3})?(?:,[0-9]{1,3}(?:-[0-9]{1,3})?)*))?", text)
    if match is None:
        raise UsageProblem(f"--numa {text[:60]!a} is no CELLS[,host=NODES]", "write it like 2 or 2,host=0-1; 0 is none")
    return Numa(int(match[1]), match[2])


def set_numa(domain: xml.Element, numa: Numa) -> None:
    """Give the ``<domain>`` these NUMA nodes. Raises UsageProblem for more nodes than vCPUs or MiB of memory."""
    for place, tag in (("cpu", "numa"), (".", "numatune")):
        for holder in domain.findall(place):
            for old in holder.findall(tag):
                holder.remove(old)
    if numa.cells:
        vcpus = int(domain.findtext("vcpu", "1").strip())
        memory = int(domain.findtext("memory", "0").strip())
        if numa.cells > vcpus or numa.cells > memory // 1024:
            raise UsageProblem(
                f"{numa.cells} NUMA nodes are more than its {vcpus} vCPUs or its memory can be divided into"
            )
        cpu = domain.find("cpu")
        if cpu is None:
            cpu = xml.add(domain, "cpu")
        holder = xml.add(cpu, "numa")
        share = memory // 1024 // numa.cells * 1024
        for cell in range(numa.cells):
            first, last = cell * vcpus // numa.cells, (cell + 1) * vcpus // numa.cells - 1
            # The last one gets what cannot be divided.
            size = share if cell < numa.cells - 1 else memory - share * (numa.cells - 1)
            cpus = str(first) if first == last else f"{first}-{last}"
            xml.add(holder, "cell", id=cell, cpus=cpus, memory=size, unit="KiB")
    if numa.host_nodes is not None:
        xml.add(xml.add(domain, "numatune"), "memory", mode="strict", nodeset=numa.host_nodes)


def numa_of(domain: xml.Element) -> Numa:
    """The NUMA nodes of a ``<domain>``."""
    memory = domain.find("numatune/memory")
    return Numa(len(domain.findall("cpu/numa/cell")), memory.get("nodeset") if memory is not None else None)


def set_cpu(domain: xml.Element, cpu: str) -> None:
    """Give the ``<domain>`` this CPU mode or model, keeping the topology it says."""
    old = domain.find("cpu")
    kept = [child for child in old if child.tag in ("topology", "numa", "cache")] if old is not None else []
    if cpu in CPU_MODES:
        new = xml.new("cpu", mode=cpu, check="partial" if cpu == "host-model" else "none")
    else:
        new = xml.new("cpu", mode="custom", match="exact", check="partial")
        xml.add(new, "model", cpu, fallback="forbid")
    new.extend(kept)
    if old is not None:
        domain.replace(old, new)
    else:
        domain.append(new)


def cpu_of(domain: xml.Element) -> str | None:
    """The mode or model of a ``<domain>``."""
    element = domain.find("cpu")
    if element is None:
        return None
    return element.findtext("model") if element.get("mode", "custom") == "custom" else element.get("mode")


def set_scheduler(domain: xml.Element, values: dict[str, int]) -> None:
    """Set ``shares``, ``period`` and ``quota`` in the ``<domain>``'s ``<cputune>``."""
    tune = domain.find("cputune")
    if tune is None:
        tune = xml.add(domain, "cputune")
    for tag, value in values.items():
        for old in tune.findall(tag):
            tune.remove(old)
        xml.add(tune, tag, value)


def set_hugepages(domain: xml.Element, on: bool) -> None:
    """Back the ``<domain>``'s memory with the host's huge pages, or no longer."""
    backing = domain.find("memoryBacking")
    if backing is None:
        if not on:
            return
        backing = xml.add(domain, "memoryBacking")
    for old in backing.findall("hugepages"):
        backing.remove(old)
    if on:
        backing.insert(0, xml.new("hugepages"))
    if not len(backing):
        domain.remove(backing)


def set_boot(domain: xml.Element, words: list[str], vm: str) -> None:
    """Let the ``<domain>`` boot from these in turn: ``disk``, ``cdrom``, ``network``, a target or a MAC.

    Raises NotFound for what the VM does not have, UsageProblem for one named twice.
    """
    order: list[xml.Element] = []
    for word in words:
        hits = [device for device in _bootable(domain, word) if device not in order]
        if not hits and list(_bootable(domain, word)):
            raise UsageProblem(f"--boot names {word[:40]!a} twice")
        if not hits:
            raise NotFound(f"{vm} has no {word[:40]!a} to boot from", "give disk, cdrom, network, a target or a MAC")
        order.append(hits[0])
    for holder in (*domain.iterfind("os"), *domain.iterfind("devices/*")):
        for boot in holder.findall("boot"):
            holder.remove(boot)
    for number, device in enumerate(order, 1):
        xml.add(device, "boot", order=number)


def boot_of(domain: xml.Element) -> list[str]:
    """The devices that a ``<domain>`` boots from, in turn, as targets and MACs; empty where only kinds are named."""
    found = []
    for device in domain.iterfind("devices/*"):
        boot = device.find("boot")
        if boot is not None and boot.get("order", "").isdigit():
            found.append((int(boot.get("order", "0")), _name(device)))
    return [name for _, name in sorted(found)]


def _bootable(domain: xml.Element, word: str) -> list[xml.Element]:
    disks, cards = domain.findall("devices/disk"), domain.findall("devices/interface")
    if word == "disk":
        return [disk for disk in disks if disk.get("device", "disk") == "disk"]
    if word == "cdrom":
        return [disk for disk in disks if disk.get("device") == "cdrom"]
    if word == "network":
        return cards
    return [device for device in (*disks, *cards) if word and _name(device).lower() == word.lower()]


def _name(device: xml.Element) -> str:
    element = device.find("target") if device.tag == "disk" else device.find("mac")
    if element is None:
        return ""
    return (element.get("dev") if device.tag == "disk" else element.get("address")) or ""
