"""The settings of ``set`` that tune a VM: CPU, pinning, shares, limits, huge pages, boot order."""

import functools
from collections.abc import Callable
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused, UsageProblem
from kvmctl.model import start_order, tuned, tuning, xml
from kvmctl.model.start_order import StartOrder
from kvmctl.model.tuned import PERIOD, Tuning, check_memory_limit
from kvmctl.model.tuning import MemoryLimit, Numa
from kvmctl.model.units import KIB, human_duration, human_size
from kvmctl.operations import metadata
from kvmctl.operations import start_order as start_orders
from kvmctl.operations.disks import disks_of
from kvmctl.operations.pci_host import definitions

LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
# VIR_DOMAIN_MEMORY_PARAM_UNLIMITED of libvirt-domain.h, which its Python binding lacks.
_UNLIMITED = 2**53 - 1
# (what it is for people, what makes it, what takes it back)
Step = tuple[str, Callable[[], object], Callable[[], object]]


def steps(domain: libvirt.virDomain, name: str, wanted: Tuning, live: bool, config: bool) -> list[Step]:
    """What has to be done for ``wanted`` in the running VM (``live``), the definition, or both.

    What is so already is no step. Raises Conflict for the live half of what only a start can change.
    """
    if wanted == Tuning():
        return []
    if wanted.next_start_only and not config:
        raise Conflict(f"{wanted.next_start_only[0]} takes effect when {name} starts", "leave --live out")
    live_xml, saved_xml = definitions(domain)
    found: list[Step] = []
    if wanted.start_order is not None or wanted.start_delay is not None:
        found += _start_order(domain, name, wanted)
    if config and saved_xml is not None:
        found += _in_definition(domain, name, wanted, saved_xml)
    for tree, flag in ((live_xml if live else None, LIVE), (saved_xml if config else None, CONFIG)):
        if tree is not None:
            found += _pins(domain, name, wanted, tree, flag)
            found += _scheduler(domain, wanted, tree, flag)
            found += _memory_limit(domain, name, wanted, tree, flag)
            found += _disk_limits(domain, name, wanted, tree, flag)
            found += _net_limits(domain, name, wanted, tree, flag)
    return found


def of_new(hypervisor: Hypervisor, domain: xml.Element, wanted: Tuning, vm: str) -> None:
    """Tune a new guest's ``<domain>`` but for its start order. Raises UsageProblem, NotFound for what cannot be."""
    _host_cpus(hypervisor.conn, wanted)
    if wanted.numa is not None:
        _check_host_nodes(hypervisor.conn, wanted.numa)
    tuned.apply(domain, wanted, vm)


def _start_order(domain: libvirt.virDomain, name: str, wanted: Tuning) -> list[Step]:
    if not domain.isPersistent():
        raise Conflict(f"{name} is transient, so it cannot start with its host")
    before = start_order.read(metadata.read(domain))
    number = wanted.start_order if wanted.start_order is not None else before.order if before is not None else 0
    if not number and wanted.start_order is None:
        raise UsageProblem(f"{name} has no start order for a delay to follow", "give --autostart-order as well")
    delay = wanted.start_delay if wanted.start_delay is not None else before.delay if before is not None else 0
    asked = StartOrder(number, delay) if number else None
    hypervisor = Hypervisor(domain.connect())
    found: list[Step] = []
    if (asked is None) != (before is None) or (
        asked is not None and before is not None and (asked.order, asked.delay) != (before.order, before.delay)
    ):
        wait = f", {human_duration(delay)} before the next" if delay else ""
        what = f"start order {number}{wait}" if number else "no start order"
        found.append((what, lambda: start_orders.note(hypervisor, domain, asked), lambda: _note_again(domain, before)))
    if asked is not None and domain.autostart():
        # libvirt starts its own all at once, before anybody else can.
        found.append(("started by kvmctl, not libvirt", lambda: domain.setAutostart(0), lambda: domain.setAutostart(1)))
    return found


def _note_again(domain: libvirt.virDomain, before: StartOrder | None) -> None:
    metadata.write(domain, start_order.put(metadata.read(domain), before))


def _where(flag: int) -> str:
    return "in the running VM" if flag == LIVE else "in the definition"


