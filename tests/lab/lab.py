"""The lab: two libvirt hosts, the wire between them, and the end of it all even after kill -9.

``a`` and ``b`` each have two links to a third namespace, ``wire``, which stands for the physical network:
``lab0`` (10.77.0.0/24, where libvirtd and ssh listen) and ``lan0``, without an address, which is for tests:
a port of a bridge, a device under macvtap. In ``wire`` the bridges ``lab`` and ``lan`` join them.
Nothing leaves the three namespaces.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.hosts import REPOSITORY, Host
from tests.lab.namespaces import RUN_NETNS, Namespace, link
from tests.lab.process import run

# On disk, not in a RAM disk: guests' disks are below it. Short: a unix socket's path has 107 characters.
BASE = Path("/var/tmp/kvmctl-lab")


class Lab:
    """A lab by name. Making the object starts nothing; start() does, and it is also a context manager.

    ``keep``: leave it running when this process ends (for work by hand). Otherwise a keeper process
    takes it down as soon as this process is gone, however it went.
    """

    def __init__(self, name: str) -> None:
        if not name.isalnum() or len(name) > 12:
            raise ValueError(f"{name!r}: a lab's name has up to 12 letters and digits")
        self.name = name
        self.root = BASE / name
        self.shared = self.root / "shared"
        self.wire = Namespace(f"kvl-{name}-w")
        self.a = Host(name, "a", self.root, 1)
        self.b = Host(name, "b", self.root, 2)
        self.hosts = (self.a, self.b)
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether its namespaces are there."""
        return all(host.net.path.exists() for host in self.hosts)

    def start(self, keep: bool = False) -> "Lab":
        """Start everything; labs that a killed run left are taken down first."""
        BASE.mkdir(mode=0o755, exist_ok=True)
        if BASE.stat().st_uid != os.geteuid():
            raise PermissionError(f"{BASE} belongs to somebody else")
        # One at a time: a lab must not be taken for a leftover before its keeper has its lock.
        with (BASE / ".lock").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            clean_leftovers()
            if not keep:
                self._start_keeper()
            self.root.mkdir()
            if keep:
                (self.root / "kept").touch()
        try:
            self._build()
        except BaseException:
            self.stop()
            raise
        return self

    def _start_keeper(self) -> None:
        """Start the process that waits for the end of this one: the pipe closes, whatever ends us."""
        ready, told = os.pipe()
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "keeper", self.name, str(told)],
            stdin=subprocess.PIPE,
            pass_fds=[told],
            cwd=REPOSITORY,
            start_new_session=True,
        )
        os.close(told)
        with os.fdopen(ready, "rb") as pipe:
            if pipe.read() != b"ready\n":
                raise RuntimeError("the lab's keeper did not start")

    def _build(self) -> None:
        for folder in ("shared", "home", "ssh"):
            (self.root / folder).mkdir(mode=0o700 if folder == "ssh" else 0o755)
        self._write_shared_files()
        self.wire.create()
        self.wire.bridge("lab", address="10.77.0.254/24")
        self.wire.bridge("lan", address="10.78.0.254/24")
        for host in self.hosts:
            self._plug(host)
            host.start()

    def _plug(self, host: Host) -> None:
        """Make the host's network namespace and its two cables to the wire."""
        host.net.create()
        for own, switch in (("lab0", "lab"), ("lan0", "lan")):
            link(host.net, own, self.wire, f"{switch}-{host.letter}")
            self.wire.ip("link", "set", f"{switch}-{host.letter}", "master", switch)
        host.net.ip("address", "add", f"{host.address}/24", "dev", "lab0")

    def reboot(self, host: Host) -> None:
        """Switch ``host`` off and on, and return when its libvirtd answers.

        All that ran on it ends at once, guests too; interfaces, firewall rules, sysctls and /run are new. Its
        folders of libvirt in /etc and /var stay, and what libvirt starts with the host it starts by itself.
        """
        host.disconnect()
        # Both ends go at once here; with the namespace they would go when the kernel gets round to it.
        for switch in ("lab", "lan"):
            self.wire.ip("link", "delete", f"{switch}-{host.letter}")
        host.net.delete()
        host.forget_what_ran()
        self._plug(host)
        host.start(first=False)

    def _write_shared_files(self) -> None:
        ssh = self.root / "ssh"
        for name in ("key", "host_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(ssh / name)])
        host_key = " ".join((ssh / "host_key.pub").read_text().split()[:2])
        (ssh / "known_hosts").write_text("".join(f"{host.address} {host_key}\n" for host in self.hosts))
        (ssh / "config").write_text(
            f"Host 10.77.0.*\n  IdentityFile {ssh}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {ssh}/known_hosts\n"
        )
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        (self.root / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def stop(self) -> None:
        """Take everything down. Whatever is missing already does no harm."""
        for host in self.hosts:
            host.disconnect()
        take_down(self.name)
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.wait()
            self._keeper = None

    def __enter__(self) -> "Lab":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def names() -> list[str]:
    """The labs there are, or of which something is left."""
    found = {path.name for path in BASE.iterdir() if path.is_dir()} if BASE.is_dir() else set()
    if RUN_NETNS.is_dir():
        found |= {path.name.split("-")[1] for path in RUN_NETNS.glob("kvl-*-*")}
    return sorted(found)


def take_down(name: str) -> None:
    """End everything that lives in the lab's namespaces, then remove them and its folder."""
    # All of them first: a guest on one host may keep a connection to the other.
    for namespace in [Namespace(path.name) for path in RUN_NETNS.glob(f"kvl-{name}-*")]:
        namespace.delete()
    root = BASE / name
    if root.is_dir():
        shutil.rmtree(root)


@contextlib.contextmanager
def _lock(name: str) -> Iterator[bool]:
    """Hold the lab's lock, if nobody has it: its keeper does as long as it is in use."""
    BASE.mkdir(mode=0o755, exist_ok=True)
    with (BASE / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def clean_leftovers() -> list[str]:
    """Take down every lab whose keeper is gone, and return their names. Labs kept by hand stay."""
    done = []
    for name in names():
        if (BASE / name / "kept").exists():
            continue
        with _lock(name) as free:
            if free:
                take_down(name)
                done.append(name)
                (BASE / f"{name}.lock").unlink(missing_ok=True)
    return done


def keeper(name: str, told: int) -> None:
    """Wait until standard input closes, then take the lab down: what the keeper process does."""
    with _lock(name) as free:
        if not free:
            raise SystemExit(f"the lab {name} is in use")
        os.write(told, b"ready\n")
        os.close(told)
        sys.stdin.buffer.read()
        take_down(name)
        (BASE / f"{name}.lock").unlink(missing_ok=True)
