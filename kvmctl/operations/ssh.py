"""The ssh command that reaches a guest."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, UsageProblem
from kvmctl.model import domain_view
from kvmctl.model.state import ACTIVE
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.reach import doors

# Nothing in it may look like an option or be read by a shell on the way.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}\$?\Z")


@dataclass(frozen=True)
class Plan:
    """``argv``: the whole command."""

    name: str
    address: str
    port: int
    argv: list[str]


def plan(hypervisor: Hypervisor, name: str, *, user: str | None, identity: str | None, command: Sequence[str]) -> Plan:
    """How to reach VM ``name``. Raises Conflict where it is off or there is no way to it from here."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        state, shown = state_of(domain), domain.name()
        if state not in ACTIVE:
            raise Conflict(f"{shown} is {state}", f"'kvmctl start {shown} --wait ssh' first")
        seen = domain_view.read(domain.XMLDesc(0))
        jump = hypervisor.is_remote and hypervisor.transport in ("ssh", "libssh", "libssh2")
        found = doors(hypervisor, domain, seen, on_its_host=jump)
    if not found:
        raise Conflict(
            f"no way leads to the port 22 of {shown} from here",
            "its network belongs to that host: connect as qemu+ssh://, which jumps over it"
            if hypervisor.is_remote and not jump
            else f"publish it: kvmctl port add {shown} 2222:22",
        )
    who = user if user is not None else seen.kvmctl.user
    if who is not None and not _USER.match(who):
        raise UsageProblem(f"{who[:80]!a} is not a user's name")
    door = found[0]
    argv = ["ssh", "-p", str(door.port), "-o", f"HostKeyAlias=kvmctl-{seen.uuid}"]
    argv += ["-o", "StrictHostKeyChecking=accept-new"]
    if identity is not None:
        argv += ["-i", identity]
    if jump:
        argv += ["-J", _jump(hypervisor)]
    if who is not None:
        argv += ["-l", who]
    argv += ["--", door.address, *command]
    return Plan(shown, door.address, door.port, argv)


def _jump(hypervisor: Hypervisor) -> str:
    """``[user@]host[:port]`` of the connection; check_uri() has refused what begins with ``-``."""
    parts = urlsplit(hypervisor.uri)
    host = parts.hostname or ""
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return f"{user}[{host}]{port}" if ":" in host else f"{user}{host}{port}"
