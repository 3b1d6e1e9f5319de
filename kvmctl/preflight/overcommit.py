"""Whether a guest's start, or more CPUs or memory for it, promises more than the host should."""

from typing import NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Refused
from kvmctl.model.units import human_size
from kvmctl.preflight.configuration import thresholds

KIB, MIB = 1024, 1024**2


class Promise(NamedTuple):
    """What is to be promised to one more guest, or more to one that runs. Memory in bytes."""

    vcpus: int
    memory_bytes: int

    def __bool__(self) -> bool:
        return self.vcpus > 0 or self.memory_bytes > 0


def check(hypervisor: Hypervisor, more: Promise, *, strict: bool = False) -> list[str]:
    """What to warn of where the running guests and ``more`` go past a threshold; empty where they do not.

    Raises Refused in place of a warning with ``strict``, or where the configuration file says so.
    """
    if not more:
        return []
    limits = thresholds()
    with translated(hypervisor.uri):
        info = hypervisor.conn.getInfo()
        try:
            stats = hypervisor.conn.getAllDomainStats(
                libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON,
                libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                # A hypervisor that keeps no such figures cannot be judged by them.
                return []
            raise
    memory, cpus = int(info[1]) * MIB, int(info[2])
    values = [found for _, found in stats]
    vcpus = sum(int(found.get("vcpu.current", 0)) for found in values) + more.vcpus
    promised = sum(int(found.get("balloon.current", found.get("balloon.maximum", 0))) for found in values) * KIB
    promised += more.memory_bytes
    said = []
    if more.vcpus and cpus and vcpus > cpus * limits.cpu_ratio:
        said.append(
            f"running guests would have {vcpus} vCPUs on {cpus} CPUs, more than {limits.cpu_ratio:g} each: "
            "when they are busy together they wait for one another"
        )
    if more.memory_bytes and memory and promised > memory * limits.memory_ratio:
        said.append(
            f"running guests would be promised {human_size(promised)} of the host's {human_size(memory)}"
            f"{_share(limits.memory_ratio)}: if they use it, the host swaps or kills guests (OOM)"
        )
    if said and (strict or limits.strict):
        raise Refused(said[0], "stop guests, give this one less, or raise the threshold (docs/overcommit.md)")
    return said


def _share(ratio: float) -> str:
    return "" if ratio == 1 else f", more than {ratio:g} of it"
