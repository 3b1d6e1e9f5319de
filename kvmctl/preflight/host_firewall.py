"""Whether other programs' firewall rules keep guests from the network. Reads only, changes nothing."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmctl.preflight.check import Check
from kvmctl.preflight.host_root import Root

NAME = "forwarding"


@dataclass(frozen=True)
class Rules:
    """What was seen of the packet filter.

    ``dropping`` are the tables whose forward hook drops by policy, each with the names of its chains;
    ``tables`` are all tables.
    """

    dropping: tuple[tuple[str, frozenset[str]], ...]
    tables: tuple[tuple[str, frozenset[str]], ...]


def check(root: Root, forwards: bool, is_session: bool) -> Check:
    """``forwarding``: IPv4 forwarding and the policy of the FORWARD chain.

    ``forwards``: a network runs whose guests' packets this host is to forward.
    """
    if is_session:
        return Check(NAME, "ok", "does not apply to a session, whose guests use user networking")
    if not root.is_running:
        return Check(NAME, "unknown", "firewall rules are not in a copy of /proc and /sys")
    forward = root.number("proc/sys/net/ipv4/ip_forward")
    if forward == 0 and forwards:
        return Check(
            NAME,
            "warn",
            "IPv4 forwarding is off, though a NAT or routed network is active: its guests reach only this host",
            "sysctl -w net.ipv4.ip_forward=1 (libvirt sets it when the network starts; something took it back)",
        )
    rules = read()
    if rules is None:
        why = "needs root" if os.geteuid() != 0 else "needs nft or iptables, and neither answers"
        return Check(NAME, "unknown", f"reading the firewall's rules {why}", "sudo kvmctl host check")
    bridged = root.number("proc/sys/net/bridge/bridge-nf-call-iptables") == 1
    return judge(rules, bridged)


def judge(rules: Rules, bridged: bool) -> Check:
    """What ``rules`` mean for guests. ``bridged``: bridges hand their packets to iptables as well."""
    for table, chains in rules.dropping:
        who = _who(chains) or f"the table {table}"
        if not any(name.startswith("LIBVIRT_FW") for name in chains):
            return Check(
                NAME,
                "warn",
                f"{who} drops forwarded packets and libvirt has no exception there: guests on NAT networks, "
                "routed networks and bridges may not get out",
                _let_through(chains),
            )
        if bridged:
            return Check(
                NAME,
                "warn",
                f"{who} drops forwarded packets, and bridges are filtered too (bridge-nf-call-iptables=1): "
                "NAT networks work, guests on a bridge do not get out",
                "sysctl -w net.bridge.bridge-nf-call-iptables=0, or let the bridge through: "
                "iptables -I FORWARD -i BRIDGE -o BRIDGE -j ACCEPT",
            )
    for table, chains in rules.tables:
        if table.endswith(" firewalld") and not any("libvirt" in name for name in chains):
            return Check(
                NAME,
                "warn",
                "firewalld is at work and its zone libvirt holds no interface: guests on NAT networks may not get out",
                "firewall-cmd --zone=libvirt --change-interface=virbr0, or start libvirt's network anew",
            )
    if rules.dropping:
        return Check(NAME, "ok", "forwarded packets are dropped by policy, with libvirt's own exceptions for NAT")
    return Check(NAME, "ok", "no policy drops forwarded packets")


def _who(chains: frozenset[str]) -> str | None:
    if any(name.startswith("DOCKER") for name in chains):
        return "Docker"
    if any(name.startswith("ufw-") for name in chains):
        return "ufw"
    return None


def _let_through(chains: frozenset[str]) -> str:
    if "DOCKER-USER" in chains:
        return "iptables -I DOCKER-USER -i virbr0 -j ACCEPT; iptables -I DOCKER-USER -o virbr0 -j ACCEPT"
    if any(name.startswith("ufw-") for name in chains):
        return "ufw route allow in on virbr0; ufw route allow out on virbr0"
    return "iptables -I FORWARD -i virbr0 -j ACCEPT; iptables -I FORWARD -o virbr0 -j ACCEPT"


def read() -> Rules | None:
    """The rules of this network namespace, from nft and else from iptables; None where neither may be read."""
    if os.geteuid() != 0:
        return None
    found = _run("nft", "-j", "list", "ruleset")
    rules = from_nft(found) if found else None
    if rules is not None and not _legacy_tables():
        # iptables-nft's rules are among nft's own; asking iptables as well could load its old modules.
        return rules
    text = _run("iptables-legacy", "-S") or _run("iptables", "-S")
    if text is None:
        return rules
    old = from_iptables(text)
    return old if rules is None else Rules(rules.dropping + old.dropping, rules.tables + old.tables)


def _legacy_tables() -> bool:
    try:
        return "filter" in Path("/proc/net/ip_tables_names").read_text(encoding="ascii").split()
    except OSError:
        return False


def from_nft(text: str) -> Rules | None:
    """``nft -j list ruleset``, as libnftables-json(5) describes it; None where it is something else."""
    try:
        items: list[dict[str, Any]] = json.loads(text)["nftables"]
        chains = [item["chain"] for item in items if "chain" in item]
        tables: dict[str, set[str]] = {f"{t['family']} {t['name']}": set() for i in items if (t := i.get("table"))}
        dropping: set[str] = set()
        for chain in chains:
            table = f"{chain['family']} {chain['table']}"
            tables.setdefault(table, set()).add(str(chain["name"]))
            if chain.get("hook") == "forward" and chain.get("policy") == "drop":
                dropping.add(table)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    frozen = {table: frozenset(names) for table, names in tables.items()}
    return Rules(tuple((t, frozen[t]) for t in sorted(dropping)), tuple(sorted(frozen.items())))


def from_iptables(text: str) -> Rules:
    """``iptables -S``: the table ``filter`` of IPv4."""
    names = frozenset(re.findall(r"^-[NP] (\S+)", text, re.MULTILINE))
    table = ("ip filter", names)
    drops = re.search(r"^-P FORWARD DROP\b", text, re.MULTILINE) is not None
    return Rules((table,) if drops else (), (table,))


def _run(*command: str) -> str | None:
    # sbin is not in every PATH, and the rules are read by root only.
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
    if program is None or not Path(program).is_file():
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
