"""Ports published through QEMU's user networking, by its monitor.

QEMU forgets them when the guest stops; what shall be there is in the domain's metadata, and start
puts it back (reapply).
"""

import re
from collections.abc import Iterable

import libvirt
import libvirt_qemu

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, KvmctlError, UsageProblem
from kvmctl.model import xml
from kvmctl.model.forward import written
from kvmctl.model.metadata import Forward
from kvmctl.operations import metadata

LOOPBACK = "127.0.0.1"
# "  TCP[HOST_FORWARD]  12   127.0.0.1  2222   10.0.2.15    22 0 0" (slirp's connection table)
_ROW = re.compile(r"\s*(TCP|UDP)\[HOST_FORWARD\]\s+\S+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s")


def user_netdev(domain: libvirt.virDomain) -> str | None:
    """QEMU's id of the running guest's first user-mode network device, or None where it has none."""
    tree = xml.parse(domain.XMLDesc(0), "domain", "domain")
    for interface in tree.iterfind("devices/interface[@type='user']"):
        alias = interface.find("alias")
        name = alias.get("name", "") if alias is not None else ""
        if re.fullmatch(r"[A-Za-z0-9_-]+", name):
            return f"host{name}"
    return None


def active(domain: libvirt.virDomain) -> set[Forward]:
    """The forwards QEMU has now, each with its host address."""
    netdev = user_netdev(domain)
    if netdev is None:
        return set()
    found = set()
    here = False
    for line in _monitor(domain, "info usernet").splitlines():
        # "Hub -1 (hostnet0):" begins the table of one network device; the command takes no name.
        if not line.startswith(" "):
            here = line.rstrip().endswith(f"({netdev}):")
        match = _ROW.match(line) if here else None
        if match:
            address = "0.0.0.0" if match[2] == "*" else match[2]
            found.add(Forward("udp" if match[1] == "UDP" else "tcp", int(match[3]), int(match[4]), address))
    return found


def add(domain: libvirt.virDomain, forward: Forward) -> None:
    """Publish ``forward`` now. Raises Conflict where the host's port is not to be had."""
    netdev = user_netdev(domain)
    if netdev is None:
        raise KvmctlError("the guest has no user-mode network device to forward through")
    answer = _monitor(domain, f"hostfwd_add {netdev} {_rule(forward)}").strip()
    # libvirt's hooks publish it too, at the guest's start: it may be there already.
    if answer and _with_address(forward) not in active(domain):
        raise Conflict(
            f"the host's port {forward.host_port}/{forward.protocol} on {forward.address or LOOPBACK} "
            f"could not be published: {answer[:200]}",
            f"see who has it with 'ss -lnp', or publish another: -p OTHER:{forward.guest_port}",
        )


def remove(domain: libvirt.virDomain, forward: Forward) -> None:
    """Take ``forward`` back now; open connections through it stay."""
    netdev = user_netdev(domain)
    if netdev is not None:
        _monitor(domain, f"hostfwd_remove {netdev} {_rule(forward).split('-', 1)[0]}")


def reapply(hypervisor: Hypervisor, domain: libvirt.virDomain) -> list[str]:
    """After a start: publish what the metadata says. Returns one line for each that could not be."""
    wanted = metadata.read(domain).forwards
    if not wanted:
        return []
    failures = []
    with translated(hypervisor.uri):
        if user_netdev(domain) is None:
            return []
        there = active(domain)
        for forward in wanted:
            if _with_address(forward) in there:
                continue
            try:
                add(domain, forward)
            except KvmctlError as error:
                failures.append(error.message)
    return failures


def check(forwards: Iterable[Forward]) -> None:
    """Raise UsageProblem for what user networking cannot publish."""
    seen = set()
    for forward in forwards:
        if forward.address and ":" in forward.address:
            raise UsageProblem(
                f"-p {written(forward)}: user networking publishes on IPv4 addresses only",
                "leave the address out for loopback, or use --net nat",
            )
        key = (forward.protocol, forward.address, forward.host_port)
        if key in seen:
            raise UsageProblem(f"-p {written(forward)}: that host port is published twice")
        seen.add(key)


def _with_address(forward: Forward) -> Forward:
    return Forward(forward.protocol, forward.host_port, forward.guest_port, forward.address or LOOPBACK)


def _rule(forward: Forward) -> str:
    return f"{forward.protocol}:{forward.address or LOOPBACK}:{forward.host_port}-:{forward.guest_port}"


def _monitor(domain: libvirt.virDomain, command: str) -> str:
    answer: str = libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    return answer
