"""``host setup``: do what ``host check`` found missing and what is safe to do, saying each step.

decide() is pure: what to do about what host_facts.look() saw. After each step the machine is looked at
again, because one step brings what the next one needs (a package starts its daemon, or does not).
"""

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.operations import hooks, host_facts
from kvmctl.operations.host_facts import Facts, Thing
from kvmctl.preflight import host_kernel, host_kvm

_MODULAR = ("virtqemud", "virtnetworkd", "virtstoraged", "virtnodedevd", "virtsecretd", "virtinterfaced", "virtlogd")
# Installing packages over a slow line takes its time; a daemon that takes longer than this hangs.
_LONGEST = 1800


@dataclass(frozen=True)
class Step:
    """One thing to do: programs to run one after the other, or ``through`` libvirt (then ``typed`` says how by hand).

    ``name`` is what becomes ready; ``why`` what was found. Where ``vital`` fails there is no use in the rest.
    """

    name: str
    why: str
    commands: tuple[tuple[str, ...], ...] = ()
    through: Callable[[Hypervisor], str] | None = None
    typed: str = ""
    needs_root: bool = False
    vital: bool = False

    @property
    def command(self) -> str:
        """What a person would type for it."""
        return self.typed or "; ".join(shlex.join(command) for command in self.commands)

    def row(self, *, done: bool, changed: bool, detail: str) -> dict[str, Any]:
        """``{"name", "command", "done", "changed", "detail"}``."""
        return {"name": self.name, "command": self.command, "done": done, "changed": changed, "detail": detail}


def _network(state: Thing) -> Step:
    start = "virsh net-start default; " if state == "inactive" else ""
    typed = "kvmctl net create default" if state in ("missing", "unknown") else f"{start}virsh net-autostart default"
    return Step("network-default", _about("network", state), through=host_facts.make_network, typed=typed)


def _pool(state: Thing) -> Step:
    define = "virsh pool-define-as default dir --target /var/lib/libvirt/images; virsh pool-build default; "
    start = "virsh pool-start default; "
    typed = {"missing": define + start, "unknown": define + start, "inactive": start}.get(state, "")
    return Step(
        "pool-default",
        _about("storage pool", state),
        through=host_facts.make_pool,
        typed=f"{typed}virsh pool-autostart default",
    )


def _hooks(facts: Facts) -> Step:
    why = f"libvirt has no hook for {', '.join(facts.hooks)}, so published ports would not follow its starts and stops"

    def install(_hypervisor: Hypervisor) -> str:
        written = ", ".join(hooks.install())
        if not facts.systemd:
            return f"{written}; libvirtd sees hooks only when it starts, and was not restarted"
        running = [unit for unit in ("libvirtd.service", "virtqemud.service", "virtnetworkd.service") if _runs(unit)]
        if not running:
            # Started by its socket when it is asked next, and then it sees them.
            return written
        _command(("systemctl", "restart", *running))
        return f"{written}; libvirt was restarted to see them, which guests do not notice"

    return Step("hooks", why, through=install, typed="kvmctl host setup", needs_root=True)


def decide(facts: Facts) -> list[Step]:
    """What is to be done, in order; nothing where all is well.

    For a plain user's session what only the system's libvirtd needs is left out.
    """
    steps: list[Step] = []
    own = not facts.root
    if facts.packages:
        steps.append(_install(facts))
    modules = [name for name in facts.modules if not own or name.startswith("kvm_")]
    steps += [
        Step(f"module-{name}", f"the module {name} is not loaded", (("modprobe", name),), needs_root=True)
        for name in modules
    ]
    if facts.kvm_for_root_alone:
        let_in = tuple(tuple(command.split()) for command in host_kvm.LET_IN)
        steps.append(Step("kvm-access", host_kvm.ROOTS_ALONE, let_in, needs_root=True))
    if facts.cgroups_for_reading and not own:
        steps.append(_without_cgroups(facts))
    if facts.error is not None and not own:
        steps += _daemons(facts)
    if facts.groups:
        why = f"{facts.user} is not in {' and '.join(facts.groups)}; counts from the next login on"
        add = ("usermod", "-aG", ",".join(facts.groups), facts.user)
        steps.append(Step("user-groups", why, (add,), needs_root=True))
    if facts.error is None or facts.root:
        steps += [_network(facts.network)] if facts.network != "ready" else []
        steps += [_pool(facts.pool)] if facts.pool != "ready" else []
        steps += [_hooks(facts)] if facts.hooks else []
    return steps


