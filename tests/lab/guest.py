"""Talking to a guest on its serial console."""

import contextlib
import os
import re
import select
import time
from types import TracebackType

import libvirt
from lxml import etree

from tests.lab.hosts import Host
from tests.lab.process import CommandFailed


class Guest:
    """The serial console of a running tiny guest, as its shell.

    Opens the pseudo-terminal that libvirt gave the guest's first serial port; one at a time may read
    from it. Use it in a ``with``, or close().
    """

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.text = ""
        self._fd = -1
        self._count = 0
        self._awake = False

    @property
    def domain(self) -> libvirt.virDomain:
        """The libvirt domain, looked up anew."""
        return self.host.conn.lookupByName(self.name)

    def open(self) -> "Guest":
        """Open the console; after a restart or a migration open it again."""
        self.close()
        tree = etree.fromstring(self.domain.XMLDesc(0).encode())
        path = next(iter(tree.xpath("devices/*[self::serial or self::console][@type='pty']/source/@path")), None)
        if path is None:
            raise CommandFailed(f"{self.name} has no serial console of type pty, or does not run")
        self._fd = os.open(str(path), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        return self

    def close(self) -> None:
        """Let go of the console. Its text so far stays in ``text``."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._awake = False

    def __enter__(self) -> "Guest":
        return self if self._fd >= 0 else self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, text: str) -> None:
        """Type ``text``."""
        data = text.encode()
        while data:
            select.select([], [self._fd], [], 10)
            with contextlib.suppress(BlockingIOError):
                # The guest's port has a small buffer: more at once is lost there.
                data = data[os.write(self._fd, data[:64]) :]

    def read(self, patience: float) -> str:
        """What arrives within ``patience`` seconds, at the first of it; it is added to ``text`` as well."""
        if not select.select([self._fd], [], [], max(0.0, patience))[0]:
            return ""
        try:
            got = os.read(self._fd, 65536).decode(errors="replace")
        except OSError:
            # The other end is closed: the guest is off, or just not started yet.
            time.sleep(min(0.1, max(0.0, patience)))
            return ""
        self.text += got
        return got

    def expect(self, pattern: str, timeout: float = 60, start: int = 0) -> re.Match[str]:
        """Wait until ``pattern`` (a regular expression) is in the console's text from ``start`` on."""
        end = time.monotonic() + timeout
        while True:
            if found := re.search(pattern, self.text[start:]):
                return found
            left = end - time.monotonic()
            if left <= 0:
                raise CommandFailed(f"{self.name}: no {pattern!r} after {timeout:g} s in\n{self.text[start:]}")
            self.read(min(left, 0.5))

    def ready(self, timeout: float = 120) -> "Guest":
        """Wait until the guest's shell answers. What it printed before the console was open is not in ``text``."""
        if self._fd < 0:
            self.open()
        end = time.monotonic() + timeout
        while not self._awake:
            start = len(self.text)
            self.send("\x15stty -echo; PS1= PS2=; echo awake-$((6*7))\n")
            with contextlib.suppress(CommandFailed):
                self.expect("awake-42", min(1.0, timeout), start)
                self._awake = True
            if not self._awake and time.monotonic() > end:
                raise CommandFailed(f"{self.name}: no shell after {timeout:g} s in\n{self.text}")
        return self

    def run(self, command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a shell command in the guest and return what it printed, without the last line end.

        With ``check`` an exit code other than 0 raises CommandFailed.
        """
        self.ready(timeout)
        self._count += 1
        start = len(self.text)
        # The marks are put together by the shell, so that they are never found in an echoed command.
        mark = f"{os.getpid()}-{self._count}"
        # A subshell: "exit" in the command ends only that.
        self.send(f"echo 'begin''-{mark}'; ( {command}\n) 2>&1; set -- $?; echo; echo 'end''-{mark}' $1\n")
        found = self.expect(rf"begin-{mark}\r?\n(?s:(.*?))\r?\n?end-{mark} (\d+)", timeout, start)
        output = "\n".join(
            line for line in found[1].replace("\r\n", "\n").split("\n") if not line.startswith("lab: ")
        ).rstrip("\n")
        if check and found[2] != "0":
            raise CommandFailed(f"in {self.name}: {command}\nexited {found[2]}\n{output}")
        return output

    def log(self) -> str:
        """The guest's own log: a line for each thing it did (see guest_init.sh)."""
        # The prefix goes, or run() would take the lines for stray ones.
        return self.run("sed 's/^lab: //' /run/lab.log")

    def wait_for(self, pattern: str, timeout: float = 120) -> re.Match[str]:
        """Wait until ``pattern`` is in the guest's log, or was seen on the console, and return the match."""
        end = time.monotonic() + timeout
        while True:
            # Only whole lines: the last one may still be on its way.
            lines = self.text[: self.text.rfind("\n") + 1]
            # What was printed before the console was open is only in the log.
            log = re.sub(r"(?m)^", "lab: ", self.log())
            if found := re.search(pattern, lines) or re.search(pattern, log):
                return found
            if time.monotonic() > end:
                raise CommandFailed(f"{self.name}: no {pattern!r} after {timeout:g} s in\n{log}")
            self.read(0.5)

    def address(self, nic: str = "eth0", timeout: float = 120) -> str:
        """The IPv4 address the guest got on ``nic``."""
        return self.wait_for(rf"address {nic} ([0-9.]+)", timeout)[1]
