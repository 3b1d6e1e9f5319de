"""kvmctl image: the disks that guests are made from."""

from pathlib import Path
from typing import Any

import click

from kvmctl.cli import output, targets
from kvmctl.cli.options import DISK, App, confirmed, dry_run, everywhere
from kvmctl.errors import UsageProblem
from kvmctl.model.units import human_size

_COLUMNS = [
    output.Column("name", "NAME"),
    output.Column("os", "OS"),
    output.Column("format", "FORMAT"),
    output.Column("size_bytes", "SIZE", human_size, right=True),
    output.Column("virtual_size_bytes", "VIRTUAL", human_size, right=True),
    output.Column("used_by", "USED BY"),
    output.Column("path", "PATH", wide=True),
]
_NEW_NAME = click.option("--name", metavar="NAME", help="What the image is to be called.")


@click.group()
@everywhere
def image() -> None:
    """Build, download, import and delete the images that guests are made from.

    \b
    Examples:
      kvmctl image build debian-12
      kvmctl image pull ubuntu-24.04
      kvmctl image list
    """


@image.command("list")
@click.option("--catalogue", is_flag=True, help="What 'image pull' knows by name, instead.")
@everywhere
@click.pass_obj
def list_images(app: App, catalogue: bool) -> None:
    """List the images.

    \b
    Examples:
      kvmctl image list
      kvmctl image list -o json
      kvmctl image list --catalogue
    """
    if catalogue:
        _list_catalogue(app)
        return
    from kvmctl.operations import image_store

    hypervisor = app.connect()
    output.show_list(
        app,
        image_store.listing(hypervisor),
        _COLUMNS,
        empty=f"no images on {hypervisor.uri}; 'kvmctl image build debian-12' makes one, 'image pull' downloads one",
    )


def _list_catalogue(app: App) -> None:
    from kvmctl.operations import image_catalogue

    rows = [{"name": e.name, "os": e.os, "user": e.user, "url": e.url} for e in image_catalogue.entries()]
    columns = [
        output.Column("name", "NAME"),
        output.Column("os", "OS"),
        output.Column("user", "USER"),
        output.Column("url", "URL", wide=True),
    ]
    output.show_list(app, rows, columns)


@image.command()
@click.argument("name")
@everywhere
@click.pass_obj
def info(app: App, name: str) -> None:
    """Show one image, and who stands on it.

    \b
    Examples:
      kvmctl image info debian-12
      kvmctl image info debian-12 -o json
    """
    from kvmctl.operations import image_store

    row = image_store.info(app.connect(), name)
    output.show_one(app, row, lambda: _described(row))


@image.command()
@click.argument("suite")
@click.option("--size", type=DISK, metavar="SIZE", help="The disk's size as the guest sees it (4G).")
@click.option("--include", multiple=True, metavar="PKG", help="One more package, or several with commas between.")
@click.option(
    "--kernel",
    type=click.Choice(("cloud", "generic")),
    default="cloud",
    show_default=True,
    help="Debian's kernel for virtual machines, or the one with every driver.",
)
@_NEW_NAME
@dry_run
@everywhere
@click.pass_obj
def build(
    app: App, suite: str, size: int | None, include: tuple[str, ...], kernel: str, name: str | None, dry_run: bool
) -> None:
    """Build a Debian image with mmdebstrap, from the mirror that this machine's apt uses.

    SUITE is debian-11, debian-12, debian-13 (or bullseye, bookworm, trixie) or debian-sid. The image
    boots by itself with BIOS and UEFI (secure boot too) and has cloud-init, an SSH server and the guest
    agent. Takes one or two minutes; needs no root.

    \b
    Examples:
      kvmctl image build debian-12
      kvmctl image build trixie --size 10G --include vim,git --name trixie-dev
      kvmctl image build debian-12 --kernel generic --name debian-12-full
    """
    from kvmctl.operations import image_build, image_make

    packages = [package for text in include for package in text.split(",")]
    planned = image_build.plan(suite, size=size or image_build.DEFAULT_SIZE, include=packages, kernel=kernel)
    hypervisor = app.connect()
    if dry_run:
        rows = image_make.describe(planned, image_make.free_name(hypervisor, planned, name))
        output.show_one(app, rows)
        return
    with output.progress(app) as progress:
        made = image_make.build(hypervisor, planned, name, progress)
    output.show_one(app, made.as_dict([]), lambda: f"built {made.name} ({human_size(made.size_bytes)})")


@image.command()
@click.argument("what", metavar="NAME|URL")
@_NEW_NAME
@click.option("--checksum", metavar="sha256:HEX", help="What a download from a URL must hash to (or sha512:HEX).")
@everywhere
@click.pass_obj
def pull(app: App, what: str, name: str | None, checksum: str | None) -> None:
    """Download an image: one that is known by name, or from a URL.

    What was cut off goes on where it ended when it is pulled again. 'image list --catalogue' shows the
    names; the checksums that their projects publish are verified.

    \b
    Examples:
      kvmctl image pull debian-12
      kvmctl image pull https://example.org/disk.qcow2 --checksum sha256:0b7f...
    """
    from kvmctl.operations import image_pull

    with output.progress(app) as progress:
        made = image_pull.pull(app.connect(), what, name, checksum, progress)
    output.show_one(app, made.as_dict([]), lambda: f"pulled {made.name} ({human_size(made.size_bytes)})")


@image.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_NEW_NAME
@everywhere
@click.pass_obj
def import_(app: App, file: Path, name: str | None) -> None:
    """Bring in a disk image or ISO from a file here.

    Takes qcow2, raw, VMDK, VDI, VHD, VHDX and ISO, also compressed with gzip, xz or bzip2; all but ISO
    become qcow2. An image that names other files, is not whole or is no image at all is refused.

    \b
    Examples:
      kvmctl image import disk.qcow2
      kvmctl image import appliance.vmdk --name appliance
      kvmctl -c qemu+ssh://host/system image import disk.img.xz
    """
    from kvmctl.operations import image_import

    with output.progress(app) as progress:
        made = image_import.import_file(app.connect(), file, name, progress)
    output.show_one(app, made.as_dict([]), lambda: f"imported {made.name} ({human_size(made.size_bytes)})")


@image.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@confirmed
@dry_run
@everywhere
@click.pass_obj
def delete(app: App, names: tuple[str, ...], dry_run: bool) -> None:
    """Delete images, unless something stands on them.

    \b
    Examples:
      kvmctl image delete debian-12
      kvmctl image delete debian-11 debian-12 -y
    """
    from kvmctl.operations import image_store

    if not names:
        raise UsageProblem("no image was named", "'kvmctl image list' shows those there are")
    hypervisor = app.connect()
    if not dry_run:
        wanted = [image_store.find(hypervisor, name).name for name in names] if len(names) == 1 else list(names)
        output.confirm(app, f"Delete the image{'s' if len(names) > 1 else ''} {', '.join(wanted)}?")
    targets.for_each(
        app,
        list(dict.fromkeys(names)),
        len(names) > 1,
        lambda name: image_store.delete(hypervisor, name, dry_run=dry_run),
        lambda row: f"{'would delete' if dry_run else 'deleted'} {row['name']}",
    )


def _described(row: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("name", row["name"]),
        ("os", row["os"]),
        ("format", row["format"]),
        ("virtual size", human_size(row["virtual_size_bytes"])),
        ("size on disk", human_size(row["size_bytes"])),
        ("path", row["path"]),
        ("used by", row["used_by"]),
    ]
