"""One libvirt host of the lab: its own network, mounts, processes, host name and libvirtd."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import libvirt

from tests.lab.namespaces import Namespace
from tests.lab.process import CommandFailed, Result, run

REPOSITORY = Path(__file__).resolve().parents[2]

# What a host has for itself, bound over the machine's own: folder below the host's, place in its mounts.
PRIVATE = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
# Which firewall back end libvirt is told to use, of those it has (from libvirt 10.4 on); None: the one it takes itself.
FIREWALL = os.environ.get("KVMCTL_TEST_FIREWALL")
# Where both hosts see the lab's shared folder, and the machine itself does not.
SHARED = "/srv/shared"

_LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
_QEMU_CONF = """\
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
migration_address = "0.0.0.0"
migration_host = "{address}"
"""
# From .200 on no guest gets an address by itself: those are for the tests that name one, each its own.
_NETWORK = """\
<network>
  <name>default</name>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on' delay='0'/>
  <ip address='{subnet}.1' netmask='255.255.255.0'>
    <dhcp><range start='{subnet}.2' end='{subnet}.199'/></dhcp>
  </ip>
</network>
"""
# Runs as process 1 of the host: makes its mounts, then becomes host_init.py.
_INIT = """\
set -e
mount --make-rslave /
# With what is mounted below it: libvirt must not find control groups that both hosts would share.
umount -l /sys
mount -t sysfs sysfs /sys
mkdir -p {folder}/dev
mount -t tmpfs -o mode=755 tmpfs {folder}/dev
(cd /dev && find . -xdev ! -type d ! -name 'tap*' | cpio -pdm --quiet {folder}/dev)
mkdir -p {folder}/dev/pts {folder}/dev/shm
mount --bind /dev/pts {folder}/dev/pts
mount -t tmpfs tmpfs {folder}/dev/shm
umount -l /dev
mount --move {folder}/dev /dev
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir {shared}
mount --bind {root}/shared {shared}
{binds}
# In memory, as /run is: libvirt waits for the disk each time it writes down what state a guest is in.
mkdir -p /run/libvirt/qemu
mount -t tmpfs -o mode=755 tmpfs /run/libvirt/qemu
mount --bind {root}/hosts /etc/hosts
mount --bind {folder}/boot_id /proc/sys/kernel/random/boot_id
hostname {name}
exec {python} {here}/host_init.py {folder}/up
"""
# The client's side: the machine's files, but no libvirt of the machine's and an ssh that knows the lab.
_CLIENT = """\
set -e
mount --make-rslave /
mount -t sysfs sysfs /sys
for folder in {places}; do mkdir -p "$folder"; mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mount --bind {root}/hosts /etc/hosts
# systemd-nspawn has put a file of its own there, since deleted, and nothing can be mounted over that.
umount /proc/sys/kernel/random/boot_id 2>/dev/null || true
mount --bind {folder}/boot_id /proc/sys/kernel/random/boot_id
mount --bind {root}/ssh/config /etc/ssh/ssh_config
touch {folder}/client-up
exec sleep infinity
"""


class Host:
    """One of the lab's libvirt hosts. ``letter`` is "a" or "b"; ``root`` the lab's folder."""

    def __init__(self, lab_name: str, letter: str, root: Path, number: int) -> None:
        self.letter = letter
        self.name = f"lab-{letter}"
        self.net = Namespace(f"kvl-{lab_name}-{letter}")
        self.root = root
        self.folder = root / letter
        self.address = f"10.77.0.{number}"
        self.subnet = f"192.168.{121 + number}"
        self.shared = SHARED
        self.socket = self.folder / "run" / "libvirt-sock"
        self.uri = f"qemu:///system?socket={self.socket}"
        self.tcp_uri = f"qemu+tcp://{self.address}/system"
        self.ssh_uri = f"qemu+ssh://root@{self.address}/system"
        self._connection: libvirt.virConnect | None = None

    # ------------------------------------------------------------ up and down

    def start(self, *, first: bool = True) -> None:
        """Make the namespaces, and ``first`` its folders, and start libvirtd. The network namespace must be there."""
        if first:
            self._write_folders()
        # What tells one boot of a host from another, for programs on it and beside it.
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self._hold(
            "init",
            ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"],
            _INIT.format(
                shared=SHARED,
                root=self.root,
                binds="\n".join(
                    f"mkdir -p {place}; mount --bind {self.folder}/{folder} {place}"
                    for folder, place in PRIVATE.items()
                ),
                name=self.name,
                python=sys.executable,
                here=Path(__file__).parent,
                folder=self.folder,
            ),
            "up",
        )
        self._hold(
            "client",
            ["unshare", "--mount"],
            _CLIENT.format(places=" ".join(PRIVATE.values()), root=self.root, folder=self.folder),
            "client-up",
        )
        self.start_libvirtd()

    def _hold(self, role: str, unshare: list[str], script: str, mark: str) -> None:
        """Start the process that keeps the namespaces of ``role`` and note its id."""
        (self.folder / mark).unlink(missing_ok=True)
        with (self.folder / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net={self.net.path}", "--", *unshare, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: (self.folder / mark).exists() or process.poll() is not None, f"{self.name}'s {role}")
        if process.poll() is not None:
            raise CommandFailed(f"{self.name}'s {role}: {(self.folder / f'{role}.log').read_text()}")
        # The holder is never waited for: it lives until its namespace is emptied.
        process.returncode = 0
        pid = _only_child(process.pid) if "--fork" in unshare else process.pid
        (self.folder / f"{role}.pid").write_text(str(pid))

    def _write_folders(self) -> None:
        for folder in PRIVATE:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("images", "boot", "dnsmasq", "qemu", "swtpm"):
            (self.folder / "lib" / folder).mkdir(mode=0o711, exist_ok=True)
        etc = self.folder / "etc"
        machine = Path("/etc/libvirt/nwfilter")
        if machine.is_dir():
            shutil.copytree(machine, etc / "nwfilter", dirs_exist_ok=True)
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=uuid.uuid4(), address=self.address))
        (etc / "qemu.conf").write_text(_QEMU_CONF.format(address=self.address))
        if FIREWALL is not None:
            (etc / "network.conf").write_text(f'firewall_backend = "{FIREWALL}"\n')
        networks = etc / "qemu" / "networks"
        networks.mkdir(parents=True, exist_ok=True)
        (networks / "default.xml").write_text(_NETWORK.format(subnet=self.subnet))

    def forget_what_ran(self) -> None:
        """Have /run as it is before a boot; nothing may run on the host."""
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir()
        (self.folder / "sshd.pid").unlink(missing_ok=True)

    def start_libvirtd(self) -> None:
        """Start libvirtd and return when it answers."""
        self.run(
            ["libvirtd", "--daemon", "--listen", "--pid-file", "/run/libvirt/libvirtd.pid"], env=_plain_environment()
        )
        wait_until(self._answers, f"{self.name}'s libvirtd")

    def _answers(self) -> bool:
        return self.virsh("uri", check=False).returncode == 0

    def libvirtd_pid(self) -> int | None:
        """libvirtd's process id as the host itself counts, or None where it does not run."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "run" / "libvirtd.pid").read_text())
            if self.run(["kill", "-0", str(pid)], check=False).returncode == 0:
                return pid
        return None

    def kill_libvirtd(self, number: int = signal.SIGKILL) -> None:
        """Kill libvirtd and wait until it is gone; guests go on running, as they would in reality."""
        self.disconnect()
        pid = self.libvirtd_pid()
        if pid is not None:
            self.run(["kill", f"-{int(number)}", str(pid)])
            wait_until(lambda: self.libvirtd_pid() is None, f"the end of {self.name}'s libvirtd")

    @contextlib.contextmanager
    def hanging_libvirtd(self, *, goes_on: bool = False) -> Iterator[None]:
        """Within it libvirtd is there, takes connections, and answers nothing.

        Afterwards it is another one, as if somebody had restarted it, or it ``goes_on`` from where it was.
        """
        self.disconnect()
        pid = str(self.libvirtd_pid())
        self.run(["kill", "-STOP", pid])
        try:
            yield
        finally:
            if goes_on:
                self.run(["kill", "-CONT", pid])
            else:
                self.kill_libvirtd()
                self.start_libvirtd()

    def restart_libvirtd(self) -> None:
        """Stop libvirtd in order and start it again."""
        self.kill_libvirtd(signal.SIGTERM)
        self.start_libvirtd()

    def start_sshd(self) -> None:
        """Start an SSH server that lets the lab's key in; after it ``ssh_uri`` works. Twice does nothing."""
        pid_file = self.folder / "sshd.pid"
        if pid_file.exists():
            return
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress {self.address}\nHostKey {self.root}/ssh/host_key\nPidFile {pid_file}\n"
            f"AuthorizedKeysFile {self.root}/ssh/key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nPrintMotd no\n"
        )
        # sshd insists on this folder, which only a boot with systemd makes.
        self.run(["mkdir", "-p", "-m", "755", "/run/sshd"])
        self.run(["/usr/sbin/sshd", "-f", str(config), "-E", str(self.folder / "sshd.log")])
        wait_until(pid_file.exists, f"{self.name}'s sshd")

    # ------------------------------------------------------------ running things

    def _pid(self, role: str) -> str:
        return (self.folder / f"{role}.pid").read_text()

    def inside(self, args: Iterable[str]) -> list[str]:
        """The command line that runs ``args`` on the host itself, in all its namespaces."""
        return ["nsenter", "-t", self._pid("init"), "-n", "-m", "-u", "-i", "-p", "--", *args]

    def outside(self, args: Iterable[str]) -> list[str]:
        """The command line that runs ``args`` beside the host: its network, none of its files or processes."""
        return ["nsenter", "-t", self._pid("client"), "-n", "-m", f"--wd={Path.cwd()}", "--", *args]

    def run(
        self,
        args: Iterable[str],
        *,
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program on the host: its network, files, processes and name."""
        return run(self.inside(args), input=input, check=check, timeout=timeout, env=env)

    def client(
        self,
        args: Iterable[str],
        *,
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program beside the host: in its network, with the machine's files and none of libvirt's."""
        return run(self.outside(args), input=input, check=check, timeout=timeout, env=env)

    def environment(self, **more: str | None) -> dict[str, str]:
        """The environment kvmctl gets: this host as its default, a home of the lab's own."""
        found = _plain_environment()
        found["HOME"] = str(self.root / "home")
        found["PYTHONPATH"] = str(REPOSITORY)
        found["LIBVIRT_DEFAULT_URI"] = self.uri
        for key, value in more.items():
            found.pop(key, None)
            if value is not None:
                found[key] = value
        return found

    def kvmctl_command(self, *args: str, local: bool = False) -> list[str]:
        """The command line that runs ``kvmctl ARGS``, for a caller that wants its own pipes or terminal."""
        command = [sys.executable, "-m", "kvmctl", *args]
        return self.inside(command) if local else self.outside(command)

    def kvmctl(
        self,
        *args: str,
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float = 180,
        env: Mapping[str, str | None] | None = None,
        local: bool = False,
    ) -> Result:
        """Run kvmctl against this host.

        It stands beside the host, over the socket (``uri``), and sees none of its files. With ``local``
        it runs on the host itself, where ``qemu:///system`` is the host's. ``env`` adds to the
        environment, or takes away where the value is None.
        """
        environment = self.environment(**(env or {}))
        if local and "LIBVIRT_DEFAULT_URI" not in (env or {}):
            environment["LIBVIRT_DEFAULT_URI"] = "qemu:///system"
        return run(self.kvmctl_command(*args, local=local), input=input, check=check, timeout=timeout, env=environment)

    def virsh(self, *args: str, input: str | None = None, check: bool = True, timeout: float = 120) -> Result:
        """Run virsh on the host itself."""
        return self.run(["virsh", "-q", "-c", "qemu:///system", *args], input=input, check=check, timeout=timeout)

    def definitions(self, name: str) -> tuple[str, str]:
        """A running VM's live and saved XML, to compare with what they are later."""
        # Whether the guest's agent has opened its channel by now is no part of the definition.
        live = re.sub(r" state='(?:dis)?connected'", "", self.virsh("dumpxml", name).stdout)
        return live, self.virsh("dumpxml", name, "--inactive").stdout

    # ------------------------------------------------------------ libvirt

    @property
    def conn(self) -> libvirt.virConnect:
        """A connection of the test process's own over the socket; made anew where the last one died."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if self._connection.isAlive():
                    return self._connection
        libvirt.registerErrorHandler(lambda *_: None, None)
        self._connection = libvirt.open(self.uri)
        return self._connection

    def disconnect(self) -> None:
        """Close the test process's own connection."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def start_default_network(self) -> None:
        """Start the network ``default`` (NAT, DHCP), unless it runs."""
        network = self.conn.networkLookupByName("default")
        if not network.isActive():
            network.create()

    def define_default_pool(self) -> None:
        """Define and start the storage pool ``default`` on /var/lib/libvirt/images, unless it is there."""
        if "default" not in self.conn.listStoragePools() + self.conn.listDefinedStoragePools():
            self.conn.storagePoolDefineXML(
                "<pool type='dir'><name>default</name><target><path>/var/lib/libvirt/images</path></target></pool>"
            )
        pool = self.conn.storagePoolLookupByName("default")
        if not pool.isActive():
            pool.create()

    def uses_nftables(self) -> bool:
        """Whether this libvirt's own rules are nftables' and not iptables'. It has some once a network has run."""
        return self.run(["nft", "list", "table", "ip", "libvirt_network"], check=False).returncode == 0

    def files(self) -> set[str]:
        """The files that guests leave on a host: images, seeds, NVRAM, saved state, TPM state."""
        lib = self.folder / "lib"
        places = ("images", "boot", "qemu/nvram", "qemu/save", "qemu/ram", "swtpm")
        return {
            str(Path("/var/lib/libvirt") / path.relative_to(lib))
            for place in places
            for path in (lib / place).rglob("*")
            if not path.is_dir()
        }


def wait_until(ready: Callable[[], object], what: str, patience: float = 120) -> None:
    """Call ``ready`` until it returns something true."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise CommandFailed(f"{what}: not there after {patience:g} s")
        time.sleep(0.03)


def _plain_environment() -> dict[str, str]:
    """This process's environment without what would change how libvirt or kvmctl behaves."""
    dropped = ("LIBVIRT_", "VIRSH_", "KVMCTL_", "XDG_", "PYTEST_", "SSH_", "NO_COLOR", "LC_", "LANG", "COLUMNS")
    found = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    found["LC_ALL"] = "C.UTF-8"
    return found


def _only_child(pid: int) -> int:
    """The one child of ``pid``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The fields after the name in parentheses: state, parent.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    return int(entry.name)
    raise CommandFailed(f"process {pid} has no child")
