"""``host check``, with what libvirt was told to have in force on the host: its networks, and published ports."""

from collections.abc import Callable
from dataclasses import replace

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError, Refused
from kvmctl.operations import firewall, network_state, networks, port_state, ports
from kvmctl.preflight import host, hostnet
from kvmctl.preflight.check import Check
from kvmctl.preflight.host import HostReport

NETWORKS = "networks"
PORTS = "published-ports"


def judge(connect: Callable[[bool], Hypervisor], uri: str | None) -> HostReport:
    """host.of_connection(), and ``networks`` and ``published-ports``: whether they are in force, and if not, why."""
    opened: list[Hypervisor] = []

    def remember(read_only: bool) -> Hypervisor:
        opened.append(connect(read_only))
        return opened[-1]

    report = host.of_connection(remember, uri)
    if not opened or opened[-1].is_session:
        return report
    # Before the conclusion, which comes last.
    return replace(report, checks=(*report.checks[:-1], *in_force(opened[-1]), report.checks[-1]))


def in_force(hypervisor: Hypervisor) -> list[Check]:
    """Both checks; ``unknown`` where the host's firewall cannot be seen from here."""
    unseen = _unseen(hypervisor)
    if unseen is not None:
        return [Check(name, "unknown", *unseen) for name in (NETWORKS, PORTS)]
    return [_asked(NETWORKS, _networks, hypervisor), _asked(PORTS, _ports, hypervisor)]


def _unseen(hypervisor: Hypervisor) -> tuple[str, str] | None:
    if hypervisor.is_remote:
        return "cannot be seen over a remote connection", "run 'kvmctl host check' on that machine"
    if not hostnet.is_here(hypervisor):
        return "the hypervisor is in another network namespace", "run 'kvmctl host check' there"
    if not firewall.is_root():
        return "whether they are in force only root can see", "sudo kvmctl host check"
    return None


def _asked(name: str, look: Callable[[Hypervisor], Check], hypervisor: Hypervisor) -> Check:
    try:
        return look(hypervisor)
    except KvmctlError as error:
        return Check(name, "unknown", error.message, error.hint)


def _networks(hypervisor: Hypervisor) -> Check:
    running = [what for network, what in networks.everything(hypervisor) if network.isActive()]
    wrong = [
        f"{what.name}: {problem}" for what in running for problem in network_state.own_problems(hypervisor, what) or ()
    ]
    if wrong:
        return Check(NETWORKS, "warn", "; ".join(wrong), "kvmctl net info NAME")
    return Check(NETWORKS, "ok", f"{_count(len(running), 'network')} running, all in force" if running else "none runs")


def _ports(hypervisor: Hypervisor) -> Check:
    try:
        firewall.check_nft()
    except Refused as error:
        return Check(PORTS, "warn", error.message, error.hint)
    # What belongs to a guest that is off is not meant to be in force.
    rows = [row for row in ports.rows(hypervisor) if row["reason"] != port_state.NOT_RUNNING]
    wrong: dict[str, list[str]] = {}
    for row in rows:
        if row["active"] is False:
            wrong.setdefault(f"{row['reason']}", []).append(f"{row['host_port']}/{row['protocol']} of {row['vm']}")
    if wrong:
        detail = "; ".join(f"not in force: {', '.join(which)}: {reason}" for reason, which in wrong.items())
        return Check(PORTS, "warn", detail, "kvmctl port list")
    return Check(PORTS, "ok", f"{_count(len(rows), 'port')} published, all in force" if rows else "none to be in force")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
