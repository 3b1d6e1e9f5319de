"""A running VM's IP addresses, from everyone who may know them.

The DHCP server of libvirt's network knows the lease, the guest agent what the guest really set, and the
hypervisor's ARP table what it talked to. Each may be missing or, the agent and the table, lie: what is not
an address never gets further than here.
"""

import ipaddress
from collections.abc import Sequence

import libvirt

from kvmctl.connection import Hypervisor
from kvmctl.model import xml
from kvmctl.preflight import here

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
    answers = {name: _ask(domain, number) for name, number in SOURCES if name in sources and name != "arp"}
    if "arp" in sources:
        answers["arp"] = _arp(domain)
    return _merged(answers)


def _arp(domain: libvirt.virDomain) -> dict[str, list[str]]:
    """From the kernel itself where that is this machine's: some libvirt fail to read its table ("wrong nlmsg len")."""
    neighbours = _neighbours(Hypervisor(domain.connect()))
    if neighbours is None:
        return _ask(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP)
    try:
        own = macs(xml.parse(domain.XMLDesc(0), "domain", "domain"))
    except libvirt.libvirtError:
        return {}
    return {mac: neighbours[mac] for mac in own if mac in neighbours}


def of_many(
    hypervisor: Hypervisor,
    guests: Sequence[tuple[libvirt.virDomain, xml.Element]],
    sources: tuple[str, ...] = ("lease", "agent", "arp"),
) -> dict[str, dict[str, list[str]]]:
    """``{uuid: by_mac()}`` of running VMs, each with its present domain XML: the same, asked for all at once.

    One question to each network for its leases and one look at the host's neighbours, where that is this
    machine; only agents, and another machine's neighbours, are asked VM by VM.
    """
    cards = [_cards(tree) for _, tree in guests]
    leases = _leases(hypervisor, {network for every in cards for _, network in every if network is not None})
    neighbours = _neighbours(hypervisor)
    asked: dict[tuple[str, str], dict[str, list[str]]] = {}
    questions = [
        (tree.findtext("uuid", ""), name, number, domain)
        for domain, tree in guests
        for name, number in SOURCES
        if name in sources and ((name == "agent" and _has_agent(tree)) or (name == "arp" and neighbours is None))
    ]
    if questions:
        # Imported late: where all is known already nobody needs it.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=16) as pool:
            replies = pool.map(lambda question: _ask(question[3], question[2]), questions)
            asked = {(uuid, name): reply for (uuid, name, _, _), reply in zip(questions, replies, strict=True)}
    found = {}
    for (_, tree), every in zip(guests, cards, strict=True):
        uuid = tree.findtext("uuid", "")
        near = {mac: neighbours[mac] for mac, _ in every if mac in neighbours} if neighbours is not None else {}
        leased = {mac: leases[network][mac] for mac, network in every if network is not None and mac in leases[network]}
        answers = {"lease": leased, "agent": asked.get((uuid, "agent"), {}), "arp": asked.get((uuid, "arp"), near)}
        found[uuid] = _merged(answers)
    return found


def _has_agent(tree: xml.Element) -> bool:
    """Whether something in the guest has the agent's channel open; libvirt would refuse to ask where nothing has."""
    return any(
        target.get("name") == "org.qemu.guest_agent.0" and target.get("state") == "connected"
        for target in tree.iterfind("devices/channel/target")
    )


def macs(tree: xml.Element) -> list[str]:
    """The MACs of a VM's cards, in lower case."""
    return [mac.get("address", "").lower() for mac in tree.iterfind("devices/interface/mac")]


def _cards(tree: xml.Element) -> list[tuple[str, str | None]]:
    """The MAC of each card, in lower case, and libvirt's network that it is in, where it is in one."""
    found = []
    for interface in tree.iterfind("devices/interface"):
        mac, source = interface.find("mac"), interface.find("source")
        inside = source.get("network") if source is not None and interface.get("type") == "network" else None
        if mac is not None:
            found.append((mac.get("address", "").lower(), inside))
    return found


def _leases(hypervisor: Hypervisor, names: set[str]) -> dict[str, dict[str, list[str]]]:
    """Of each network: the addresses leased, by MAC."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    for name in names:
        try:
            entries = hypervisor.conn.networkLookupByName(name).DHCPLeases() or []
        except libvirt.libvirtError:
            continue
        for entry in entries:
            address = checked(entry.get("ipaddr"))
            if address is not None:
                found[name].setdefault(str(entry.get("mac") or "").lower(), []).append(address)
    return found


def _neighbours(hypervisor: Hypervisor) -> dict[str, list[str]] | None:
    """The host's IPv4 neighbours by MAC, as libvirt's own ARP source has them; None where only libvirt can see them."""
    seen = here.neighbours() if here.is_here(hypervisor) else None
    if seen is None:
        return None
    found: dict[str, list[str]] = {}
    for address, mac in seen:
        known = checked(address)
        if known is not None:
            found.setdefault(mac, []).append(known)
    return found


def _merged(answers: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
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
