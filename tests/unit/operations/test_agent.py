"""A guest agent may answer anything. Only the reply is made up here: no well-behaved agent sends these."""

import base64
import json
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from kvmctl.connection import Hypervisor
from kvmctl.errors import Conflict, KvmctlError
from kvmctl.operations import addresses
from kvmctl.operations import exec as execution
from kvmctl.operations.agent import Agent, AgentError


@pytest.fixture
def agent() -> Agent:
    hypervisor = Hypervisor(libvirt.open("test:///default"))
    return Agent(hypervisor, hypervisor.find("test"))


def answering(monkeypatch: pytest.MonkeyPatch, *replies: Any) -> None:
    left = list(replies)

    def command(*_: Any) -> Any:
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, libvirt.libvirtError):
            raise reply
        return reply if isinstance(reply, str) else json.dumps({"return": reply})

    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", command)


def failing(code: int, message: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError("x")
    error.err = (code, 0, message, 0, None, None, None, 0, 0)
    return error


@pytest.mark.parametrize("reply", ["", "no json", "[]", "3", "[" * 200_000, '{"return": {"buf-b64": 3}}'])
def test_what_is_no_reply_is_an_error(agent: Agent, monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    answering(monkeypatch, reply)
    with pytest.raises(KvmctlError, match="nonsense"):
        agent.read(1)


@pytest.mark.parametrize(
    "reply",
    [
        {"buf-b64": "%%%", "count": 3},
        {"buf-b64": base64.b64encode(b"x" * 100).decode(), "count": 1},
        [],
        None,
        {"buf-b64": ["YQ=="]},
    ],
)
def test_a_file_that_is_read_wrongly(agent: Agent, monkeypatch: pytest.MonkeyPatch, reply: Any) -> None:
    answering(monkeypatch, reply)
    with pytest.raises(KvmctlError, match="nonsense"):
        agent.read(1, 10)


@pytest.mark.parametrize("count", [0, -1, 10**9, True, "3", None])
def test_a_write_that_says_it_wrote_what_it_cannot_have(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, count: Any
) -> None:
    answering(monkeypatch, {"count": count})
    with pytest.raises(KvmctlError, match="nonsense"):
        agent.write(1, b"data")


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"exited": "yes"},
        {"exited": True, "exitcode": "0"},
        {"exited": True, "exitcode": -1},
        {"exited": True, "exitcode": True},
        {"exited": True, "exitcode": 0, "out-data": "?"},
        {"exited": True, "signal": 2**40},
    ],
)
def test_a_command_that_ends_impossibly(agent: Agent, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    answering(monkeypatch, {"pid": 7}, status)
    with pytest.raises(KvmctlError, match="nonsense"):
        execution.output_of(agent, ["true"])


def test_the_ways_an_agent_refuses(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, failing(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "QEMU guest agent is not connected"))
    with pytest.raises(Conflict, match="not connected"):
        agent.call("guest-ping")
    text = "internal error: unable to execute QEMU agent command 'guest-exec': \x1b[31mCommand has been disabled"
    answering(monkeypatch, failing(libvirt.VIR_ERR_INTERNAL_ERROR, text))
    with pytest.raises(AgentError) as caught:
        agent.call("guest-exec")
    assert "\x1b" not in caught.value.message and r"\x1b[31m" in caught.value.message
    assert caught.value.hint is not None and "qemu-ga" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1", "::1", "fe80::1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "1.2.3", "1.2.3.4\n", "x" * 99, None, 7],
)
def test_what_is_no_address_to_use(text: Any) -> None:
    assert addresses.checked(text) is None


def test_addresses_are_written_in_one_way_and_ordered() -> None:
    assert addresses.checked("2001:DB8:0::1") == "2001:db8::1"
    known = {"a": ["2001:db8::1", "10.0.0.9"], "b": ["10.0.0.10"]}
    assert addresses.flat(known) == ["10.0.0.9", "10.0.0.10", "2001:db8::1"]
    assert addresses.flat(known, ["b", "c"]) == ["10.0.0.10"]
