"""Putting published ports into the host's firewall, all of them at once, and seeing what is there.

Rules go to nft and iptables-restore through stdin, as one transaction each, without a shell. Only the
host itself can do this, as root.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kvmctl.errors import KvmctlError, Refused
from kvmctl.model import port_rules
from kvmctl.model.port_rules import CHAIN, LIBVIRT_CHAIN, LIBVIRT_TABLE, TABLE, Redirect, Rule
from kvmctl.operations.undo import Undo

LOCK = Path("/run/kvmctl-ports.lock")
_held = False
_SYSCTL = Path("/proc/sys/net/ipv4/conf")
# Not every PATH has the folders of the administrator's programs.
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Iptables:
    """What iptables' FORWARD chain looks like.

    ``jump``: whether kvmctl's chain is asked before whatever rejects; ``accepts`` are that chain's lines.
    """

    policy: str
    jump: Literal["none", "ahead", "behind"]
    libvirt: bool
    accepts: tuple[str, ...] | None


@dataclass(frozen=True)
class Seen:
    """What is in force now: rewritings from outside and from the host, and who lets packets through.

    ``guarded`` are the bridges onto which kvmctl lets loopback's packets: those its table guards;
    ``rejected`` those whose packets libvirt's nftables chain rejects before kvmctl's accepts are asked.
    """

    redirects: frozenset[Redirect]
    own_redirects: frozenset[Redirect]
    iptables: Iptables | None
    libvirt_chain: bool
    stale: tuple[int, ...]
    table: bool
    guarded: frozenset[str]
    rejected: frozenset[str] = frozenset()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Nobody else of this machine changes published ports meanwhile; what is read within it stays true.

    Within another one of the same process it does nothing.
    """
    global _held
    check_root()
    if _held:
        yield
        return
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _held = True
        try:
            yield
        finally:
            _held = False


def is_root() -> bool:
    """Whether this process may change the firewall."""
    return os.geteuid() == 0


def has_rules() -> bool:
    """Whether the firewall has anything of kvmctl's now."""
    seen = look()
    ours = seen.iptables is not None and (seen.iptables.accepts is not None or seen.iptables.jump != "none")
    return seen.table or bool(seen.stale) or ours


def check_root() -> None:
    """Raise Refused where this process may not change the firewall."""
    if not is_root():
        raise Refused(
            "publishing ports of a guest behind NAT changes the host's firewall, which only root may",
            "run it with sudo, or use --net user, whose ports need no rights",
        )


def check_nft() -> None:
    """Raise Refused where nft, with which ports behind NAT are published, is not installed.

    libvirt itself is content with iptables, and some systems bring only that.
    """
    if shutil.which("nft", path=_PATH) is None:
        raise Refused(
            "publishing ports of a guest behind NAT needs nft, which is not installed",
            "install the package nftables ('kvmctl host setup' does), or use --net user, whose ports do without",
        )


def look() -> Seen:
    """What the firewall has now. Raises KvmctlError where it does not answer (not root)."""
    table = _nft_json("table", "inet", TABLE)
    chain = _nft_json("chain", "ip", LIBVIRT_TABLE, LIBVIRT_CHAIN)
    return Seen(
        redirects=frozenset(port_rules.redirects(table or {})),
        own_redirects=frozenset(port_rules.redirects(table or {}, "output")),
        iptables=_iptables(),
        libvirt_chain=chain is not None,
        stale=tuple(port_rules.our_handles(chain or {})),
        table=table is not None,
        guarded=frozenset(port_rules.guarded(table or {})),
        rejected=frozenset(port_rules.rejected_first(chain or {})),
    )


def apply(rules: Sequence[Rule]) -> None:
    """Make the firewall have exactly ``rules``; where a part fails the parts before it are as they were."""
    if rules:
        check_nft()
    seen = look()
    with Undo() as undo:
        # What lets packets through does nothing alone, so it comes first and goes last.
        if seen.iptables is not None and (not rules or _concerns(seen.iptables)):
            _restore_iptables(rules, seen.iptables, undo)
        _localnet(rules, seen.guarded, undo)
        if rules or seen.stale or seen.table:
            script = port_rules.nft_script(rules, seen.libvirt_chain, seen.stale)
            _run("nft", "-f", "-", input=script)
        undo.keep()


def _concerns(tables: Iptables) -> bool:
    """Whether iptables would stop the packets, or has accepts of kvmctl's from when it did."""
    return tables.libvirt or tables.policy == "DROP" or tables.accepts is not None


def _restore_iptables(rules: Sequence[Rule], before: Iptables, undo: Undo) -> None:
    if not rules and before.accepts is None and before.jump == "none":
        return
    old = _chain_input(before)
    undo.add("put iptables' chain back", lambda: _run("iptables-restore", "--noflush", "--wait", "10", input=old()))
    _run(
        "iptables-restore",
        "--noflush",
        "--wait",
        "10",
        input=port_rules.iptables_input(rules, before.jump, before.accepts is not None),
    )


