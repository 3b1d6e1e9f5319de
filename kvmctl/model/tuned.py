"""All that can be tuned of a VM at once: from the words of ``set``, ``create`` and specs, into a domain, and back.

Of one thing by itself see model/tuning.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model import tuning, xml
from kvmctl.model.tuning import DiskLimit, MemoryLimit, NetLimit, Numa, Pin
from kvmctl.model.units import human_size

# The period, in microseconds, that a quota is a part of: libvirt's and the kernel's own default.
PERIOD = 100_000
# What of libvirt's elements kvmctl has words for; anything else in them is beyond those.
_SAYABLE = {
    "memtune": {"hard_limit", "soft_limit"},
    "cputune": {"shares", "period", "quota", "vcpupin"},
    "numatune": {"memory"},
    "memoryBacking": {"hugepages"},
}


class Tuning(NamedTuple):
    """What to tune; None or empty leaves it. ``cpu_percent`` is of one CPU, for each vCPU; 0 takes the limit away."""

    cpu: str | None = None
    pins: tuple[Pin, ...] = ()
    cpu_shares: int | None = None
    cpu_percent: int | None = None
    hugepages: bool | None = None
    boot: tuple[str, ...] = ()
    disk_limits: tuple[DiskLimit, ...] = ()
    net_limits: tuple[NetLimit, ...] = ()
    memory_limit: MemoryLimit | None = None
    numa: Numa | None = None
    start_order: int | None = None
    start_delay: int | None = None

    @property
    def next_start_only(self) -> list[str]:
        """The options among these that a running guest cannot take."""
        given: tuple[tuple[str, object], ...] = (
            ("--cpu", self.cpu),
            ("--hugepages", self.hugepages),
            ("--boot", self.boot or None),
            ("--numa", self.numa),
            ("--autostart-order", self.start_order),
            ("--autostart-delay", self.start_delay),
        )
        return [name for name, value in given if value is not None]


def from_words(given: Mapping[str, Any]) -> Tuning:
    """What the options of that name say, each as text, number or switch; other keys do not matter.

    ``autostart_delay`` is seconds, ``boot`` one text with commas or several. Raises UsageProblem.
    """
    boot, delay = given.get("boot") or (), given.get("autostart_delay")
    limit, numa = given.get("memory_limit"), given.get("numa")
    return Tuning(
        pins=tuple(map(tuning.parse_pin, given.get("pins") or ())),
        cpu_shares=given.get("cpu_shares"),
        cpu_percent=given.get("cpu_limit"),
        hugepages=given.get("hugepages"),
        boot=tuple(boot.split(",") if isinstance(boot, str) else boot),
        disk_limits=tuple(map(tuning.parse_disk_limit, given.get("disk_limits") or ())),
        net_limits=tuple(map(tuning.parse_net_limit, given.get("net_limits") or ())),
        memory_limit=tuning.parse_memory_limit(limit) if limit else None,
        numa=tuning.parse_numa(numa) if numa else None,
        start_order=given.get("autostart_order"),
        start_delay=None if delay is None else round(delay),
    )


def check_memory_limit(limit: MemoryLimit, memory_bytes: int, vm: str) -> None:
    """Raise UsageProblem where the guest's own memory alone would be more than its hard limit."""
    if limit.hard and limit.hard < memory_bytes:
        raise UsageProblem(
            f"a hard limit of {human_size(limit.hard)} is less than {vm}'s {human_size(memory_bytes)} of memory",
            "the host's kernel would kill the guest when it uses that; QEMU needs some more itself",
        )


