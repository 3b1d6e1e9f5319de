"""Running a command in a guest through its agent, its input and output passed on as they come.

guest-exec alone hands output over only at the end, and loses what is longer than libvirt's 4 MiB message. So
where the guest has a shell, the command's output goes to files in a private folder of the guest, which are
read while it runs; its input comes through a FIFO that a small loop in the guest fills. Where it has none
(Windows), guest-exec's own capture has to do.
"""

import base64
import contextlib
import os
import secrets
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Interrupted, KvmctlError, TimedOut, UsageProblem, is_interrupt, with_leftovers
from kvmctl.operations.agent import WRITTEN_PIECE, Agent, AgentError, decoded, expect

# $1: the private folder, $2: yes where input follows, $3...: the command. The command replaces the shell, so
# that its exit status and its pid are the ones the agent reports; setsid lets a timeout end its children too.
_SCRIPT = r"""
d=$1; input=$2; shift 2
mkdir -m 700 "$d" && : >"$d/out" && : >"$d/err" || exit 125
command -v "$1" >/dev/null || { echo "kvmctl: $1: command not found in the guest" >"$d/err"; exit 127; }
run=$(command -v setsid)
if [ "$input" = yes ]; then
    mkfifo "$d/stdin" || exit 125
    (
        n=0
        while [ -d "$d" ]; do
            if [ -e "$d/ok.$n" ]; then
                cat "$d/in.$n" || exit
                rm -f "$d/in.$n" "$d/ok.$n"
                n=$((n + 1))
            elif [ -e "$d/end" ]; then
                exit
            else
                sleep 0.05 2>/dev/null || sleep 1
            fi
        done
    ) >"$d/stdin" 2>/dev/null &
    exec $run "$@" <"$d/stdin" >"$d/out" 2>"$d/err"
fi
exec $run "$@" </dev/null >"$d/out" 2>"$d/err"
"""
_NO_FOLDER = 125
# How many pieces of input may wait in the guest before more is read here.
_WAITING_PIECES = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
# libvirt's message takes 4 MiB with base64 and the rest of the command in it.
_MOST_CAPTURED_INPUT = 2 * 1024 * 1024

Sink = Callable[[bytes], object]


