"""libvirt's hooks: the host's firewall follows whatever starts and stops guests and networks, virsh too.

libvirt runs every executable in /etc/libvirt/hooks/DRIVER.d (https://libvirt.org/hooks.html) and waits
for it; a script that asks libvirt anything would wait for libvirt in turn, so kvmctl's runs in the background.
"""

import contextlib
import os
import shlex
import stat
import sys
from pathlib import Path

import kvmctl
from kvmctl.errors import Refused

FOLDER = Path("/etc/libvirt/hooks")
NAME = "kvmctl"
DRIVERS = ("qemu", "network", "daemon")
_SCRIPT = """\
#!/bin/sh
# Made by 'kvmctl host setup', which also brings it up to date; delete it to be rid of it.
# Published ports of guests behind NAT follow whatever starts or stops guests and networks. libvirt waits for
# this script, so what asks libvirt runs after it, in the background.
boot=no
case "$1 $2" in
    # libvirtd itself: reloading, it puts its own rules in anew, and tells nobody when it is done.
    "- start") set -- --settle; boot=yes ;;
    "- reload") set -- --settle ;;
    *" started" | *" reconnect" | *" migrate" | *" release" | *" stopped" | *" updated") set -- ;;
    *) exit 0 ;;
esac
{{
    {command} -c qemu:///system port sync --patient "$@"
    # VMs that have a start order are started once a boot, not whenever libvirtd is.
    [ $boot = no ] || {command} -c qemu:///system host autostart --boot
}} </dev/null >/dev/null 2>&1 &
exit 0
"""


def command() -> list[str]:
    """How root runs this kvmctl from anywhere: this Python, and where the package lies if that is not in its path."""
    package = Path(kvmctl.__file__).resolve().parent
    found = [sys.executable, "-m", "kvmctl"]
    if "site-packages" in package.parts or "dist-packages" in package.parts:
        return found
    return ["env", f"PYTHONPATH={package.parent}", *found]


def script() -> str:
    """What the hook of each driver is."""
    return _SCRIPT.format(command=shlex.join(command()))


def missing(folder: Path = FOLDER) -> list[str]:
    """The drivers whose hook is not there, or is another kvmctl's."""
    wanted = script()
    found = []
    for driver in DRIVERS:
        path = folder / f"{driver}.d" / NAME
        try:
            current = path.read_text(encoding="utf-8") == wanted and os.access(path, os.X_OK)
        except (OSError, UnicodeDecodeError):
            current = False
        if not current:
            found.append(driver)
    return found


def install(folder: Path = FOLDER) -> list[str]:
    """Put the hooks in place; the paths that were written. Raises Refused where others could change what root runs."""
    _refuse_foreign_code()
    written = []
    for driver in missing(folder):
        path = folder / f"{driver}.d" / NAME
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = path.with_name(f".{NAME}.{os.getpid()}")
        try:
            fresh.write_text(script(), encoding="utf-8")
            fresh.chmod(0o755)
            fresh.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
        written.append(str(path))
    return written


def remove(folder: Path = FOLDER) -> list[str]:
    """Take the hooks away; the paths that were there."""
    gone = []
    for driver in DRIVERS:
        path = folder / f"{driver}.d" / NAME
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            gone.append(str(path))
    return gone


def may_be_installed() -> bool:
    """Whether only root can change this kvmctl and its Python, so that libvirt may run it as root."""
    try:
        _refuse_foreign_code()
    except Refused:
        return False
    return True


def _refuse_foreign_code() -> None:
    """libvirt runs the hooks as root at every start of a guest: only root may be able to change what they run."""
    for path in (Path(sys.executable), Path(kvmctl.__file__).resolve().parent):
        for part in (path, *path.resolve().parents):
            about = part.stat()
            sticky = about.st_mode & stat.S_ISVTX
            if about.st_uid != 0 or (about.st_mode & stat.S_IWOTH and not sticky):
                raise Refused(
                    f"libvirt's hooks run as root, and {part} can be changed by others",
                    "install kvmctl for the whole system (as root: pipx install --global, or pip in /usr/local)",
                )
