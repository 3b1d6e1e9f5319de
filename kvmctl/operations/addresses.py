"""A running VM's IP addresses, from everyone who may know them.

The DHCP server of libvirt's network knows the lease, the guest agent what the guest really set, and the
hypervisor's ARP table what it talked to. Each may be missing or, the agent and the table, lie: what is not
an address never gets further than here.
"""

import ipaddress

import libvirt

SOURCES = (
    ("lease", libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE),
    ("agent", libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT),
    ("arp", libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP),
)
# A guest's agent may list any number; nobody has use for more than these.
MOST = 64


def by_mac(domain: libvirt.virDomain, sources: tuple[str, ...] = ("lease", "agent", "arp")) -> dict[str, list[str]]:
    """``{mac: [address, ...]}`` in lower case, IPv4 first, each once; loopback and link-local are left out.

    A source that does not answer (no agent, no lease) is as one that knows nothing. Where the agent
    answers, what only the lease or ARP remembers of the same NIC is left out: the guest knows best.
    """
    found: dict[str, list[str]] = {}
    answers = {name: _ask(domain, number) for name, number in SOURCES if name in sources}
    certain = answers.get("agent", {})
    for name, answer in answers.items():
        for mac, addresses in answer.items():
            if name != "agent" and certain.get(mac):
                continue
            known = found.setdefault(mac, [])
            known.extend(address for address in addresses if address not in known)
    return {mac: sorted(addresses, key=_order)[:MOST] for mac, addresses in found.items() if addresses}


def flat(known: dict[str, list[str]], macs: list[str] | None = None) -> list[str]:
    """All addresses of ``by_mac()``, those of the VM's own NICs ``macs`` only where given, IPv4 first."""
    chosen = [known.get(mac, []) for mac in macs] if macs is not None else list(known.values())
    return sorted(dict.fromkeys(address for addresses in chosen for address in addresses), key=_order)


def _ask(domain: libvirt.virDomain, source: int) -> dict[str, list[str]]:
    try:
        reply = domain.interfaceAddresses(source, 0)
    except libvirt.libvirtError:
        return {}
    found: dict[str, list[str]] = {}
    for interface in (reply or {}).values():
        mac = str(interface.get("hwaddr") or "").lower()
        for entry in interface.get("addrs") or ():
            address = checked(entry.get("addr"))
            if address is not None:
                found.setdefault(mac, []).append(address)
    return found


def checked(text: object) -> str | None:
    """``text`` as a canonical address that could be used to reach the guest, else None."""
    if not isinstance(text, str) or len(text) > 45:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return None
    return str(address)


def _order(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return address.version, int(address)