def _in_definition(domain: libvirt.virDomain, name: str, wanted: Tuning, saved: xml.Element) -> list[Step]:
    found: list[Step] = []
    cpu, huge = wanted.cpu, wanted.hugepages
    if cpu is not None and tuning.cpu_of(saved) != cpu:
        _check_cpu(domain, saved, cpu)
        found.append(_redefine(domain, f"CPU {cpu} for the next start", lambda tree: tuning.set_cpu(tree, cpu)))
    if huge is not None and (saved.find("memoryBacking/hugepages") is not None) != huge:
        what = f"huge pages {'on' if huge else 'off'} for the next start"
        found.append(_redefine(domain, what, lambda tree: tuning.set_hugepages(tree, huge)))
    if wanted.numa is not None and tuning.numa_of(saved) != wanted.numa:
        numa = wanted.numa
        _check_numa(domain, saved, numa)
        what = f"{numa.cells or 'no'} NUMA nodes for the next start"
        found.append(_redefine(domain, what, lambda tree: tuning.set_numa(tree, numa)))
    if wanted.boot:
        trial = xml.parse(xml.raw(saved), "domain", "domain")
        tuning.set_boot(trial, list(wanted.boot), name)
        if tuning.boot_of(trial) != tuning.boot_of(saved):
            what = f"boot from {', '.join(tuning.boot_of(trial))}"
            found.append(_redefine(domain, what, lambda tree: tuning.set_boot(tree, list(wanted.boot), name)))
    return found


def _check_cpu(domain: libvirt.virDomain, saved: xml.Element, cpu: str) -> None:
    """Raise where the host has no such CPU for this guest; libvirt itself says so only when it starts."""
    type_ = saved.find("os/type")
    arch, machine = (type_.get("arch"), type_.get("machine")) if type_ is not None else (None, None)
    text = domain.connect().getDomainCapabilities(None, arch, machine, saved.get("type"), 0)
    capabilities = xml.parse(text, "domain capabilities", "domainCapabilities")
    modes = {mode.get("name") for mode in capabilities.iterfind("cpu/mode[@supported='yes']")}
    models = {model.text: model.get("usable") for model in capabilities.iterfind("cpu/mode[@name='custom']/model")}
    if cpu not in modes - {"custom"} and cpu not in models:
        raise UsageProblem(f"no CPU mode or model {cpu[:60]!a} on that host", "see 'virsh domcapabilities'")
    if models.get(cpu) == "no":
        raise Refused(f"that host cannot give a guest the CPU {cpu}: it lacks features of it")


def _check_numa(domain: libvirt.virDomain, saved: xml.Element, numa: Numa) -> None:
    """Raise UsageProblem where the guest cannot be divided so, or the host has no such node."""
    tuning.set_numa(xml.parse(xml.raw(saved), "domain", "domain"), numa)
    _check_host_nodes(domain.connect(), numa)


def _check_host_nodes(conn: libvirt.virConnect, numa: Numa) -> None:
    if numa.host_nodes is None:
        return
    host = xml.parse(conn.getCapabilities(), "capabilities", "capabilities")
    there = {cell.get("id", "") for cell in host.iterfind("host/topology/cells/cell")}
    for part in numa.host_nodes.split(","):
        first, _, last = part.partition("-")
        missing = [n for n in range(int(first), int(last or first) + 1) if str(n) not in there]
        if missing:
            raise UsageProblem(
                f"the host has no NUMA node {missing[0]}", f"it has {', '.join(sorted(there, key=int)) or 'none'}"
            )


