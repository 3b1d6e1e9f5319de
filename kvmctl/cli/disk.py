"""kvmctl disk: the disks and CD drives of a VM."""

from pathlib import Path

import click

from kvmctl.cli import output
from kvmctl.cli.nic import scope
from kvmctl.cli.options import App, complete_vms, confirmed, dry_run, everywhere, timeout
from kvmctl.cli.output import Column
from kvmctl.model.names import harmless
from kvmctl.model.units import human_size

VM = click.argument("vm", shell_complete=complete_vms)


@click.group()
@everywhere
def disk() -> None:
    """List, plug in, pull out and grow a VM's disks, and change its CDs.

    \b
    Examples:
      kvmctl disk list web
      kvmctl disk attach web 20G
      kvmctl disk resize web vda +10G
    """


@disk.command("list")
@VM
@everywhere
@click.pass_obj
def list_disks(app: App, vm: str) -> None:
    """List a VM's disks and drives.

    \b
    Examples:
      kvmctl disk list web
      kvmctl disk list web -o wide
    """
    from kvmctl.operations import disks

    output.show_list(
        app,
        disks.listing(app.connect(), vm),
        [
            Column("target", "TARGET"),
            Column("device", "DEVICE"),
            Column("bus", "BUS"),
            Column("format", "FORMAT"),
            Column("capacity_bytes", "SIZE", human_size, right=True),
            Column("allocation_bytes", "USED", human_size, right=True),
            Column("source", "SOURCE"),
            Column("cache", "CACHE", wide=True),
            Column("discard", "DISCARD", wide=True),
            Column("serial", "SERIAL", wide=True),
            Column("encrypted", "ENCRYPTED", wide=True),
            Column("readonly", "READ-ONLY", wide=True),
            Column("shareable", "SHAREABLE", wide=True),
            Column("iops", "IOPS", wide=True),
            Column("bps", "BYTES/S", wide=True),
            Column("live", "LIVE", wide=True),
            Column("saved", "SAVED", wide=True),
        ],
        name="target",
        empty=f"{vm} has no disks; 'kvmctl disk attach {vm} 10G' plugs one in",
    )


@disk.command()
@VM
@click.argument("wanted", metavar="SIZE|PATH[,OPTION...]")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Encrypt the new disk (LUKS); the passphrase is the first line of FILE.",
)
@scope
@dry_run
@everywhere
@click.pass_obj
def attach(
    app: App, vm: str, wanted: str, passphrase_file: Path | None, live: bool, config: bool, dry_run: bool
) -> None:
    """Plug a disk into a VM, running or not.

    A size makes a new disk, which is deleted with the VM; a path takes what is there. Options: bus=virtio,
    scsi, sata, usb; format=qcow2, raw; cache=; discard=; serial=; iops= and bps= (limits); pool=; readonly;
    shareable; device=cdrom.

    \b
    Examples:
      kvmctl disk attach web 20G
      kvmctl disk attach web 100G,bus=scsi,cache=none,iops=500
      kvmctl disk attach web /srv/data.qcow2,readonly
      kvmctl disk attach web /srv/debian.iso,device=cdrom
      kvmctl disk attach web 20G --passphrase-file secret.txt
    """
    from kvmctl.model.disk import NewDisk, parse_disk
    from kvmctl.operations import disk_secret, disks

    request = parse_disk(wanted)
    if passphrase_file is None and isinstance(request, NewDisk) and request.passphrase_file is not None:
        passphrase_file = Path(request.passphrase_file).expanduser()
    passphrase = disk_secret.read(passphrase_file) if passphrase_file is not None else None
    hypervisor = app.connect()
    plan = disks.plan_attach(hypervisor, vm, request, live=live, config=config, passphrase=passphrase)
    if dry_run:
        row = {"vm": plan.name, "target": plan.target, "changed": False, "dry_run": True, "xml": plan.xml()}
        output.show_one(app, row, plan.xml, name="target")
        return
    row = disks.run_attach(hypervisor, plan)
    output.show_one(
        app, row, lambda: f"{row['source']} is {row['target']} of {plan.name}, {plan.affect.words}", name="target"
    )