@dataclass(frozen=True)
class Finished:
    """How the command ended: its ``exit_code``, or the ``signal`` that ended it. ``truncated``: output was lost."""

    exit_code: int | None
    signal: int | None
    truncated: bool = False

    @property
    def status(self) -> int:
        """What a shell would call its exit status: 128 + n for signal n."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)


@dataclass
class _Input:
    """What is still to be passed to the command: ``stream`` is None when all is."""

    stream: BinaryIO | None
    number: int = 0
    ended: bool = field(default=False)


def run(
    hypervisor: Hypervisor,
    name: str,
    command: Sequence[str],
    *,
    stdin: BinaryIO | None,
    stdout: Sink,
    stderr: Sink,
    timeout: float | None = None,
) -> Finished:
    """Run ``command`` in VM ``name``; ``stdin`` is read without waiting for its end, None gives it /dev/null.

    Raises NotFound; Conflict where no guest agent answers; TimedOut after ``timeout`` seconds, with the
    command killed; KvmctlError where the agent forbids it or answers nonsense.
    """
    agent = Agent(hypervisor, hypervisor.find(name))
    with translated(hypervisor.uri):
        agent.require()
        until = None if timeout is None else time.monotonic() + timeout
        folder = f"/tmp/.kvmctl-{secrets.token_hex(12)}"
        arguments = ["-c", _SCRIPT, "kvmctl", folder, "yes" if stdin is not None else "no", *command]
        try:
            process = _Process(agent, _start(agent, "/bin/sh", arguments, None))
        except AgentError as error:
            if error.hint is not None:
                raise
            return _captured(agent, command, stdin, stdout, stderr, until)
        try:
            handles = _open_output(agent, process, folder)
            if handles is None:
                return _captured(agent, command, stdin, stdout, stderr, until)
            return _follow(agent, process, folder, handles, _Input(stdin), (stdout, stderr), until)
        finally:
            with contextlib.suppress(KvmctlError):
                _start(agent, "/bin/rm", ["-rf", folder], None)


def output_of(agent: Agent, command: Sequence[str], seconds: float = 20) -> tuple[Finished, bytes, bytes]:
    """A short command's whole result, for kvmctl's own questions to a guest."""
    found: tuple[list[bytes], list[bytes]] = ([], [])
    until = time.monotonic() + seconds
    finished = _captured(agent, command, None, found[0].append, found[1].append, until)
    return finished, b"".join(found[0]), b"".join(found[1])


def _start(agent: Agent, path: str, arguments: list[str], data: bytes | None) -> int:
    request: dict[str, Any] = {"path": path, "arg": arguments, "capture-output": True}
    if data is not None:
        request["input-data"] = base64.b64encode(data).decode("ascii")
    answer = expect(agent, "guest-exec", agent.call("guest-exec", request), dict)
    return expect(agent, "guest-exec", answer.get("pid"), int)


class _Process:
    """A process that the agent started. The agent tells once that it has ended and then forgets it."""

    def __init__(self, agent: Agent, pid: int) -> None:
        self.agent = agent
        self.pid = pid
        self._last: dict[str, Any] | None = None

    def status(self) -> dict[str, Any]:
        """guest-exec-status, checked for its ``exited``."""
        if self._last is not None:
            return self._last
        reply = self.agent.call("guest-exec-status", {"pid": self.pid})
        answer = expect(self.agent, "guest-exec-status", reply, dict)
        if expect(self.agent, "guest-exec-status", answer.get("exited"), bool):
            self._last = answer
        return answer

    def kill(self) -> bool:
        """End it and what it started: politely, then not. False where nobody hears of it, and it may run on."""
        if self._last is not None:
            return True
        script = "kill -TERM -- -$1 || kill -TERM $1; sleep 2; kill -KILL -- -$1 || kill -KILL $1"
        try:
            _start(self.agent, "/bin/sh", ["-c", script, "kvmctl", str(self.pid)], None)
        except KvmctlError:
            return False
        return True

    def kill_after(self, error: BaseException) -> None:
        """Kill it because of ``error``. Where that does not work, raise that error anew with it named."""
        if self.kill():
            return
        left = [f"end process {self.pid} in the guest {self.agent.name}"]
        if isinstance(error, KvmctlError):
            with_leftovers(error, left)
        elif is_interrupt(error):
            raise with_leftovers(Interrupted("interrupted"), left) from error


def _ending(agent: Agent, answer: dict[str, Any]) -> Finished:
    code, signal = answer.get("exitcode"), answer.get("signal")
    for number in (code, signal):
        # Windows' exit codes have 32 bits, of which a process here can pass on the lowest 8.
        if number is not None and not 0 <= expect(agent, "guest-exec-status", number, int) < 2**32:
            raise agent.nonsense("guest-exec-status")
    truncated = answer.get("out-truncated") is True or answer.get("err-truncated") is True
    if signal is not None:
        return Finished(None, signal & 0x7F, truncated)
    return Finished(0 if code is None else code, None, truncated)


def _open_output(agent: Agent, process: _Process, folder: str) -> tuple[int, int] | None:
    """Handles of both output files, or None where the guest had no place for them."""
    pause = _FIRST_PAUSE
    while True:
        # Looked at first: a folder that is there only now counts for a command that has ended already.
        answer = process.status()
        try:
            handles = [
                expect(
                    agent,
                    "guest-file-open",
                    agent.call("guest-file-open", {"path": f"{folder}/{which}", "mode": "r"}),
                    int,
                )
                for which in ("out", "err")
            ]
            return handles[0], handles[1]
        except AgentError as error:
            if error.hint is not None:
                process.kill()
                raise
        if answer["exited"]:
            if answer.get("exitcode") == _NO_FOLDER:
                return None
            raise KvmctlError(f"the guest {agent.name} did not run the command's shell as it should")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _follow(
    agent: Agent,
    process: _Process,
    folder: str,
    handles: tuple[int, int],
    source: _Input,
    sinks: tuple[Sink, Sink],
    until: float | None,
) -> Finished:
    pause = _FIRST_PAUSE
    try:
        while True:
            # The status first: what was written before the end is then read for sure.
            answer = process.status()
            moved = _pass_on(agent, handles, sinks, to_the_end=answer["exited"])
            if answer["exited"]:
                return _ending(agent, answer)
            moved = _feed(agent, folder, source) or moved
            if until is not None and time.monotonic() >= until:
                raise TimedOut(f"the command did not end in time, so it was killed in {agent.name}")
            if moved:
                pause = _FIRST_PAUSE
            else:
                _rest(source, pause)
                pause = min(pause * 1.3, _LONGEST_PAUSE)
    except BaseException as error:
        process.kill_after(error)
        raise
    finally:
        for handle in handles:
            with contextlib.suppress(KvmctlError):
                agent.call("guest-file-close", {"handle": handle})


def _pass_on(agent: Agent, handles: tuple[int, int], sinks: tuple[Sink, Sink], to_the_end: bool) -> bool:
    moved = False
    for handle, sink in zip(handles, sinks, strict=True):
        while True:
            data, end = agent.read(handle)
            if data:
                sink(data)
                moved = True
            if not to_the_end or end or not data:
                break
    return moved


def _feed(agent: Agent, folder: str, source: _Input) -> bool:
    """Pass on what there is to read now, if the guest has taken most of what came before."""
    stream = source.stream
    if stream is None or not select.select([stream], [], [], 0)[0]:
        return False
    if source.number >= _WAITING_PIECES and _exists(agent, f"{folder}/in.{source.number - _WAITING_PIECES}"):
        return False
    # One read of the pipe or file itself: select() knows nothing of what a buffer would hold.
    data = os.read(stream.fileno(), WRITTEN_PIECE)
    if not data:
        source.stream = None
        _create(agent, f"{folder}/end", b"")
        return True
    _create(agent, f"{folder}/in.{source.number}", data)
    _create(agent, f"{folder}/ok.{source.number}", b"")
    source.number += 1
    return True


def _rest(source: _Input, seconds: float) -> None:
    if source.stream is not None and source.number < _WAITING_PIECES:
        select.select([source.stream], [], [], seconds)
    else:
        time.sleep(seconds)


def _exists(agent: Agent, path: str) -> bool:
    try:
        with agent.opened(path, "r"):
            return True
    except AgentError:
        return False


def _create(agent: Agent, path: str, data: bytes) -> None:
    with agent.opened(path, "w") as handle:
        agent.write(handle, data)


def _captured(
    agent: Agent,
    command: Sequence[str],
    stdin: BinaryIO | None,
    stdout: Sink,
    stderr: Sink,
    until: float | None,
) -> Finished:
    data = stdin.read(_MOST_CAPTURED_INPUT + 1) if stdin is not None else None
    if data is not None and len(data) > _MOST_CAPTURED_INPUT:
        raise UsageProblem(
            "the input is longer than 2 MiB, the most that a guest without a shell can take",
            "copy it there with 'kvmctl cp' first",
        )
    process = _Process(agent, _start(agent, command[0], list(command[1:]), data))
    pause = _FIRST_PAUSE
    try:
        while not (answer := process.status())["exited"]:
            if until is not None and time.monotonic() >= until:
                raise TimedOut(f"the command did not end in time, so it was killed in {agent.name}")
            time.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE)
    except BaseException as error:
        process.kill_after(error)
        raise
    for key, sink in (("out-data", stdout), ("err-data", stderr)):
        if key in answer:
            sink(decoded(agent, "guest-exec-status", answer[key]))
    return _ending(agent, answer)