def _chain_input(before: Iptables) -> Callable[[], str]:
    def build() -> str:
        now = _iptables()
        assert now is not None
        lines = ["*filter"]
        if before.accepts is not None or now.accepts is not None:
            lines.append(f":{CHAIN} - [0:0]")
        if now.jump != "none":
            lines.append(f"-D FORWARD -j {CHAIN}")
        if before.jump != "none":
            lines.append(f"-I FORWARD 1 -j {CHAIN}")
        lines += before.accepts or ()
        if before.accepts is None and now.accepts is not None:
            lines.append(f"-X {CHAIN}")
        return "\n".join([*lines, "COMMIT", ""])

    return build


def _localnet(rules: Sequence[Rule], guarded: frozenset[str], undo: Undo) -> None:
    """Let loopback's packets out onto the bridges that have forwards from it; no others of kvmctl's doing."""
    wanted = {rule.bridge for rule in rules if rule.from_loopback}
    for bridge in wanted:
        path = _SYSCTL / bridge / "route_localnet"
        with contextlib.suppress(FileNotFoundError):
            before = path.read_text(encoding="ascii").strip()
            if before != "1":
                path.write_text("1", encoding="ascii")
                undo.add(f"set {path} to {before}", partial(path.write_text, before, encoding="ascii"))
    for bridge in guarded - wanted:
        path = _SYSCTL / bridge / "route_localnet"
        with contextlib.suppress(FileNotFoundError):
            path.write_text((_SYSCTL / "default" / "route_localnet").read_text(encoding="ascii"), encoding="ascii")
            undo.add(f"set {path} to 1", partial(path.write_text, "1", encoding="ascii"))


def _iptables() -> Iptables | None:
    """None where there is no iptables, or it does not work here."""
    lines = _iptables_lines()
    if lines is None:
        return None
    forward = [line for line in lines if line.startswith("-A FORWARD ")]
    jump: Literal["none", "ahead", "behind"] = "none"
    if f"-A FORWARD -j {CHAIN}" in forward:
        rejecting = [n for n, line in enumerate(forward) if re.search(r"-j (LIBVIRT_FW\w|REJECT|DROP)\b", line)]
        jump = "ahead" if forward.index(f"-A FORWARD -j {CHAIN}") < min(rejecting, default=len(forward)) else "behind"
    policy = next((line.split()[2] for line in lines if line.startswith("-P FORWARD ")), "ACCEPT")
    has_chain = f"-N {CHAIN}" in lines
    return Iptables(
        policy=policy,
        jump=jump,
        libvirt=any(line.startswith("-N LIBVIRT_FW") for line in lines),
        accepts=tuple(line for line in lines if line.startswith(f"-A {CHAIN} ")) if has_chain else None,
    )


def _iptables_lines(program: str = "iptables") -> list[str] | None:
    if shutil.which(program, path=_PATH) is None:
        return None
    result = subprocess.run(
        [program, "--wait", "10", "-S"], capture_output=True, text=True, timeout=30, check=False, env=_environment()
    )
    return result.stdout.splitlines() if result.returncode == 0 else None


def libvirts_rules(version: int = 4) -> set[str] | None:
    """The bridges whose guests' packets of this IP version libvirt's own rules let out.

    None where neither of its back ends is seen.
    """
    found: set[str] = set()
    program, family = ("iptables", "ip") if version == 4 else ("ip6tables", "ip6")
    result = _iptables_lines(program)
    chain = _nft_json("chain", family, LIBVIRT_TABLE, "guest_output")
    if result is None and chain is None and shutil.which(program, path=_PATH) is not None:
        # iptables is there and does not answer; where it is not, libvirt can only have used nftables.
        return None
    for line in result or ():
        match = re.match(r"-A LIBVIRT_FWO .*-i (\S+) -j ACCEPT", line)
        if match:
            found.add(match[1])
    for entry in (chain or {}).get("nftables", []):
        for expression in entry.get("rule", {}).get("expr", []):
            test = expression.get("match", {})
            if test.get("left", {}).get("meta", {}).get("key") in ("iif", "iifname") and isinstance(
                test.get("right"), str
            ):
                found.add(test["right"])
    return found


def _nft_json(*what: str) -> dict[str, Any] | None:
    """``nft -j list WHAT``, or None where that is not there: without nft nothing of it is seen."""
    if shutil.which("nft", path=_PATH) is None:
        return None
    result = subprocess.run(
        ["nft", "-j", "list", *what], capture_output=True, text=True, timeout=30, check=False, env=_environment()
    )
    if result.returncode != 0:
        if "No such file or directory" in result.stderr:
            return None
        raise KvmctlError(f"nft does not answer: {_first_line(result.stderr)}", "run it as root on the host itself")
    found = json.loads(result.stdout or "{}")
    return found if isinstance(found, dict) else {}


def _run(*command: str, input: str) -> None:
    result = subprocess.run(
        list(command), input=input, capture_output=True, text=True, timeout=60, check=False, env=_environment()
    )
    if result.returncode != 0:
        raise KvmctlError(f"{command[0]} refused kvmctl's rules: {_first_line(result.stderr)}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH, "LC_ALL": "C"}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