@disk.command()
@VM
@click.argument("which", metavar="TARGET|PATH")
@click.option("--delete", is_flag=True, help="Delete the volume too, where kvmctl made it for this VM.")
@scope
@timeout("30s")
@confirmed
@dry_run
@everywhere
@click.pass_obj
def detach(
    app: App, vm: str, which: str, delete: bool, live: bool, config: bool, timeout: float, dry_run: bool
) -> None:
    """Pull a disk out of a VM, running or not. What is on it stays, unless --delete is given.

    \b
    Examples:
      kvmctl disk detach web vdb
      kvmctl disk detach web vdb --delete -y
    """
    from kvmctl.operations import disks

    hypervisor = app.connect()
    plan = disks.plan_detach(hypervisor, vm, which, live=live, config=config, delete=delete)
    if dry_run:
        xml = plan.live or plan.saved or ""
        output.show_one(app, {**plan.row(), "dry_run": True, "xml": xml}, lambda: xml, name="target")
        return
    if plan.boots:
        output.confirm(app, f"{plan.name} is running from {plan.target}. Pull it out?")
    if delete:
        output.confirm(app, f"Delete {plan.source} and all that is on it?")
    with output.progress(app) as progress:
        row = disks.run_detach(hypervisor, plan, timeout, delete=delete, progress=progress)

    def sentence() -> str:
        end = "deleted" if row["deleted"] else f"what is on it stays in {row['source']}" if row["source"] else "empty"
        return f"{row['target']} taken from {harmless(row['vm'])}; {end}"

    output.show_one(app, row, sentence, name="target")


@disk.command()
@VM
@click.argument("which", metavar="TARGET|PATH")
@click.argument("size")
@dry_run
@everywhere
@click.pass_obj
def resize(app: App, vm: str, which: str, size: str, dry_run: bool) -> None:
    """Grow a VM's disk to SIZE, or by +SIZE, running or not.

    The guest sees a larger disk at once; growing the partition and file system in it is its own affair
    (cloud images do that when they start).

    \b
    Examples:
      kvmctl disk resize web vda 40G
      kvmctl disk resize web vdb +10G
    """
    from kvmctl.operations import disk_resize

    hypervisor = app.connect()
    plan = disk_resize.plan(hypervisor, vm, which, size)
    row = {**plan.row(), "dry_run": True} if dry_run else disk_resize.run(hypervisor, plan)

    def sentence() -> str:
        if not row["changed"]:
            return f"{row['target']} of {harmless(row['vm'])} has {human_size(row['capacity_bytes'])} already"
        verb = "would grow" if dry_run else "grew"
        sizes = f"from {human_size(row['before_bytes'])} to {human_size(row['capacity_bytes'])}"
        return f"{row['target']} of {harmless(row['vm'])} {verb} {sizes}"

    output.show_one(app, row, sentence, name="target")


@disk.command()
@VM
@click.argument("iso")
@click.option("--drive", metavar="TARGET", help="Which drive, where there are several.")
@click.option("--force", is_flag=True, help="Even if the guest has locked the drive.")
@scope
@dry_run
@everywhere
@click.pass_obj
def insert(
    app: App, vm: str, iso: str, drive: str | None, force: bool, live: bool, config: bool, dry_run: bool
) -> None:
    """Put an ISO image into a VM's CD drive.

    \b
    Examples:
      kvmctl disk insert web /srv/virtio-win.iso
      kvmctl disk insert web drivers.iso --drive sdb
    """
    _change(app, vm, iso, drive, force, live, config, dry_run)


@disk.command()
@VM
@click.option("--drive", metavar="TARGET", help="Which drive, where there are several.")
@click.option("--force", is_flag=True, help="Even if the guest has locked the drive.")
@scope
@dry_run
@everywhere
@click.pass_obj
def eject(app: App, vm: str, drive: str | None, force: bool, live: bool, config: bool, dry_run: bool) -> None:
    """Take the CD out of a VM's drive.

    \b
    Examples:
      kvmctl disk eject web
    """
    _change(app, vm, None, drive, force, live, config, dry_run)


def _change(
    app: App, vm: str, iso: str | None, drive: str | None, force: bool, live: bool, config: bool, dry_run: bool
) -> None:
    from kvmctl.operations import disk_media

    hypervisor = app.connect()
    plan = disk_media.plan(hypervisor, vm, iso, drive, live=live, config=config)
    if dry_run:
        row = {**plan.row(), "dry_run": True}
    else:
        with output.progress(app) as progress:
            row = disk_media.run(hypervisor, plan, force=force, progress=progress)

    def sentence() -> str:
        where = f"{row['target']} of {harmless(row['vm'])}"
        if row["source"] is None:
            return f"{where} is empty{'' if row['changed'] else ' already'}"
        return f"{row['source']} is in {where}{'' if row['changed'] else ' already'}"

    output.show_one(app, row, sentence, name="target")
