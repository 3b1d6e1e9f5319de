"""kvmctl host"""

from typing import TYPE_CHECKING

import click

from kvmctl.cli import output
from kvmctl.cli.host_autostart import autostart
from kvmctl.cli.host_cpu import cpu
from kvmctl.cli.host_evacuate import evacuate
from kvmctl.cli.host_setup import setup
from kvmctl.cli.host_show import info, overcommit
from kvmctl.cli.options import App, everywhere
from kvmctl.errors import Refused, UsageProblem

if TYPE_CHECKING:
    from kvmctl.connection import Hypervisor
    from kvmctl.preflight.host import HostReport


@click.group()
def host() -> None:
    """Check and set up the host, and show what it gives."""


host.add_command(autostart)
host.add_command(cpu)
host.add_command(evacuate)
host.add_command(setup)
host.add_command(info)
host.add_command(overcommit)


@host.command()
@click.option("--cpuinfo", metavar="FILE", help="Judge this copy of a /proc/cpuinfo alone (- is standard input).")
@click.option("--root", metavar="DIR", help="Judge the copy of a machine's /proc, /sys and /dev below DIR.")
@everywhere
@click.pass_obj
def check(app: App, cpuinfo: str | None, root: str | None) -> None:
    """Say whether this host can run guests, and what to do where it cannot.

    Guests get KVM only where the CPU's flags hold vmx (Intel) or svm (AMD) and /dev/kvm can be used; else
    they are emulated (TCG). With -c URI the host there is judged by what its libvirt says. The exit code is
    7 where no guest can run; with --cpuinfo it is 7 where the flag is missing.

    \b
    Examples:
      kvmctl host check
      kvmctl host check -o json
      kvmctl host check -c qemu+ssh://root@server/system
      ssh server cat /proc/cpuinfo | kvmctl host check --cpuinfo -
    """
    if cpuinfo is not None and root is not None:
        raise UsageProblem("--cpuinfo and --root were both given", "give one of them")
    if app.uri is not None and (cpuinfo is not None or root is not None):
        option = "--cpuinfo" if cpuinfo is not None else "--root"
        raise UsageProblem(f"{option} judges files, -c a hypervisor: both were given", "give one of them")
    report = _judge(app, cpuinfo, root)
    row = report.as_dict()
    output.show_one(app, row, lambda: _for_people(app, report), name="verdict")
    if report.verdict == "fail":
        click.get_current_context().exit(Refused.exit_code)


def _judge(app: App, cpuinfo: str | None, root: str | None) -> "HostReport":
    from kvmctl.connection import configured_uri, connect
    from kvmctl.operations import host_check
    from kvmctl.preflight import host, host_cpu
    from kvmctl.preflight.host_root import Root

    if cpuinfo is not None:
        return host.of_cpuinfo(host_cpu.read_text(cpuinfo))
    if root is not None:
        return host.of_root(Root.given(root))

    def opened(read_only: bool) -> "Hypervisor":
        return connect(app.uri, read_only=True) if read_only else app.connect()

    return host_check.judge(opened, app.uri or configured_uri())


def _for_people(app: App, report: "HostReport") -> str:
    words = {
        "ok": "This host runs guests.",
        "warn": "This host runs guests, with what is said below.",
        "fail": "No guest can run here.",
    }
    cpu_ = report.cpu
    lines = [
        words[report.verdict] if report.uri or len(report.checks) > 1 else _of_text(report),
        f"CPU: {cpu_['model'] or 'unknown'} ({cpu_['vendor'] or 'vendor unknown'}), flag: {cpu_['flag'] or 'none'}; "
        f"accelerator: {report.accel}",
        "",
        output.checks_text(app, [check.as_dict() for check in report.checks]),
    ]
    return "\n".join(lines)


def _of_text(report: "HostReport") -> str:
    return "This CPU can virtualize." if report.cpu["flag"] else "This CPU cannot virtualize."
