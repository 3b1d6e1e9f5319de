"""Process 1 of a lab host: reaps what is orphaned there, and makes the device nodes that udev would.

Run as a program, with the file to create once it is at work. macvtap devices are why it is needed: their
node is named after the interface's index, which is the same in two network namespaces, while the kernel's
own /dev has only one such name. So each host has a /dev of its own, filled from the kernel's messages,
which reach only the namespace that the device is in.
"""

import contextlib
import os
import signal
import socket
import stat
import sys
import threading
from pathlib import Path

_KOBJECT_UEVENT = 15  # NETLINK_KOBJECT_UEVENT of linux/netlink.h
_FROM_KERNEL = 1  # the kernel's multicast group there (2 is udev's)


def main() -> None:
    """Be process 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _KOBJECT_UEVENT)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    listener.bind((0, _FROM_KERNEL))
    threading.Thread(target=_make_nodes, args=(listener,), daemon=True).start()
    Path(sys.argv[1]).touch()
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.sigwait([signal.SIGCHLD])


def _make_nodes(listener: socket.socket) -> None:
    while True:
        head, *pairs = listener.recv(65536).decode(errors="replace").split("\0")
        told = dict(pair.partition("=")[::2] for pair in pairs if "=" in pair)
        name = told.get("DEVNAME", "")
        if told.get("SUBSYSTEM") != "macvtap" or not name.startswith("tap"):
            continue
        node = Path("/dev") / Path(name).name
        node.unlink(missing_ok=True)
        if head.startswith("add@"):
            os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(int(told["MAJOR"]), int(told["MINOR"])))


if __name__ == "__main__":
    main()
