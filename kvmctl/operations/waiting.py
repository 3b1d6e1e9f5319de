"""Waiting until a VM is so far: running, its agent there, an address, SSH, cloud-init done, stopped, deleted.

What libvirt has an event for is waited for by it; only what happens inside the guest is looked at again
and again, in growing intervals.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, KvmctlError, TimedOut
from kvmctl.model import xml
from kvmctl.model.names import harmless
from kvmctl.operations import addresses, reach
from kvmctl.operations.agent import Agent, AgentError, NotConnected
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.progress import Progress
from kvmctl.operations.watch import Event, Watch

Condition = Literal["running", "stopped", "agent", "ip", "ssh", "cloud-init", "deleted"]
CONDITIONS: tuple[str, ...] = get_args(Condition)

_FIRST_LOOK_SECONDS = 0.3
_LONGEST_LOOK_SECONDS = 2.0
# Without an event nothing changes, but one may get lost with a libvirt that was restarted.
_SILENCE_SECONDS = 10.0

_SPOKEN = {
    "running": "to run",
    "stopped": "to be off",
    "agent": "for its guest agent",
    "ip": "for an address",
    "ssh": "for SSH",
    "cloud-init": "for cloud-init to finish",
    "deleted": "to be deleted",
}


@dataclass(frozen=True)
class Reached:
    """That it came, after ``seconds``; ``detail`` is what was found (an address, ``127.0.0.1:2222``)."""

    condition: str
    seconds: float
    detail: str | None = None


class _NotYet(Exception):
    """Look again later; the text says what is missing."""


def wait_for(
    hypervisor: Hypervisor,
    domain: libvirt.virDomain,
    condition: str,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> Reached:
    """Return when ``condition`` (one of CONDITIONS) holds; the connection needs ``events=True``.

    Raises TimedOut, saying what was still missing, after ``timeout`` seconds (None: never); Conflict at once where the
    VM is off or stops meanwhile, or lacks what would have to answer; KvmctlError where it crashed, or
    cloud-init says that it failed; ConnectionFailed where libvirt is lost.
    """
    progress = progress or Progress()
    with translated(hypervisor.uri):
        name = domain.name()
        progress.step(f"waiting for {name} {_SPOKEN[condition]}")
        with Watch(hypervisor, domain) as watch:
            wait = _Wait(hypervisor, domain, name, condition, watch, progress)
            if condition in ("running", "stopped", "deleted"):
                return wait.by_events(math.inf if timeout is None else timeout)
            return wait.by_looking(math.inf if timeout is None else timeout)


class _Wait:
    def __init__(
        self,
        hypervisor: Hypervisor,
        domain: libvirt.virDomain,
        name: str,
        condition: str,
        watch: Watch,
        progress: Progress,
    ) -> None:
        self.hypervisor = hypervisor
        self.domain = domain
        self.name = name
        self.condition = condition
        self.watch = watch
        self.progress = progress
        self.agent = Agent(hypervisor, domain)
        self.began = time.monotonic()
        self.looks: dict[str, Callable[[], str | None]] = {
            "agent": self._agent,
            "ip": self._ip,
            "ssh": self._ssh,
            "cloud-init": self._cloud_init,
        }

    def by_events(self, timeout: float) -> Reached:
        """The conditions that libvirt itself knows."""
        while True:
            if self._holds():
                return self._reached(None)
            left = timeout - (time.monotonic() - self.began)
            if left <= 0:
                raise TimedOut(
                    f"{self.name} is still {self._present()} after {timeout:g} s of waiting {_SPOKEN[self.condition]}"
                )
            self.watch.next(min(left, _SILENCE_SECONDS))

    def _holds(self) -> bool:
        state = state_of(self.domain)
        if self.condition == "running":
            if not self._exists():
                raise Conflict(f"{self.name} was deleted, so it will not run")
            return state == "running"
        return state == "shutoff" and (self.condition == "stopped" or not self._exists())

    def _present(self) -> str:
        return state_of(self.domain) if self._exists() else "deleted"

    def _exists(self) -> bool:
        try:
            self.domain.isPersistent()
        except libvirt.libvirtError as error:
            if is_missing(error):
                return False
            raise
        return True

    def by_looking(self, timeout: float) -> Reached:
        """The conditions of the inside of the guest."""
        self._require_running()
        pause = _FIRST_LOOK_SECONDS
        while True:
            try:
                return self._reached(self.looks[self.condition]())
            except _NotYet as missing:
                why = str(missing)
            self.progress.step(f"waiting for {self.name} {_SPOKEN[self.condition]}: {why}")
            left = timeout - (time.monotonic() - self.began)
            if left <= 0:
                raise TimedOut(
                    f"gave up waiting for {self.name} {_SPOKEN[self.condition]} after {timeout:g} s: {why}",
                    f"the VM runs on; 'kvmctl console {self.name}' shows what it does",
                )
            event = self.watch.next(min(left, pause))
            if event is None:
                pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)
            else:
                pause = _FIRST_LOOK_SECONDS
                self._check(event)

    def _check(self, event: Event) -> None:
        if event.kind == "lifecycle" and event.what in ("crashed", "stopped", "undefined"):
            if event.what == "crashed" or event.why == "crashed":
                raise KvmctlError(f"{self.name} crashed while waiting {_SPOKEN[self.condition]}")
            if event.why == "failed":
                raise KvmctlError(f"{self.name} failed while waiting {_SPOKEN[self.condition]}")
        self._require_running()

    def _require_running(self) -> None:
        state = state_of(self.domain)
        if state == "paused":
            reason = self.domain.state(0)[1]
            if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
                raise KvmctlError(
                    f"{self.name} was paused by an error of its disk",
                    "is the host's storage full? then 'kvmctl resume'",
                )
            if reason == libvirt.VIR_DOMAIN_PAUSED_USER:
                raise Conflict(
                    f"{self.name} is paused, so waiting {_SPOKEN[self.condition]} is in vain",
                    f"'kvmctl resume {self.name}' first",
                )
            return
        if state == "crashed":
            raise KvmctlError(f"{self.name} crashed", f"'kvmctl destroy {self.name}' clears it away")
        if state not in ("running", "blocked"):
            raise Conflict(
                f"{self.name} is {state}, so waiting {_SPOKEN[self.condition]} is in vain",
                f"'kvmctl start {self.name}' first" if state == "shutoff" else None,
            )

    def _reached(self, detail: str | None) -> Reached:
        return Reached(self.condition, round(time.monotonic() - self.began, 3), detail)

    def _agent(self) -> str | None:
        channel = self.agent.channel()
        if channel is None:
            self.agent.require()
        if channel != "connected":
            raise _NotYet("the agent is not connected yet")
        if not self.agent.answers():
            raise _NotYet("the agent is connected and does not answer yet")
        return None

    def _ip(self) -> str | None:
        found = self._addresses()
        if not found:
            raise _NotYet("it has none yet")
        return found[0]

    def _addresses(self) -> list[str]:
        tree = xml.parse(self.domain.XMLDesc(0), "domain")
        macs = [mac.get("address", "").lower() for mac in tree.iterfind("devices/interface/mac")]
        kinds = {nic.get("type") for nic in tree.iterfind("devices/interface")}
        if not macs:
            raise Conflict(f"{self.name} has no network card, so it will have no address")
        if kinds == {"user"} and self.agent.channel() is None:
            raise Conflict(
                f"{self.name} has only user networking and no guest agent channel: nobody outside knows its address",
                f"'kvmctl wait {self.name} --for ssh' needs none where port 22 is published",
            )
        return addresses.flat(addresses.by_mac(self.domain), macs)

    def _ssh(self) -> str | None:
        try:
            return reach.ssh(self.hypervisor, self.domain, self.agent)
        except reach.NotYet as missing:
            raise _NotYet(str(missing)) from missing

    def _cloud_init(self) -> str | None:
        self._agent()
        try:
            text = self.agent.content("/run/cloud-init/result.json")
        except NotConnected:
            raise _NotYet("the agent does not answer") from None
        except AgentError as error:
            if error.hint is not None:
                raise
            raise _NotYet(self._cloud_init_stage()) from None
        return _cloud_init_result(self.name, text)

    def _cloud_init_stage(self) -> str:
        for path in ("/run/cloud-init/disabled", "/run/cloud-init/status.json"):
            try:
                text = self.agent.content(path)
            except KvmctlError:
                continue
            if path.endswith("disabled"):
                raise Conflict(f"cloud-init is switched off in {self.name}: it found no data source for it")
            try:
                stage = json.loads(text)["v1"]["stage"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return "cloud-init is at work"
            return f"its stage is {harmless(str(stage))[:40]}" if stage else "cloud-init is between two stages"
        return "no sign of cloud-init in the guest yet"


def _cloud_init_result(name: str, text: bytes) -> str | None:
    """The data source that result.json names. Raises KvmctlError where it lists errors, _NotYet if half written."""
    try:
        result = json.loads(text)["v1"]
        errors, source = result.get("errors") or [], result.get("datasource")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _NotYet("its result cannot be read yet") from None
    if errors:
        shown = "; ".join(harmless(str(error))[:200] for error in list(errors)[:3])
        raise KvmctlError(
            f"cloud-init finished in {name} with errors: {shown}",
            f"'kvmctl exec {name} -- cat /var/log/cloud-init.log' has all of it",
        )
    return harmless(str(source))[:200] if source else None
