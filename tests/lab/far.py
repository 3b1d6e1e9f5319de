"""A long way between the lab's hosts: a relay on the wire that holds each packet back and lets only so many through.

``python -m tests.lab.far LEFT RIGHT DELAY_MS MBIT`` in the wire's namespace carries frames between two links.
"""

import collections
import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.lab.hosts import REPOSITORY
from tests.lab.lab import Lab

# linux/if_packet.h: what this machine sent itself, which a packet socket sees as well.
_PACKET_OUTGOING = 4
# A router's buffer: what does not fit is dropped, so that TCP learns how fast it may send.
_BUFFER_SECONDS = 0.2


@contextlib.contextmanager
def ocean(lab: Lab, delay_ms: int, mbit: int) -> Iterator[None]:
    """Host b is so far away, each way, until the end of the block."""
    wire = lab.wire
    # A relay of frames passes on neither frames larger than the link's nor checksums that are yet to be made.
    plain = ("tso", "off", "gso", "off", "gro", "off", "tx", "off")
    for host in lab.hosts:
        host.net.run(["ethtool", "-K", "lab0", *plain])
    wire.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for link in ("near", "far", "lab-a", "lab-b"):
        wire.run(["ethtool", "-K", link, *plain])
    wire.ip("link", "set", "lab-b", "nomaster")
    wire.ip("link", "set", "near", "master", "lab", "up")
    wire.ip("link", "set", "far", "up")
    command = [sys.executable, "-m", "tests.lab.far", "far", "lab-b", str(delay_ms), str(mbit)]
    relay = subprocess.Popen(["nsenter", f"--net={wire.path}", "--", *command], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == b"carrying\n"
        yield
    finally:
        relay.kill()
        relay.communicate()
        wire.ip("link", "delete", "near")
        wire.ip("link", "set", "lab-b", "master", "lab")
        for host in lab.hosts:
            host.net.run(["ethtool", "-K", "lab0", *(word.replace("off", "on") for word in plain)])


class _Way:
    """One direction: frames with the moment at which they are to leave."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float, rate: float) -> None:
        self.source, self.target, self.delay, self.rate = source, target, delay, rate
        self._free_at = 0.0
        self._queue: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self) -> None:
        """Read a frame, and set when it leaves."""
        frame, address = self.source.recvfrom(65536)
        now = time.monotonic()
        begins = max(now, self._free_at)
        if address[2] == _PACKET_OUTGOING or begins - now > _BUFFER_SECONDS:
            return
        self._free_at = begins + len(frame) / self.rate
        self._queue.append((self._free_at + self.delay, frame))

    def give(self) -> float:
        """Send what is due; the seconds until the next one."""
        while self._queue:
            left = self._queue[0][0] - time.monotonic()
            if left > 0:
                return left
            with contextlib.suppress(OSError):
                self.target.send(self._queue.popleft()[1])
        return 1.0


def _carry(left: str, right: str, delay_ms: int, mbit: int) -> None:
    ends = []
    for name in (left, right):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        end.bind((name, 0))
        # SOL_PACKET, PACKET_ADD_MEMBERSHIP: struct packet_mreq of PACKET_MR_PROMISC.
        index = socket.if_nametoindex(name)
        end.setsockopt(263, 1, index.to_bytes(4, sys.byteorder) + b"\1\0" + bytes(10))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        ends.append(end)
    rate = mbit * 1e6 / 8
    ways = [_Way(one, other, delay_ms / 1000, rate) for one, other in (ends, ends[::-1])]
    sys.stdout.write("carrying\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select(ends, [], [], min(way.give() for way in ways))
        for way in ways:
            if way.source in ready:
                way.take()


if __name__ == "__main__":
    _carry(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
