"""Whether a running network is in force on the host, and if not, why."""

import contextlib
from pathlib import Path

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.model.network import OWN_BRIDGE, Network
from kvmctl.operations import firewall
from kvmctl.preflight import host_firewall, hostnet

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
IPV6_FORWARDING = Path("/proc/sys/net/ipv6/conf/all/forwarding")


def problems(hypervisor: Hypervisor, what: Network, active: bool) -> list[str] | None:
    """What keeps the network's guests from what it promises, a line each with the remedy.

    Empty where all is well, or the network does not run; None where it cannot be seen: over a remote
    connection, in another network namespace, or by anyone but root.
    """
    if not active:
        return []
    found = own_problems(hypervisor, what)
    if found is None or what.mode not in ("nat", "route"):
        return found
    return _forwarding(what) + found


def own_problems(hypervisor: Hypervisor, what: Network) -> list[str] | None:
    """The same of a running network, without what concerns every network of the host."""
    host = hostnet.look(hypervisor)
    if host is None or not firewall.is_root():
        return None
    if what.bridge is not None and what.bridge not in host.links:
        return [f"its bridge {what.bridge} is gone from the host: 'kvmctl net stop {what.name}', then start it"]
    found = [
        f"its device {device} is gone from the host: 'ip link' lists those there are"
        for device in what.devices
        if device not in host.links
    ]
    if what.mode in OWN_BRIDGE:
        found += _addresses(what, host)
    if what.mode in ("nat", "route"):
        found += _rules(what) + _forwarding_ipv6(what)
    return found


def _addresses(what: Network, host: hostnet.HostNetwork) -> list[str]:
    # Without a bridge it is no network of this kernel's: libvirt's test driver has such.
    link = host.links.get(what.bridge or "")
    if link is None:
        return []
    wanted = [f"{addressing.gateway}/{addressing.subnet.prefixlen}" for addressing in what.addressing]
    missing = [address for address in wanted if address not in link.addresses]
    return [
        f"the bridge {link.name} has lost {address}: ip address add {address} dev {link.name}" for address in missing
    ]


def _rules(what: Network) -> list[str]:
    # libvirt has some for each IP version of which the network has a subnet.
    for version in sorted({subnet.version for subnet in what.subnets}):
        with contextlib.suppress(KvmctlError):
            rules = firewall.libvirts_rules(version)
            if rules is not None and what.bridge is not None and what.bridge not in rules:
                return [
                    "libvirt's own rules for it are gone from the firewall (flushed?): restart libvirtd to have them "
                    "back"
                ]
    return []


def _forwarding_ipv6(what: Network) -> list[str]:
    if any(subnet.version == 6 for subnet in what.subnets):
        with contextlib.suppress(OSError):
            if IPV6_FORWARDING.read_text(encoding="ascii").strip() != "1":
                return ["IPv6 forwarding is off on the host: sysctl -w net.ipv6.conf.all.forwarding=1"]
    return []


def _forwarding(what: Network) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        # One that has IPv6 alone does without.
        without = {subnet.version for subnet in what.subnets} == {6}
        if not without and IP_FORWARD.read_text(encoding="ascii").strip() != "1":
            found.append("IPv4 forwarding is off on the host: sysctl -w net.ipv4.ip_forward=1")
    every = host_firewall.read()
    # Whether bridges are filtered matters to guests on a bridge, not to those behind the host.
    check = host_firewall.judge(every, bridged=False) if every is not None else None
    if check is not None and check.level == "warn":
        found.append(f"{check.detail}: {check.hint}" if check.hint else check.detail)
    return found
