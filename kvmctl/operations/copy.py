"""Copying a file into a guest or out of it, through its agent."""

import contextlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import KvmctlError, NotFound, UsageProblem
from kvmctl.model.names import harmless
from kvmctl.operations.agent import WRITTEN_PIECE, Agent, AgentError
from kvmctl.operations.exec import output_of
from kvmctl.operations.progress import Progress


@dataclass(frozen=True)
class Place:
    """One end of a copy: ``vm`` None is this machine."""

    vm: str | None
    path: str


def place(text: str) -> Place:
    """``VM:/path`` or a path of this machine (write ``./a:b`` for one with a colon)."""
    vm, colon, path = text.partition(":")
    if not colon or "/" in vm or not vm:
        return Place(None, text)
    if not path.startswith("/") and not (len(path) > 2 and path[1] == ":"):
        raise UsageProblem(f"{text[:100]!a}: a path in the guest must be absolute", "write VM:/path")
    return Place(vm, path)


def into(
    hypervisor: Hypervisor, source: BinaryIO, name: str, target: Place, mode: int | None, progress: Progress
) -> dict[str, Any]:
    """Copy ``source`` (called ``name``) to ``target``: ``{"source", "destination", "size_bytes"}``.

    It goes to a file beside the target that takes its place when it is whole. ``mode``: its permissions,
    None leaves them to the guest.
    """
    agent = _agent(hypervisor, target)
    with translated(hypervisor.uri):
        path = _file_in_guest(agent, target.path, name)
        part = f"{path}.kvmctl-{secrets.token_hex(4)}"
        total = os.fstat(source.fileno()).st_size if source.seekable() else None
        done = 0
        try:
            with agent.opened(part, "w") as handle:
                while data := source.read(WRITTEN_PIECE):
                    agent.write(handle, data)
                    done += len(data)
                    progress.amount(f"copying to {agent.name}", done, total)
            if mode is not None:
                _must(agent, ["chmod", f"{mode:o}", part])
            _must(agent, ["mv", "-f", part, path])
        except AgentError as error:
            _remove(agent, part)
            raise _explained(error, path) from error
        except BaseException:
            _remove(agent, part)
            raise
    return {"source": name, "destination": f"{agent.name}:{path}", "size_bytes": done}


def out_of(hypervisor: Hypervisor, source: Place, target: Path, progress: Progress) -> dict[str, Any]:
    """Copy a file of a guest to ``target`` (a folder: into it); the same keys as into()."""
    agent = _agent(hypervisor, source)
    if target.is_dir():
        target = target / posixpath.basename(source.path.rstrip("/"))
    with translated(hypervisor.uri):
        mode = _mode_in_guest(agent, source.path)
        part = target.with_name(f"{target.name[:200]}.kvmctl-{secrets.token_hex(4)}")
        done = 0
        try:
            # Only its owner may read it until it is whole and has the permissions that it shall have.
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                for data in _pieces(agent, source.path):
                    stream.write(data)
                    done += len(data)
                    progress.amount(f"copying from {agent.name}", done, None)
            if mode is not None:
                part.chmod(mode & ~_umask())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return {"source": f"{agent.name}:{source.path}", "destination": str(target), "size_bytes": done}


def stream_out(hypervisor: Hypervisor, source: Place, sink: BinaryIO) -> int:
    """Write a file of a guest to ``sink`` and return its size."""
    agent = _agent(hypervisor, source)
    done = 0
    with translated(hypervisor.uri):
        _mode_in_guest(agent, source.path)
        for data in _pieces(agent, source.path):
            sink.write(data)
            done += len(data)
    return done


def _agent(hypervisor: Hypervisor, where: Place) -> Agent:
    assert where.vm is not None
    agent = Agent(hypervisor, hypervisor.find(where.vm))
    with translated(hypervisor.uri):
        agent.require()
    return agent


def _pieces(agent: Agent, path: str) -> Iterator[bytes]:
    try:
        with agent.opened(path, "r") as handle:
            end = False
            while not end:
                data, end = agent.read(handle)
                yield data
                if not data:
                    return
    except AgentError as error:
        raise _explained(error, path) from error


def _file_in_guest(agent: Agent, path: str, name: str) -> str:
    """``path``, or where that is a folder the file ``name`` in it."""
    finished, _, _ = output_of(agent, ["/bin/sh", "-c", 'test -d "$0"', path])
    base = Path(name).name
    if finished.status != 0:
        if path.endswith("/"):
            raise NotFound(f"there is no folder {path[:200]!a} in {agent.name}")
        return path
    if not base or base in ("-", ".", ".."):
        raise UsageProblem(f"{path[:200]!a} is a folder in {agent.name}", "name the file")
    return posixpath.join(path, base)


def _mode_in_guest(agent: Agent, path: str) -> int | None:
    """The permissions of a file, None where the guest does not tell. Raises UsageProblem for a folder."""
    script = 'test -e "$0" || exit 3; test -d "$0" && exit 4; stat -L -c %a -- "$0"'
    finished, out, _ = output_of(agent, ["/bin/sh", "-c", script, path])
    if finished.status == 3:
        raise NotFound(f"there is no file {path[:200]!a} in {agent.name}")
    if finished.status == 4:
        raise UsageProblem(
            f"{path[:200]!a} is a folder in {agent.name}",
            f"kvmctl exec {agent.name} -- tar c -C {path[:200]} . | tar x",
        )
    text = out.strip()
    return int(text, 8) & 0o777 if finished.status == 0 and 0 < len(text) <= 4 and text.isdigit() else None


def _must(agent: Agent, command: list[str]) -> None:
    finished, _, err = output_of(agent, command)
    if finished.status != 0:
        reason = harmless(err.decode("utf-8", "replace").strip().partition("\n")[0])[:200]
        raise KvmctlError(f"{command[0]} failed in {agent.name}: {reason or finished.status}")


def _remove(agent: Agent, path: str) -> None:
    with contextlib.suppress(KvmctlError):
        output_of(agent, ["rm", "-f", path])


def _explained(error: AgentError, path: str) -> KvmctlError:
    if error.hint is not None:
        return error
    if "No such file" in error.reason:
        return NotFound(f"there is no such file or folder in the guest: {path[:200]!a}")
    return KvmctlError(f"{path[:200]!a} in the guest: {error.reason}")


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def check_local(path: str) -> int:
    """The permissions of a local file to be copied. Raises UsageProblem for what is no file."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UsageProblem(f"{path[:200]!a} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise UsageProblem(f"{path[:200]!a} is a folder", "tar c FOLDER | kvmctl exec VM -- tar x -C /where")
    return stat.S_IMODE(status.st_mode) & 0o777
