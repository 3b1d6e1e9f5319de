"""Running a program and keeping what it said."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a program left: its exit code and its output, as text and as the bytes it was."""

    args: tuple[str, ...]
    returncode: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8 text; what is not UTF-8 becomes surrogates."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8 text."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")

    def json(self) -> Any:
        """Standard output read as JSON."""
        return json.loads(self.stdout)

    def error(self) -> dict[str, Any]:
        """The object under ``error`` of the last line of standard error, as ``-o json`` prints it."""
        content = json.loads(self.stderr.strip().splitlines()[-1])["error"]
        assert isinstance(content, dict)
        return content


class CommandFailed(AssertionError):
    """A program that had to succeed did not; the message holds all that it said."""


def run(
    args: Sequence[str],
    *,
    input: str | bytes | None = None,
    check: bool = True,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Result:
    """Run ``args`` to its end, without a terminal, and return what it said.

    With ``check`` a non-zero exit raises CommandFailed. After ``timeout`` seconds the program and all it
    started are killed, and CommandFailed tells what it had said until then.
    """
    data = input.encode() if isinstance(input, str) else input
    with subprocess.Popen(
        list(args),
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env) if env is not None else None,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(data, timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            out, err = process.communicate()
            raise CommandFailed(_told(args, f"still ran after {timeout:g} s", out, err)) from None
    if check and process.returncode != 0:
        raise CommandFailed(_told(args, f"exited {process.returncode}", out, err))
    return Result(tuple(args), process.returncode, out, err)


def _told(args: Sequence[str], what: str, out: bytes, err: bytes) -> str:
    return (
        f"{' '.join(args)}\n{what}\n--- stdout\n{out.decode(errors='replace')}"
        f"\n--- stderr\n{err.decode(errors='replace')}"
    )