def _redefine(domain: libvirt.virDomain, what: str, edit: Callable[[xml.Element], None]) -> Step:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    before: list[str] = []

    def make() -> None:
        text = domain.XMLDesc(flags)
        tree = xml.parse(text, "domain", "domain")
        edit(tree)
        domain.connect().defineXMLFlags(xml.raw(tree), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        before.append(text)

    return what, make, lambda: domain.connect().defineXML(before.pop())


def _pins(domain: libvirt.virDomain, name: str, wanted: Tuning, tree: xml.Element, flag: int) -> list[Step]:
    if not wanted.pins:
        return []
    cpus = _host_cpus(domain.connect(), wanted)
    now = domain.vcpuPinInfo(flag)
    found: list[Step] = []
    for pin in wanted.pins:
        if pin.vcpu >= len(now):
            raise UsageProblem(f"{name} has no vCPU {pin.vcpu} {_where(flag)}", f"it has 0 to {len(now) - 1}")
        asked = tuple(not pin.cpus or number in pin.cpus for number in range(cpus))
        before = tuple(bool(on) for on in now[pin.vcpu][:cpus])
        if asked != before:
            what = f"vCPU {pin.vcpu} on CPUs {','.join(map(str, sorted(pin.cpus))) or 'all'} {_where(flag)}"
            if flag == CONFIG and not pin.cpus:
                # libvirt would write down all of today's CPUs.
                found.append(_redefine(domain, what, functools.partial(tuning.set_pin, pin=pin)))
                continue
            found.append((what, _pinner(domain, pin.vcpu, asked, flag), _pinner(domain, pin.vcpu, before, flag)))
    return found


def _host_cpus(conn: libvirt.virConnect, wanted: Tuning) -> int:
    """How many the host has. Raises UsageProblem where a pin names another."""
    cpus = int(conn.getInfo()[2])
    last = max((max(pin.cpus) for pin in wanted.pins if pin.cpus), default=0)
    if last >= cpus:
        raise UsageProblem(f"the host has no CPU {last}", f"it has 0 to {cpus - 1}")
    return cpus


def _pinner(domain: libvirt.virDomain, vcpu: int, cpus: tuple[bool, ...], flag: int) -> Callable[[], object]:
    def make() -> None:
        domain.pinVcpuFlags(vcpu, cpus, flag)
        if tuple(map(bool, domain.vcpuPinInfo(flag)[vcpu][: len(cpus)])) != cpus:
            raise KvmctlError(f"vCPU {vcpu} was not pinned {_where(flag)} though libvirt reported no error")

    return make


def _scheduler(domain: libvirt.virDomain, wanted: Tuning, tree: xml.Element, flag: int) -> list[Step]:
    asked: dict[str, int] = {}
    if wanted.cpu_shares is not None:
        asked["cpu_shares"] = wanted.cpu_shares
    if wanted.cpu_percent is not None:
        asked["vcpu_period"] = PERIOD
        asked["vcpu_quota"] = wanted.cpu_percent * PERIOD // 100 or -1
    if not asked:
        return []
    tags = {"cpu_shares": "shares", "vcpu_period": "period", "vcpu_quota": "quota"}
    said = {key: tree.findtext(f"cputune/{tag}") for key, tag in tags.items()}
    # Without a quota the guest has no limit; what shares it has without saying so depends on the host's cgroups.
    unset = {"cpu_shares": None, "vcpu_period": PERIOD, "vcpu_quota": -1}
    if all((int(said[key] or 0) or unset[key]) == value for key, value in asked.items()):
        return []
    what = []
    if wanted.cpu_shares is not None:
        what.append(f"CPU shares {wanted.cpu_shares}")
    if wanted.cpu_percent is not None:
        what.append(f"each vCPU at most {wanted.cpu_percent} % of a CPU" if wanted.cpu_percent else "no CPU limit")
    told = f"{', '.join(what)} {_where(flag)}"
    if flag == CONFIG:
        # libvirt's call for these asks the host's cgroups of a running VM even where only its definition is meant.
        return [
            _redefine(domain, told, lambda tree: tuning.set_scheduler(tree, {tags[k]: v for k, v in asked.items()}))
        ]
    now: dict[str, int] = domain.schedulerParametersFlags(flag)
    before = {key: int(said[key] or unset[key] or now[key]) for key in asked}
    return [(told, lambda: _schedule(domain, asked), lambda: domain.setSchedulerParametersFlags(before, flag))]


def _schedule(domain: libvirt.virDomain, asked: dict[str, int]) -> None:
    domain.setSchedulerParametersFlags(asked, LIVE)
    now: dict[str, int] = domain.schedulerParametersFlags(LIVE)
    # No quota is told as the largest there is.
    if any(now.get(key) != value for key, value in asked.items() if value > 0):
        raise KvmctlError("the CPU limits did not take in the running VM though libvirt reported no error")


def _memory_limit(domain: libvirt.virDomain, name: str, wanted: Tuning, tree: xml.Element, flag: int) -> list[Step]:
    limit = wanted.memory_limit
    if limit is None:
        return []
    check_memory_limit(limit, int(tree.findtext("memory", "0").strip()) * KIB, name)
    now = tuning.memory_limit_of(tree)
    # What is not said stays.
    asked = MemoryLimit(now.hard if limit.hard is None else limit.hard, now.soft if limit.soft is None else limit.soft)
    if asked == now:
        return []
    words = [
        f"{kind} memory limit {human_size(value) if value else 'taken away'}"
        for kind, value in (("hard", limit.hard), ("soft", limit.soft))
        if value is not None
    ]
    told = f"{', '.join(words)} {_where(flag)}"
    if flag == CONFIG:
        return [_redefine(domain, told, lambda tree: tuning.set_memory_limit(tree, limit))]
    return [(told, _memory_limiter(domain, asked), _memory_limiter(domain, now))]


def _memory_limiter(domain: libvirt.virDomain, limit: MemoryLimit) -> Callable[[], object]:
    values = {
        "hard_limit": limit.hard // KIB if limit.hard else _UNLIMITED,
        "soft_limit": limit.soft // KIB if limit.soft else _UNLIMITED,
    }

    def make() -> None:
        domain.setMemoryParameters(values, LIVE)
        now = domain.memoryParameters(LIVE)
        if any(now.get(key) != value for key, value in values.items()):
            raise KvmctlError("the memory limits did not take in the running VM though libvirt reported no error")

    return make


def _disk_limits(domain: libvirt.virDomain, name: str, wanted: Tuning, tree: xml.Element, flag: int) -> list[Step]:
    found: list[Step] = []
    for limit in wanted.disk_limits:
        disk = disks_of(tree).get(limit.target)
        if disk is None:
            raise NotFound(f"{name} has no disk {limit.target[:40]!a} {_where(flag)}", f"see 'kvmctl disk list {name}'")
        given = {"total_iops_sec": limit.iops, "total_bytes_sec": limit.bps}
        asked = {key: value for key, value in given.items() if value is not None}
        before = {key: int(disk.findtext(f"iotune/{key}") or 0) for key in asked}
        if asked != before:
            told = ", ".join(
                f"{human_size(value)}/s" if key.endswith("bytes_sec") else f"{value} IOPS" if value else "no limit"
                for key, value in asked.items()
            )
            make, undo = (_disk_limiter(domain, limit.target, values, flag) for values in (asked, before))
            found.append((f"{limit.target}: {told} {_where(flag)}", make, undo))
    return found


def _disk_limiter(domain: libvirt.virDomain, target: str, values: dict[str, int], flag: int) -> Callable[[], object]:
    def make() -> None:
        domain.setBlockIoTune(target, values, flag)
        now: dict[str, Any] = domain.blockIoTune(target, flag)
        if any(now.get(key) != value for key, value in values.items()):
            raise KvmctlError(f"the limits of {target} did not take {_where(flag)} though libvirt reported no error")

    return make


def _net_limits(domain: libvirt.virDomain, name: str, wanted: Tuning, tree: xml.Element, flag: int) -> list[Step]:
    found: list[Step] = []
    cards = {
        (mac.get("address") or "").lower(): card
        for card in tree.iterfind("devices/interface")
        if (mac := card.find("mac")) is not None
    }
    for limit in wanted.net_limits:
        card = cards.get(limit.mac)
        if card is None:
            raise NotFound(f"{name} has no card {limit.mac[:40]!a} {_where(flag)}", f"see 'kvmctl nic list {name}'")
        if card.get("type") == "user" and (limit.inbound or limit.outbound):
            raise Refused(f"QEMU's user networking has no rate limits, and {limit.mac} of {name} is such a card")
        asked, before = {}, {}
        for side, rate in (("inbound", limit.inbound), ("outbound", limit.outbound)):
            if rate is not None:
                # libvirt counts in KiB a second.
                asked[f"{side}.average"] = rate // 1024
                element = card.find(f"bandwidth/{side}")
                before[f"{side}.average"] = int(element.get("average", "0")) if element is not None else 0
        if asked != before:
            told = ", ".join(
                f"{key.split('.')[0]} {human_size(v * 1024) if v else 'no'} limit" for key, v in asked.items()
            )
            make, undo = (_net_limiter(domain, limit.mac, values, flag) for values in (asked, before))
            found.append((f"{limit.mac}: {told} {_where(flag)}", make, undo))
    return found


def _net_limiter(domain: libvirt.virDomain, mac: str, values: dict[str, int], flag: int) -> Callable[[], object]:
    def make() -> None:
        domain.setInterfaceParameters(mac, values, flag)
        now: dict[str, Any] = domain.interfaceParameters(mac, flag)
        if any(now.get(key) != value for key, value in values.items()):
            raise KvmctlError(f"the limits of {mac} did not take {_where(flag)} though libvirt reported no error")

    return make