def apply(domain: xml.Element, wanted: Tuning, vm: str) -> None:
    """Tune a new guest's ``<domain>``, but for its CPU and start order. Raises UsageProblem, NotFound."""
    vcpus = int(domain.findtext("vcpu", "1"))
    for pin in wanted.pins:
        if pin.vcpu >= vcpus:
            raise UsageProblem(f"{vm} has no vCPU {pin.vcpu}", f"it has 0 to {vcpus - 1}")
        tuning.set_pin(domain, pin)
    scheduled = {}
    if wanted.cpu_shares is not None:
        scheduled["shares"] = wanted.cpu_shares
    if wanted.cpu_percent:
        scheduled |= {"period": PERIOD, "quota": wanted.cpu_percent * PERIOD // 100}
    if scheduled:
        tuning.set_scheduler(domain, scheduled)
    if wanted.memory_limit is not None:
        check_memory_limit(wanted.memory_limit, int(domain.findtext("memory", "0")) * 1024, vm)
        tuning.set_memory_limit(domain, wanted.memory_limit)
    if wanted.hugepages:
        tuning.set_hugepages(domain, True)
    if wanted.numa is not None:
        tuning.set_numa(domain, wanted.numa)
    if wanted.boot:
        tuning.set_boot(domain, list(wanted.boot), vm)


# ---------------------------------------------------------------- what a domain says


def pins_of(domain: xml.Element) -> tuple[str, ...]:
    """The pinned vCPUs, as ``--pin`` would ask for the same."""
    pins = [(e.get("vcpu", ""), e.get("cpuset", "")) for e in domain.iterfind("cputune/vcpupin")]
    return tuple(f"{vcpu}:{cpus}" for vcpu, cpus in sorted(pins, key=lambda pin: (len(pin[0]), pin[0])))


def shares_of(domain: xml.Element) -> int | None:
    """The CPU shares, None where it says nothing of them."""
    return _number(domain.findtext("cputune/shares")) or None


def percent_of(domain: xml.Element) -> int | None:
    """What each vCPU may use of a CPU, in percent; None without a limit."""
    quota, period = _number(domain.findtext("cputune/quota")), _number(domain.findtext("cputune/period")) or PERIOD
    return quota * 100 // period or None if quota > 0 else None


def numa_text(numa: Numa) -> str | None:
    """``numa`` as ``--numa`` has it; None where there is none."""
    if not numa.cells and numa.host_nodes is None:
        return None
    return str(numa.cells) + (f",host={numa.host_nodes}" if numa.host_nodes is not None else "")


def boot_words(domain: xml.Element) -> tuple[str, ...] | None:
    """The boot order as ``--boot`` has it for a guest alike, whose MACs are others; None where it cannot be said."""
    words: list[str] = []
    trial = xml.parse(xml.raw(domain), "domain", "domain")
    wanted = tuning.boot_of(domain)
    for number in range(1, len(wanted) + 1):
        for word in ("disk", "cdrom", "network", wanted[number - 1]):
            try:
                tuning.set_boot(trial, [*words, word], "the VM")
            except (NotFound, UsageProblem):
                continue
            if tuning.boot_of(trial) == wanted[:number] and ":" not in word:
                words.append(word)
                break
        else:
            return None
    return tuple(words)


def beyond(domain: xml.Element) -> list[str]:
    """What it has been tuned to that no option and no spec can say."""
    found = []
    virtiofs = domain.find("devices/filesystem/driver[@type='virtiofs']") is not None
    for tag, known in _SAYABLE.items():
        element = domain.find(tag)
        # A share over virtiofs brings the shared memory with it that it needs.
        more = {"source", "access"} if tag == "memoryBacking" and virtiofs else set()
        if element is not None and any(isinstance(e.tag, str) and e.tag not in known | more for e in element):
            found.append(f"<{tag}>")
    if domain.find("memoryBacking/hugepages/page") is not None:
        found.append("the size of its huge pages")
    memory = domain.find("numatune/memory")
    if memory is not None and (memory.get("mode") != "strict" or memory.get("nodeset") is None):
        found.append("<numatune>")
    if domain.find("cpu/numa") is not None and not _divided_evenly(domain):
        found.append("the CPU's <numa>")
    for path, kinds in (("disk/iotune", {"total_iops_sec", "total_bytes_sec"}),):
        if any(e.tag not in kinds for tune in domain.iterfind(f"devices/{path}") for e in tune):
            found.append("some limits of its disks")
    rates = [side for band in domain.iterfind("devices/interface/bandwidth") for side in band]
    if any(set(side.attrib) - {"average"} for side in rates):
        found.append("some limits of its cards")
    return found


def _divided_evenly(domain: xml.Element) -> bool:
    trial = xml.parse(xml.raw(domain), "domain", "domain")
    try:
        tuning.set_numa(trial, tuning.numa_of(domain))
    except UsageProblem:
        return False
    plain = {"id", "cpus", "memory", "unit"}
    cells = [tree.findall("cpu/numa/cell") for tree in (domain, trial)]
    if (
        any(set(cell.attrib) - plain or len(cell) for cell in cells[0])
        or domain.find("cpu/numa/interconnects") is not None
    ):
        return False
    one, other = ([(c.get("id"), c.get("cpus"), c.get("memory")) for c in found] for found in cells)
    return one == other


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isascii() and text.strip().isdigit() else 0
