"""Published ports of guests behind NAT as the firewall's own language: nft's and iptables-restore's input.

Three things make one forward: the address is rewritten (table ``inet kvmctl``), what comes from loopback or
from a guest of the same subnet is made to come from the host, so that the answers find back, and the
packet is let through ahead of libvirt's own chain, which rejects whatever no guest has asked for. An accept
in another table does not overrule that reject, so it is placed where libvirt's own rule is: in iptables'
FORWARD chain ahead of libvirt's jump, or in the chain ``guest_input`` of its nftables back end.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TABLE = "kvmctl"
CHAIN = "KVMCTL_FWD"
# libvirt's nftables back end (network_nftables.c in libvirt 10.4 and later).
LIBVIRT_TABLE = "libvirt_network"
LIBVIRT_CHAIN = "guest_input"
COMMENT = "kvmctl"
_SAFE_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}\Z")


@dataclass(frozen=True)
class Rule:
    """One forward: ``address`` None for every one of the host's; ``bridge`` and ``subnet`` are the guest's."""

    protocol: Literal["tcp", "udp"]
    address: str | None
    host_port: int
    guest_ip: str
    guest_port: int
    bridge: str
    subnet: str

    def __post_init__(self) -> None:
        """All of it ends in the firewall's language: nothing but ports, addresses and interface names may."""
        ipaddress.IPv4Address(self.guest_ip)
        ipaddress.IPv4Network(self.subnet)
        if self.address is not None:
            ipaddress.IPv4Address(self.address)
        sound = 0 < self.host_port < 65536 and 0 < self.guest_port < 65536 and self.protocol in ("tcp", "udp")
        if not sound or not _SAFE_INTERFACE.match(self.bridge):
            raise ValueError(f"no rule can be made of {self}")

    @property
    def from_loopback(self) -> bool:
        """Whether it answers on 127.0.0.0/8."""
        return self.address is None or ipaddress.IPv4Address(self.address).is_loopback


def nft_script(rules: Sequence[Rule], libvirt_chain: bool, stale: Iterable[int]) -> str:
    """The whole table anew, as one transaction; without ``rules`` the table is removed.

    ``libvirt_chain``: libvirt has its nftables chain, where the accepts go; ``stale`` are the handles of
    kvmctl's rules there now. Chains are flushed and not deleted, so that open connections keep their way.
    """
    lines = [f"add table inet {TABLE}"]
    if not rules:
        lines.append(f"delete table inet {TABLE}")
    else:
        for name, kind, hook, priority in (
            ("guard", "filter", "prerouting", "-300"),
            ("prerouting", "nat", "prerouting", "-105"),
            ("output", "nat", "output", "-105"),
            ("postrouting", "nat", "postrouting", "95"),
        ):
            lines.append(f"add chain inet {TABLE} {name} {{ type {kind} hook {hook} priority {priority}; }}")
            lines.append(f"flush chain inet {TABLE} {name}")
        lines += [f"add rule inet {TABLE} {line}" for line in _table_rules(rules)]
    lines += [f"delete rule ip {LIBVIRT_TABLE} {LIBVIRT_CHAIN} handle {handle}" for handle in stale]
    if libvirt_chain:
        lines += [f"insert rule ip {LIBVIRT_TABLE} {LIBVIRT_CHAIN} {accept}" for accept in _unique(map(_accept, rules))]
    return "\n".join(lines) + "\n"


def _table_rules(rules: Sequence[Rule]) -> list[str]:
    lines = []
    # Loopback is routed onto these bridges (route_localnet), so a guest could reach the host's loopback: never.
    for bridge in _unique(rule.bridge for rule in rules if rule.from_loopback):
        lines.append(f'guard iifname "{bridge}" ip daddr 127.0.0.0/8 drop')
    for chain in ("prerouting", "output"):
        lines += [f"{chain} {_dnat(rule)}" for rule in rules]
    for rule in rules:
        if rule.from_loopback:
            lines.append(f"postrouting {_masquerade(rule, '127.0.0.0/8')}")
        lines.append(f"postrouting {_masquerade(rule, rule.subnet)}")
    return _unique(lines)


def _dnat(rule: Rule) -> str:
    where = f"ip daddr {rule.address}" if rule.address is not None else "meta nfproto ipv4 fib daddr type local"
    return (
        f"{where} {rule.protocol} dport {rule.host_port} counter "
        f'dnat ip to {rule.guest_ip}:{rule.guest_port} comment "{COMMENT}"'
    )


def _masquerade(rule: Rule, source: str) -> str:
    return (
        f'oifname "{rule.bridge}" ip saddr {source} ip daddr {rule.guest_ip} '
        f"{rule.protocol} dport {rule.guest_port} ct status dnat masquerade"
    )


def _accept(rule: Rule) -> str:
    return (
        f'oifname "{rule.bridge}" ip daddr {rule.guest_ip} {rule.protocol} dport {rule.guest_port} '
        f'ct status dnat counter accept comment "{COMMENT}"'
    )


