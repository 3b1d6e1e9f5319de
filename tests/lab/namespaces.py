"""Network namespaces, the links between them, and what lives in them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab.process import CommandFailed, Result, run

RUN_NETNS = Path("/run/netns")


class Namespace:
    """A named network namespace (``ip netns``)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = RUN_NETNS / name

    def create(self) -> None:
        """Make it, with loopback up and IPv6 quiet, so that nothing in it speaks unasked."""
        run(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")
        self.sysctl("net/ipv6/conf/default/accept_dad", "0")

    def run(
        self, args: Iterable[str], *, input: str | bytes | None = None, check: bool = True, timeout: float = 60
    ) -> Result:
        """Run a program in this network namespace; its files are the test runner's own."""
        return run(["nsenter", f"--net={self.path}", "--", *args], input=input, check=check, timeout=timeout)

    def ip(self, *args: str) -> Result:
        """``ip ARGS`` in it."""
        return run(["ip", "-n", self.name, *args])

    def sysctl(self, key: str, value: str) -> None:
        """Set one of its own sysctls (``net/...``)."""
        self.run(["sh", "-c", 'echo "$2" > "/proc/sys/$1"', "sh", key, value])

    def bridge(self, name: str, *ports: str, address: str | None = None) -> None:
        """Make a bridge, without spanning tree, of these links."""
        self.ip("link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        for port in ports:
            self.ip("link", "set", port, "master", name, "up")
        if address is not None:
            self.ip("address", "add", address, "dev", name)
        self.ip("link", "set", name, "up")

    def delete(self) -> None:
        """Kill what lives in it and delete it. A second time does nothing."""
        if not self.path.exists():
            return
        kill_members(self.path)
        run(["ip", "netns", "delete", self.name], check=False)


def link(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """Join two namespaces by a veth pair, both ends up."""
    run(["ip", "-n", left.name, "link", "add", left_name, "type", "veth", "peer", right_name, "netns", right.name])
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")


def kill_members(namespace: Path, patience: float = 10) -> None:
    """Kill every process whose network namespace is the one at ``namespace``, and wait until they are gone.

    Membership decides, never a name: what is not in the namespace is not touched.
    """
    wanted = namespace.stat()
    end = time.monotonic() + patience
    while members := _members((wanted.st_dev, wanted.st_ino)):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise CommandFailed(f"processes {members} in {namespace} do not die")
        time.sleep(0.02)


def _members(wanted: tuple[int, int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            seen = (entry / "ns" / "net").stat()
            if (seen.st_dev, seen.st_ino) == wanted:
                found.append(int(entry.name))
    return found
