"""kvmctl create"""

from typing import Any

import click
from click.core import ParameterSource

from kvmctl.cli import creating
from kvmctl.cli.options import MEMORY, dry_run, everywhere, timeout
from kvmctl.cli.tuning_options import tuning_options
from kvmctl.errors import UsageProblem


class WithMaximum(click.ParamType):
    """``N[,max=M]``, each read by ``kind``."""

    name = "number"

    def __init__(self, kind: click.ParamType, what: str) -> None:
        self.kind, self.what = kind, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int | None]:
        """(N, M or None)."""
        if isinstance(value, tuple):
            return value
        first, comma, rest = str(value).partition(",")
        if comma and not rest.startswith("max="):
            raise UsageProblem(f"{value[:60]!a} is not a number of {self.what}", "write it N or N,max=M")
        return (
            self.kind.convert(first, param, ctx),
            self.kind.convert(rest.removeprefix("max="), param, ctx) if comma else None,
        )


@click.command()
@click.argument("name", required=False)
@click.option("--image", metavar="NAME|PATH|URL", help="Make the disk copy-on-write over this image.")
@click.option("--cdrom", metavar="ISO", help="Boot this installer or live CD.")
@click.option("--kernel", metavar="FILE", help="Boot this kernel directly.")
@click.option("--initrd", metavar="FILE", help="The initrd for --kernel.")
@click.option("--cmdline", metavar="TEXT", help="The command line for --kernel.")
@click.option("--import", "import_", metavar="DISK", help="Boot this disk, and write to it.")
@click.option("--pxe", is_flag=True, help="Boot from the network.")
@click.option("-f", "--file", "spec", metavar="SPEC", help="Read a YAML or TOML spec; options win over it.")
@click.option(
    "--vcpus", type=WithMaximum(click.IntRange(1, creating.MOST_VCPUS), "vCPUs"), metavar="N[,max=M]", help="vCPUs (2)."
)
@click.option("--memory", type=WithMaximum(MEMORY, "bytes"), metavar="SIZE[,max=SIZE]", help="Memory (2G).")
@click.option("--cpu", metavar="MODE|MODEL", help="host-model, host-passthrough, maximum, or a model's name.")
@click.option("--accel", type=click.Choice(("auto", "kvm", "tcg")), help="Hardware virtualization, or emulation.")
@click.option("--machine", metavar="TYPE", help="The machine type (q35).")
@click.option("--arch", metavar="ARCH", help="The architecture (the host's).")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="SIZE|PATH[,OPTION...]",
    help="A disk. With --image the first SIZE is the root disk's.",
)
@click.option(
    "--net",
    "nets",
    multiple=True,
    metavar="KIND[,OPTION...]",
    help="nat[:NETWORK], bridge:BR, macvtap:DEV[:MODE], network:NAME, user or none.",
)
@click.option("--nic-model", metavar="MODEL", help="virtio, e1000, e1000e, rtl8139, pcnet, ne2k_pci or vmxnet3.")
@click.option(
    "-p",
    "--publish",
    "ports",
    multiple=True,
    metavar="[ADDR:]HOST:GUEST[/udp]",
    help="Lead a port of the host to one of the guest.",
)
@click.option(
    "--pci", "pci", multiple=True, metavar="DEVICE[,vf][,group]", help="Pass this PCI device through (up to 32)."
)
@click.option("--firmware", type=click.Choice(("bios", "uefi", "uefi-secure")), help="The firmware.")
@click.option("--tpm/--no-tpm", default=None, help="An emulated TPM 2.0.")
@click.option("--profile", type=click.Choice(("linux", "windows", "generic")), help="What suits this kind of guest.")
@click.option("--os", "os_id", metavar="ID", help="The guest's operating system, like debian12 or win11.")
@click.option("--graphics", type=click.Choice(("none", "vnc", "spice")), help="The screen (vnc on loopback).")
@click.option("--video", metavar="MODEL", help="virtio, vga, qxl, bochs, cirrus, ramfb …: what the host has.")
@click.option(
    "--graphics-listen", metavar="ADDR", help="Where the screen is served; one that others reach needs a password."
)
@click.option("--graphics-tls", is_flag=True, help="SPICE with TLS alone; the host's qemu.conf needs spice_tls = 1.")
@click.option("--graphics-password-file", metavar="FILE", help="The screen's password: the first line of FILE.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="KIND[,OPTION...]",
    help="watchdog, vsock, panic, serial, parallel, rng, share=DIR:TAG or mdev=UUID.",
)
@click.option("--sound", is_flag=True, help="A sound card.")
@click.option("--title", metavar="TEXT", help="A title that lists may show.")
@click.option("--description", metavar="TEXT", help="A description.")
@click.option("--user", metavar="NAME", help="The user that cloud-init makes, with sudo.")
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE",
    help="A public key that may log in (your own ~/.ssh/id_*.pub).",
)
@click.option("--password-file", metavar="FILE", help="The user's password: the first line of FILE, - for stdin.")
@click.option("--user-data", metavar="FILE", help="A whole cloud-init user-data file.")
@click.option("--hostname", metavar="NAME", help="The guest's host name (the VM's name).")
@click.option("--seed/--no-seed", default=None, help="Give the guest a cloud-init seed (with --image: yes).")
@tuning_options
@click.option("--autostart", is_flag=True, help="Start it with the host.")
@click.option("--start/--no-start", default=True, help="Start it now.")
@click.option("--wait", type=click.Choice(creating.WAITS), help="Return when the guest has got this far.")
@click.option("--strict", is_flag=True, help="Refuse where the host would promise more than it should.")
@click.option("--keep", is_flag=True, help="Keep the VM where --wait gives up.")
@timeout(creating.TIMEOUT)
@dry_run
@everywhere
@click.pass_context
def create(ctx: click.Context, /, name: str | None, **given: Any) -> None:
    """Make a VM from an image, an installer, a kernel, a disk or the network, and start it.

    All of it is made, or nothing: what fails half way, or is interrupted, leaves nothing behind.

    With --file a spec says what is not given here, the name too; docs/spec.md has its keys.

    \b
    Examples:
      kvmctl create web --image debian-12 --wait ssh
      kvmctl create web --image debian-12 --memory 4G --vcpus 2,max=4 --disk 20G -p 8080:80
      kvmctl create installer --cdrom debian.iso --disk 20G --firmware uefi
      kvmctl create tiny --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0'
      kvmctl create old --import /srv/old.qcow2 --net bridge:br0 --nic-model e1000
      kvmctl create web --image debian-12 --dry-run
      kvmctl create -f web.yaml
      kvmctl create web-2 -f web.yaml --memory 4G
    """
    # Only what was really typed wins over a spec: a default must not hide what that says.
    said = {key: value for key, value in given.items() if ctx.get_parameter_source(key) is not ParameterSource.DEFAULT}
    creating.create(ctx.obj, name, said)