def iptables_input(rules: Sequence[Rule], jump: Literal["none", "ahead", "behind"], chain: bool) -> str:
    """Input of ``iptables-restore --noflush``: the chain anew and the jump to it first in FORWARD.

    ``jump``: where it is now, seen from what would reject the packets; ``chain``: whether the chain is
    there. Without ``rules`` both are removed.
    """
    lines = ["*filter"]
    if rules or chain:
        # Naming a chain makes it, and empties it where it is there.
        lines.append(f":{CHAIN} - [0:0]")
    if jump == "behind" or (jump == "ahead" and not rules):
        lines.append(f"-D FORWARD -j {CHAIN}")
    if rules and jump != "ahead":
        lines.append(f"-I FORWARD 1 -j {CHAIN}")
    lines += _unique(line for rule in rules for line in iptables_accepts(rule))
    if chain and not rules:
        lines.append(f"-X {CHAIN}")
    return "\n".join([*lines, "COMMIT", ""])


def iptables_accepts(rule: Rule) -> tuple[str, str]:
    """The rules that let the forward's packets and their answers through, as ``iptables -S`` prints them.

    libvirt's own rules accept the answers too, but where it uses nftables and something else drops in
    FORWARD (docker), nobody would.
    """
    known = f"-p {rule.protocol} -m {rule.protocol}"
    return (
        f"-A {CHAIN} -d {rule.guest_ip}/32 -o {rule.bridge} {known} --dport {rule.guest_port} "
        "-m conntrack --ctstate DNAT -j ACCEPT",
        f"-A {CHAIN} -s {rule.guest_ip}/32 -i {rule.bridge} {known} --sport {rule.guest_port} "
        "-m conntrack --ctstate DNAT -j ACCEPT",
    )


@dataclass(frozen=True)
class Redirect:
    """One rewriting that the table ``inet kvmctl`` has now."""

    protocol: str
    address: str | None
    host_port: int
    guest_ip: str
    guest_port: int


def redirects(listing: dict[str, Any], chain: str = "prerouting") -> set[Redirect]:
    """Those in ``nft -j list table inet kvmctl``; a rule of another shape (somebody edited it) is left out."""
    found = set()
    for entry in listing.get("nftables", []):
        rule = entry.get("rule") if isinstance(entry, dict) else None
        if isinstance(rule, dict) and rule.get("chain") == chain:
            redirect = _redirect(rule.get("expr", []))
            if redirect is not None:
                found.add(redirect)
    return found


def _redirect(expressions: list[Any]) -> Redirect | None:
    protocol, address, port, target = None, None, None, None
    for expression in expressions:
        if not isinstance(expression, dict):
            continue
        if "match" in expression:
            left, right = expression["match"].get("left", {}), expression["match"].get("right")
            payload = left.get("payload", {}) if isinstance(left, dict) else {}
            if payload.get("field") == "daddr":
                address = right
            elif payload.get("field") == "dport":
                protocol, port = payload.get("protocol"), right
        elif "dnat" in expression:
            target = expression["dnat"]
    if not (isinstance(protocol, str) and isinstance(port, int) and isinstance(target, dict)):
        return None
    if not isinstance(target.get("addr"), str) or not isinstance(target.get("port"), int):
        return None
    return Redirect(protocol, address if isinstance(address, str) else None, port, target["addr"], target["port"])


def guarded(listing: dict[str, Any]) -> set[str]:
    """The bridges that the table ``inet kvmctl`` guards from its guests' packets to the host's loopback."""
    found = set()
    for entry in listing.get("nftables", []):
        rule = entry.get("rule", {}) if isinstance(entry, dict) else {}
        for expression in rule.get("expr", []) if rule.get("chain") == "guard" else []:
            match = expression.get("match", {})
            if match.get("left") == {"meta": {"key": "iifname"}} and isinstance(match.get("right"), str):
                found.add(match["right"])
    return found


def our_handles(listing: dict[str, Any]) -> list[int]:
    """The handles of kvmctl's rules in ``nft -j list chain ip libvirt_network guest_input``."""
    rules = [entry["rule"] for entry in listing.get("nftables", []) if isinstance(entry, dict) and "rule" in entry]
    return [rule["handle"] for rule in rules if rule.get("comment") == COMMENT and isinstance(rule.get("handle"), int)]


def rejected_first(listing: dict[str, Any]) -> set[str]:
    """The bridges for which that chain rejects or drops packets before one of kvmctl's accepts is asked.

    libvirt puts its rules in front of those that are there (networkAddFirewallRules), so whenever it makes
    them anew, kvmctl's are behind them.
    """
    rejecting: set[str | None] = set()
    found = set()
    for entry in listing.get("nftables", []):
        rule = entry.get("rule") if isinstance(entry, dict) else None
        if not isinstance(rule, dict):
            continue
        expressions = [e for e in rule.get("expr", []) if isinstance(e, dict)]
        bridge = _outgoing(expressions)
        if rule.get("comment") == COMMENT:
            if bridge is not None and rejecting & {bridge, None}:
                found.add(bridge)
        elif any("reject" in expression or "drop" in expression for expression in expressions):
            rejecting.add(bridge)
    return found


def _outgoing(expressions: Iterable[dict[str, Any]]) -> str | None:
    """The interface that a rule names for leaving packets, None for any."""
    for expression in expressions:
        match = expression.get("match", {})
        left = match.get("left", {})
        key = left.get("meta", {}).get("key") if isinstance(left, dict) else None
        if key in ("oif", "oifname") and match.get("op") == "==" and isinstance(match.get("right"), str):
            return str(match["right"])
    return None


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
