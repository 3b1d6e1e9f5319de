"""Copies of /proc, /sys and /dev as machines of different kinds show them."""

from collections.abc import Mapping
from pathlib import Path

INTEL_CPU = """processor\t: {n}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu vme msr lm {flags}
vmx flags\t: vnmi

"""
AMD_CPU = """processor\t: {n}
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu lm {flags}

"""
ARM_CPU = """processor\t: {n}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes
CPU implementer\t: 0x41

"""

V2 = {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc"}
KERNEL = {
    "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
    "proc/sys/net/ipv4/ip_forward": "1\n",
    "sys/kernel/mm/ksm/run": "0\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "0\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    **V2,
}
DEVICES = {"dev/kvm": "", "dev/vhost-net": "", "dev/net/tun": ""}


def cpus(text: str, count: int, flags: str) -> str:
    return "".join(text.format(n=n, flags=flags) for n in range(count))


INTEL_SERVER = {
    "proc/cpuinfo": cpus(INTEL_CPU, 8, "vmx smx"),
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on iommu=pt quiet\n",
    "sys/class/iommu/dmar0/x": "",
    "sys/class/iommu/dmar1/x": "",
    **{f"sys/kernel/iommu_groups/{n}/x": "" for n in range(37)},
    "sys/firmware/acpi/tables/DMAR": "",
    "sys/module/kvm_intel/parameters/nested": "Y\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "500\n",
    **DEVICES,
}
AMD_SERVER = {
    "proc/cpuinfo": cpus(AMD_CPU, 4, "svm npt"),
    "proc/cmdline": "root=/dev/sda1\n",
    "sys/class/iommu/ivhd0/x": "",
    **{f"sys/kernel/iommu_groups/{n}/x": "" for n in range(3)},
    "sys/firmware/acpi/tables/IVRS": "",
    "sys/module/kvm_amd/parameters/nested": "0\n",
    "sys/kernel/mm/ksm/run": "1\n",
    "sys/kernel/mm/ksm/pages_sharing": "2560\n",
    **DEVICES,
}
BIOS_OFF = {
    "proc/cpuinfo": cpus(INTEL_CPU, 4, "ssse3"),
    "proc/cmdline": "root=/dev/sda1\n",
    "sys/class/misc/loop-control/x": "",
    "sys/kernel/iommu_groups/.keep": "",
    "sys/firmware/acpi/tables/DMAR": "",
    "dev/null": "",
    "dev/net/tun": "",
}
PLAIN_VM = {
    "proc/cpuinfo": cpus(AMD_CPU, 2, "hypervisor"),
    "proc/cmdline": "root=/dev/vda1\n",
    "sys/class/misc/loop-control/x": "",
    "dev/net/tun": "",
    "dev/vhost-net": "",
}
ARM_SERVER = {
    "proc/cpuinfo": cpus(ARM_CPU, 4, ""),
    "proc/cmdline": "root=/dev/sda1\n",
    "sys/class/iommu/smmu3.0x0/x": "",
    "sys/kernel/iommu_groups/0/x": "",
    **DEVICES,
}
CONTAINER = {
    "proc/cpuinfo": cpus(INTEL_CPU, 4, "vmx"),
    "proc/cmdline": "root=/dev/sda1\n",
    "sys/class/iommu/dmar0/x": "",
    "sys/kernel/iommu_groups/0/x": "",
    ".dockerenv": "",
    "dev/null": "",
}
CONTRADICTION = {
    "proc/cpuinfo": cpus(INTEL_CPU, 2, "hypervisor"),
    "proc/cmdline": "quiet\n",
    "sys/module/kvm/parameters/x": "",
    "sys/module/kvm_pvm/parameters/x": "",
    "dev/kvm": "",
    "dev/net/tun": "",
}


def plant(top: Path, files: Mapping[str, str], kernel: bool = True) -> str:
    """Write ``files`` below ``top``, with what every kernel shows besides."""
    for name, text in {**(KERNEL if kernel else {}), **files}.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(top)