def _about(what: str, state: Thing) -> str:
    return {
        "missing": f"there is no {what} named default",
        "inactive": f"the {what} default is not started",
        "by-hand": f"the {what} default is not started with the host",
        "unknown": f"the {what} default, where it is missing once libvirt runs",
        "ready": "",
    }[state]


def _install(facts: Facts) -> Step:
    why = f"not installed: {', '.join(facts.packages)}"
    if facts.manager == "apt":
        # A fresh machine brings itself up to date, and its apt is busy with that for a while.
        wait = ("-o", "DPkg::Lock::Timeout=600")
        install = ("apt-get", "install", "-y", "-q", *wait, "--no-install-recommends", *facts.packages)
        commands: tuple[tuple[str, ...], ...] = (("apt-get", "update", "-q"), install)
    else:
        why += " (Fedora's names, not tried by kvmctl's makers)"
        commands = (("dnf", "install", "-y", *facts.packages),)
    return Step("packages", why, commands, needs_root=True, vital=True)


def _without_cgroups(facts: Facts) -> Step:
    told = "" if facts.error is not None else "; libvirtd reads it when it starts, and was not restarted"
    return Step(
        "cgroups",
        f"control groups are mounted for reading only, so libvirt is to use none{told}",
        (("sh", "-c", f"echo '{host_kernel.NO_CGROUPS}' >> /etc/libvirt/qemu.conf"),),
        needs_root=True,
    )


def _daemons(facts: Facts) -> list[Step]:
    why = f"libvirt does not answer: {facts.error}"
    if facts.systemd:
        units = [f"{name}.socket" for name in _MODULAR] if facts.modular else ["libvirtd.service"]
        return [Step("libvirtd", why, (("systemctl", "enable", "--now", *units),), needs_root=True, vital=True)]
    steps = []
    if not facts.virtlogd:
        # Guests' output goes through it; without systemd nobody starts it when it is needed.
        start = (("mkdir", "-p", "/run/libvirt"), ("virtlogd", "--daemon"))
        steps.append(Step("virtlogd", "virtlogd does not run, and there is no systemd", start, needs_root=True))
    daemon = (("virtqemud", "--daemon"),) if facts.modular else (("libvirtd", "--daemon"),)
    return [*steps, Step("libvirtd", why, daemon, needs_root=True, vital=True)]


def run(connect: Callable[[], Hypervisor], say: Callable[[Step], None]) -> Iterator[dict[str, Any]]:
    """Do each step once and yield its row(); ``say`` hears of it before it begins.

    A step that fails is a row with ``done`` false and the reason; after a vital one nothing more is done.
    """
    tried: set[str] = set()
    wanted = decide(host_facts.look(connect))
    while True:
        step = next((step for step in wanted if step.name not in tried), None)
        if step is None:
            return
        tried.add(step.name)
        if step.needs_root and os.geteuid() != 0:
            yield step.row(done=False, changed=False, detail=f"{step.why}; needs root: sudo kvmctl host setup")
            if step.vital:
                return
            continue
        say(step)
        try:
            detail = _do(step, connect)
        except KvmctlError as error:
            yield step.row(done=False, changed=False, detail=f"{step.why}; failed: {error.message}")
            if step.vital:
                return
            continue
        wanted = decide(host_facts.look(connect))
        if any(other.name == step.name for other in wanted):
            # Its programs ended well, and yet: what is true now counts, not what they said.
            yield step.row(done=False, changed=True, detail=f"{step.why}; that ran, and yet it is still so")
            if step.vital:
                return
            continue
        yield step.row(done=True, changed=True, detail=detail)


def _do(step: Step, connect: Callable[[], Hypervisor]) -> str:
    if step.through is not None:
        with connect() as hypervisor:
            return step.through(hypervisor)
    for command in step.commands:
        _command(command)
    return step.why


def _runs(unit: str) -> bool:
    # Most hosts lack one or the other, and systemctl fails for a unit that it does not know.
    try:
        _command(("systemctl", "is-active", "--quiet", unit))
    except KvmctlError:
        return False
    return True


def _command(command: tuple[str, ...]) -> None:
    program = host_facts.program(command[0])
    if program is None:
        raise KvmctlError(f"there is no program {command[0]}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KvmctlError(f"{command[0]} took longer than {_LONGEST // 60} minutes") from None
    except OSError as error:
        raise KvmctlError(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise KvmctlError(f"{command[0]} ended with {done.returncode}{f': {said[-1][:300]}' if said else ''}")
