"""The lab by hand: ``python -m tests.lab up|status|enter|down``. See docs/lab.md."""

import argparse
import os
import sys

from tests.lab import images
from tests.lab import lab as labs
from tests.lab.hosts import REPOSITORY, Host
from tests.lab.lab import Lab

_RC = """\
PS1='[lab {letter}] \\w \\$ '
kvmctl() {{ '{python}' -m kvmctl "$@"; }}
# tiny NAME [OPTIONS]: a guest that is up in seconds.
tiny() {{
    mapfile -t image < <(cd '{repository}' && '{python}' -m tests.lab image)
    kvmctl create "$1" --memory 256M \\
        --kernel "${{image[0]}}" --initrd "${{image[1]}}" --cmdline "${{image[2]}}" "${{@:2}}"
}}
"""


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="Two private libvirt hosts on one machine."
    )
    parser.add_argument("--name", default="hand", help="the lab's name (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start it; it runs until 'down'")
    verbs.add_parser("status", help="what there is")
    enter = verbs.add_parser("enter", help="a shell in which kvmctl works against that host")
    enter.add_argument("--inside", action="store_true", help="on the host itself, not beside it")
    enter.add_argument("host", choices=("a", "b"), nargs="?", default="a")
    enter.add_argument("command", nargs=argparse.REMAINDER, help="run this instead of a shell")
    verbs.add_parser("image", help="build the tiny guest; print its kernel, initramfs and kernel parameters")
    down = verbs.add_parser("down", help="end it, and whatever killed test runs left")
    down.add_argument("--all", action="store_true", dest="everything", help="every lab, those in use too")
    keeper = verbs.add_parser("keeper")
    keeper.add_argument("lab")
    keeper.add_argument("told", type=int)
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the lab makes network namespaces and mounts: run it as root")
    if options.verb == "keeper":
        labs.keeper(options.lab, options.told)
        return
    lab = Lab(options.name)
    if options.verb == "up":
        _up(lab)
    elif options.verb == "status":
        _status()
    elif options.verb == "enter":
        _enter(lab.a if options.host == "a" else lab.b, options.command, options.inside)
    elif options.verb == "image":
        tiny = images.tiny()
        _say(f"{tiny.kernel}\n{tiny.initrd}\n{tiny.cmdline}")
    else:
        _down(lab, options.everything)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _up(lab: Lab) -> None:
    if lab.is_up:
        _say(f"the lab {lab.name} is up already")
    else:
        lab.start(keep=True)
        for host in lab.hosts:
            host.start_default_network()
            host.define_default_pool()
            host.start_sshd()
    for host in lab.hosts:
        _say(f"{host.letter}  {host.uri}  {host.tcp_uri}")
    _say(f"enter a host: python -m tests.lab --name {lab.name} enter a")


def _status() -> None:
    for name in labs.names():
        lab = Lab(name)
        kept = "kept" if (lab.root / "kept").exists() else "a test run's"
        for host in lab.hosts:
            pid = host.libvirtd_pid() if lab.is_up else None
            _say(f"{name}  {host.letter}  {kept}  libvirtd {'runs' if pid else 'does not run'}  {host.uri}")


def _enter(host: Host, command: list[str], inside: bool) -> None:
    if not host.net.path.exists():
        raise SystemExit("that lab is not up: python -m tests.lab up")
    rc = host.folder / "bashrc"
    rc.write_text(_RC.format(letter=host.letter, python=sys.executable, repository=REPOSITORY))
    # One command, too, finds there what the shell has: kvmctl, tiny.
    shell = ["bash", "-c", '. "$0"; "$@"', str(rc), *command] if command else ["bash", "--rcfile", str(rc), "-i"]
    args = host.inside(shell) if inside else host.outside(shell)
    uri = "qemu:///system" if inside else host.uri
    os.execvpe(args[0], args, host.environment(HOME=os.environ.get("HOME", "/root"), LIBVIRT_DEFAULT_URI=uri))


def _down(lab: Lab, everything: bool) -> None:
    ended = labs.clean_leftovers()
    for name in labs.names() if everything else [lab.name]:
        if name in labs.names():
            labs.take_down(name)
            ended.append(name)
    _say(f"ended: {', '.join(ended)}" if ended else "nothing to end")


if __name__ == "__main__":
    main()
