"""Talking to the QEMU guest agent. Whatever it answers comes from the guest and is checked before it is used.

Commands and replies: QEMU's qga/qapi-schema.json. libvirt passes at most 4 MiB of reply on
(VIR_NET_MESSAGE_STRING_MAX), so files go in pieces.
"""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from kvmctl.connection import Hypervisor, explain
from kvmctl.errors import Conflict, KvmctlError
from kvmctl.model import domain_view, xml
from kvmctl.model.names import harmless
from kvmctl.model.state import word

T = TypeVar("T")

# What one guest-file-read carries. qga reads at most 48 MB a call; base64 and libvirt's 4 MiB leave less.
PIECE = 512 * 1024
# What one guest-file-write carries: qga reads a request a byte at a time, and took longer than ANSWER_SECONDS
# for one of PIECE on an emulated CPU.
WRITTEN_PIECE = 48 * 1024
# How long the agent may take for one answer. It is quick unless it, or the guest, hangs.
ANSWER_SECONDS = 10


class AgentError(KvmctlError):
    """The agent answered, and its answer was an error: ``reason`` is the guest's own text, made harmless."""

    def __init__(self, message: str, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.reason = reason


class NotConnected(Conflict):
    """No agent answers: it is not installed, not running yet, or hangs."""


class Agent:
    """The guest agent of ``domain``. Calls raise Conflict where there is none to talk to, AgentError, KvmctlError."""

    def __init__(self, hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
        self.uri = hypervisor.uri
        self.domain = domain
        self.name: str = domain.name()

    def require(self) -> None:
        """Raise Conflict, saying what is missing, unless the VM runs and its agent's channel is connected."""
        state = word(self.domain.state(0)[0])
        if state != "running":
            raise Conflict(f"{self.name} is {state}, so nothing in it can answer", self._start_hint(state))
        channel = self.channel()
        if channel is None:
            raise Conflict(
                f"{self.name} has no channel for the guest agent",
                "add <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel> "
                f"with 'kvmctl edit {self.name}' and start it anew",
            )
        if channel != "connected":
            raise self._not_connected()

    def channel(self) -> str | None:
        """See domain_view.agent_channel()."""
        return domain_view.agent_channel(xml.parse(self.domain.XMLDesc(0), "domain"))

    def _start_hint(self, state: str) -> str:
        return f"'kvmctl {'resume' if state in ('paused', 'pmsuspended') else 'start'} {self.name}' first"

    def _not_connected(self) -> NotConnected:
        return NotConnected(
            f"the guest agent of {self.name} is not connected",
            "qemu-guest-agent must be installed and running in the guest; "
            f"'kvmctl wait {self.name} --for agent' waits for it",
        )

    def call(self, command: str, arguments: dict[str, Any] | None = None, seconds: int = ANSWER_SECONDS) -> Any:
        """The ``return`` of ``command``, as JSON has it."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            reply = libvirt_qemu.qemuAgentCommand(self.domain, json.dumps(request), seconds, 0)
        except libvirt.libvirtError as error:
            raise self._failed(command, error) from error
        try:
            answer = json.loads(reply)
        except (ValueError, RecursionError) as error:
            raise self.nonsense(command) from error
        return expect(self, command, answer, dict).get("return")

    def _failed(self, command: str, error: libvirt.libvirtError) -> KvmctlError:
        code = error.get_error_code()
        text = " ".join((error.get_error_message() or "").split())
        if code in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED):
            if "not connected" in text:
                return self._not_connected()
            return NotConnected(
                f"the guest agent of {self.name} does not answer", "the guest may hang, or be booting or stopping"
            )
        marker = f"unable to execute QEMU agent command '{command}': "
        if marker in text:
            reason = harmless(text.partition(marker)[2])[:300]
            hint = None
            if "disabled" in reason or "has not been found" in reason or "not allowed" in reason:
                hint = (
                    "the guest's own settings forbid it: see BLACKLIST_RPC or --allow-rpcs of qemu-ga in the guest "
                    "(/etc/sysconfig/qemu-ga)"
                )
            return AgentError(f"the guest agent of {self.name} refuses {command}: {reason}", reason, hint)
        if code == libvirt.VIR_ERR_OPERATION_INVALID:
            return Conflict(f"{self.name}: {text}")
        return explain(error, self.uri)

    def nonsense(self, command: str) -> KvmctlError:
        """The error for an answer that is not what the protocol says."""
        return KvmctlError(f"the guest agent of {self.name} answered {command} with nonsense")

    def answers(self) -> bool:
        """Whether it is there and awake."""
        try:
            self.call("guest-ping", seconds=3)
        except KvmctlError:
            return False
        return True

    @contextlib.contextmanager
    def opened(self, path: str, mode: str) -> Iterator[int]:
        """A handle of a file in the guest, closed again after the ``with``; ``mode`` as fopen(3) has it."""
        handle = expect(self, "guest-file-open", self.call("guest-file-open", {"path": path, "mode": mode}), int)
        try:
            yield handle
        finally:
            # The handle ends with the agent at the latest; what went wrong before matters more.
            with contextlib.suppress(KvmctlError):
                self.call("guest-file-close", {"handle": handle})

    def read(self, handle: int, count: int = PIECE) -> tuple[bytes, bool]:
        """At most ``count`` bytes of an open file, and whether that was its end."""
        answer = expect(
            self,
            "guest-file-read",
            self.call("guest-file-read", {"handle": handle, "count": count}),
            dict,
        )
        data = decoded(self, "guest-file-read", answer.get("buf-b64", ""))
        if len(data) > count:
            raise self.nonsense("guest-file-read")
        return data, answer.get("eof") is True

    def write(self, handle: int, data: bytes) -> None:
        """All of ``data`` to an open file."""
        while data:
            piece = base64.b64encode(data[:WRITTEN_PIECE]).decode("ascii")
            answer = expect(
                self, "guest-file-write", self.call("guest-file-write", {"handle": handle, "buf-b64": piece}), dict
            )
            count = expect(self, "guest-file-write", answer.get("count"), int)
            if not 0 < count <= min(WRITTEN_PIECE, len(data)):
                raise self.nonsense("guest-file-write")
            data = data[count:]

    def content(self, path: str, most: int = PIECE) -> bytes:
        """The first ``most`` bytes of a small file in the guest."""
        found = b""
        with self.opened(path, "r") as handle:
            while len(found) < most:
                data, end = self.read(handle, min(PIECE, most - len(found)))
                found += data
                if end or not data:
                    break
        return found


def expect(agent: Agent, command: str, value: Any, kind: type[T]) -> T:
    """``value`` if it is a ``kind`` (a bool is no int here). Raises KvmctlError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise agent.nonsense(command)
    return value


def decoded(agent: Agent, command: str, text: Any) -> bytes:
    """The bytes of a base64 field. Raises KvmctlError where it is none."""
    try:
        return base64.b64decode(expect(agent, command, text, str), validate=True)
    except (binascii.Error, ValueError) as error:
        raise agent.nonsense(command) from error
