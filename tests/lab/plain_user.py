"""A user of a lab host who is not root: with a libvirtd of their own, which is what qemu:///session leads to."""

import contextlib
import shutil
import sys

from tests.lab import images
from tests.lab.hosts import Host
from tests.lab.process import CommandFailed, Result, run

# Every system has this user, and nothing of the lab's runs as them.
NAME = "daemon"
URI = "qemu:///session"
# Short, and so not below the lab's folder: a unix socket's path has 107 characters, of which libvirt wants 90 there.
PLACE = "/srv/u"
# The tests may lie where only root may look. Their program is read all the same; nothing can be written by this.
_READ = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


class PlainUser:
    """``NAME`` on ``host``, with a home of their own. Use it in a ``with``: what they run ends with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.folder / "plain"

    def __enter__(self) -> "PlainUser":
        for name in ("home", "run"):
            folder = self.folder / name
            folder.mkdir(parents=True)
            shutil.chown(folder, NAME)
            folder.chmod(0o700)
        self.host.run(["mkdir", PLACE])
        self.host.run(["mount", "--bind", str(self.folder), PLACE])
        # Started beforehand, it has no more rights than they have.
        self._run("libvirtd", "--daemon")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(CommandFailed):
            for name in self.kvmctl("list", "-o", "name").stdout.split():
                self.kvmctl("delete", name, "-y", check=False)
        for daemon in ("libvirtd", "virtlogd"):
            with contextlib.suppress(OSError):
                pid = (self.folder / "run/libvirt" / f"{daemon}.pid").read_text().strip()
                self.host.run(["kill", pid], check=False)
        self.host.run(["umount", "-l", PLACE])
        self.host.run(["rmdir", PLACE])
        shutil.rmtree(self.folder)

    def kvmctl(self, *args: str, check: bool = True, timeout: float = 180) -> Result:
        """Run kvmctl as this user, against their own libvirtd."""
        command = [sys.executable, "-m", "kvmctl", *args]
        return self._run(*command, check=check, timeout=timeout, more=_READ)

    def files(self) -> set[str]:
        """The names of what guests have left in their pool."""
        return {path.name for path in (self.folder / "home/.local/share/libvirt/images").glob("*")}

    def boot(self, tiny: images.Tiny) -> list[str]:
        """What ``create`` needs to boot the tiny guest, from copies that this user may read."""
        for file in (tiny.kernel, tiny.initrd):
            shutil.copy(file, self.folder / file.name)
            (self.folder / file.name).chmod(0o644)
        kernel, initrd = (f"{PLACE}/{file.name}" for file in (tiny.kernel, tiny.initrd))
        return ["--kernel", kernel, "--initrd", initrd, "--cmdline", tiny.cmdline]

    def _run(self, *args: str, check: bool = True, timeout: float = 60, more: tuple[str, ...] = ()) -> Result:
        env = self.host.environment(
            HOME=f"{PLACE}/home", XDG_RUNTIME_DIR=f"{PLACE}/run", LIBVIRT_DEFAULT_URI=URI, USER=NAME, LOGNAME=NAME
        )
        user = ["setpriv", f"--reuid={NAME}", f"--regid={NAME}", "--clear-groups", *more, *args]
        return run(self.host.inside(["env", "-C", "/", *user]), check=check, timeout=timeout, env=env)
