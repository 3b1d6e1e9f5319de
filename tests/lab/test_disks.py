"""Disks and CDs in and out of a guest, and what the guest itself sees of them."""

import io
from collections.abc import Callable
from pathlib import Path

import pycdlib
import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.process import run

MIB = 1024**2
# A guest on a busy machine takes its time to let go.
PATIENT = ("-y", "--timeout", "2m")
Console = Callable[[Host, str], Guest]


def _create(host: Host, tiny: images.Tiny, name: str, *more: str) -> None:
    host.kvmctl(
        *("create", name, "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--graphics", "none", "--net", "none", "-q", *more),
    )


def _iso(path: Path, content: bytes) -> Path:
    disc = pycdlib.PyCdlib()
    disc.new(vol_ident="TEST")
    disc.add_fp(io.BytesIO(content), len(content), "/HELLO.;1")
    disc.write(str(path))
    disc.close()
    return path


@pytest.mark.usefixtures("leaves_nothing")
def test_disks_come_grow_and_go_in_a_running_guest(host_a: Host, tiny: images.Tiny, console: Console) -> None:
    _create(host_a, tiny, "disky")
    guest = console(host_a, "disky").ready()
    assert host_a.kvmctl("disk", "list", "disky", "-o", "json").json() == []

    made = host_a.kvmctl("disk", "attach", "disky", "64M,serial=FIRST,cache=none,iops=200,bps=20M", "-o", "json").json()
    assert (made["target"], made["bus"], made["format"], made["changed"]) == ("vda", "virtio", "qcow2", True)
    assert (made["capacity_bytes"], made["iops"], made["bps"]) == (64 * MIB, 200, 20 * MIB)
    assert (made["live"], made["saved"]) == (True, True)
    guest.run("until [ -b /dev/vda ]; do sleep 0.1; done")
    assert guest.run("echo $(cat /sys/block/vda/serial) $(cat /sys/block/vda/size)") == "FIRST 131072"
    guest.run("echo precious | dd of=/dev/vda bs=512 conv=sync 2>/dev/null; sync")

    grown = host_a.kvmctl("disk", "resize", "disky", "vda", "+32M", "-o", "json").json()
    assert (grown["before_bytes"], grown["capacity_bytes"], grown["changed"]) == (64 * MIB, 96 * MIB, True)
    guest.run("until [ $(cat /sys/block/vda/size) = 196608 ]; do sleep 0.1; done")
    assert host_a.kvmctl("disk", "resize", "disky", "vda", "96M", "-o", "json").json()["changed"] is False
    before = host_a.definitions("disky")
    smaller = host_a.kvmctl("disk", "resize", "disky", "vda", "10M", check=False)
    assert smaller.returncode == 2
    assert "cannot shrink" in smaller.stderr
    assert host_a.definitions("disky") == before

    # A SCSI disk brings its controller along; raw and read-only reach the guest.
    scsi = host_a.kvmctl("disk", "attach", "disky", "16M,bus=scsi,format=raw,readonly", "-o", "json").json()
    assert (scsi["target"], scsi["format"], scsi["readonly"]) == ("sda", "raw", True)
    guest.run("until [ -b /dev/sda ]; do sleep 0.1; done")
    assert guest.run("cat /sys/block/sda/ro /sys/block/sda/size") == "1\n32768"
    assert "virtio_scsi" in guest.run(
        "readlink -f /sys/block/sda/device/../../../driver || true; ls /sys/bus/virtio/drivers"
    )

    targets = [row["target"] for row in host_a.kvmctl("disk", "list", "disky", "-o", "json").json()]
    assert sorted(targets) == ["sda", "vda"]
    gone = host_a.kvmctl("disk", "detach", "disky", "sda", "--delete", *PATIENT, "-o", "json").json()
    assert (gone["deleted"], gone["live"], gone["config"]) == (True, True, True)
    guest.run("until [ ! -e /sys/block/sda ]; do sleep 0.1; done")
    assert scsi["source"] not in host_a.files()

    # What is on a disk stays when it is pulled out, and comes back with it.
    kept = host_a.kvmctl("disk", "detach", "disky", "vda", *PATIENT, "-o", "json").json()
    assert kept["deleted"] is False
    host_a.kvmctl("disk", "attach", "disky", f"{kept['source']},format=qcow2")
    guest.run("until [ -b /dev/vda ]; do sleep 0.1; done")
    assert guest.run("dd if=/dev/vda bs=8 count=1 2>/dev/null") == "precious"
    host_a.kvmctl("disk", "detach", "disky", "vda", *PATIENT)
    host_a.kvmctl("delete", "disky", "-y")
    assert kept["source"].endswith("disky-1.qcow2")
    host_a.virsh("vol-delete", kept["source"])


@pytest.mark.usefixtures("leaves_nothing")
def test_cds_are_inserted_and_ejected(host_a: Host, tiny: images.Tiny, console: Console, tmp_path: Path) -> None:
    disc = _iso(tmp_path / "hello.iso", b"hello from the disc")
    other = _iso(tmp_path / "other.iso", b"another one")
    shared = host_a.shared
    _create(host_a, tiny, "player")
    guest = console(host_a, "player").ready()
    none = host_a.kvmctl("disk", "insert", "player", str(disc), check=False)
    assert none.returncode == 4
    assert "has no CD drive" in none.stderr
    drive = host_a.kvmctl("disk", "attach", "player", f"{shared}/x.iso,device=cdrom", check=False)
    assert drive.returncode == 3
    host_a.run(["sh", "-c", f"cat >{shared}/disc.iso"], input=disc.read_bytes())
    made = host_a.kvmctl("disk", "attach", "player", f"{shared}/disc.iso,device=cdrom", "-o", "json").json()
    assert (made["device"], made["bus"], made["readonly"]) == ("cdrom", "scsi", True)
    read = (
        "mkdir -p /cd; until mount -t iso9660 -o ro /dev/sr0 /cd 2>/dev/null; do sleep 0.1; done; cat /cd/*; umount /cd"
    )
    assert guest.run(read) == "hello from the disc"

    # A file of this machine's is brought over; it goes with the VM.
    inserted = host_a.kvmctl("disk", "insert", "player", str(other), "-o", "json").json()
    assert (inserted["changed"], inserted["live"], inserted["config"]) == (True, True, True)
    assert guest.run(read) == "another one"
    again = host_a.kvmctl("disk", "insert", "player", inserted["source"], "-o", "json").json()
    assert again["changed"] is False

    # While the guest has it mounted the drive is locked.
    guest.run("until mount -t iso9660 -o ro /dev/sr0 /cd 2>/dev/null; do sleep 0.1; done")
    before = host_a.definitions("player")
    locked = host_a.kvmctl("disk", "eject", "player", check=False)
    assert (locked.returncode, "has locked the drive" in locked.stderr) == (7, True), locked.stderr
    assert host_a.definitions("player") == before
    guest.run("umount /cd")
    assert host_a.kvmctl("disk", "eject", "player", "-o", "json").json()["source"] is None
    assert host_a.kvmctl("disk", "eject", "player", "-o", "json").json()["changed"] is False
    host_a.kvmctl("delete", "player", "-y")
    host_a.run(["rm", f"{shared}/disc.iso"])


@pytest.mark.usefixtures("leaves_nothing")
def test_bad_disks_are_refused_and_the_vm_is_as_before(host_a: Host, tiny: images.Tiny, tmp_path: Path) -> None:
    _create(host_a, tiny, "holder", "--disk", "16M")
    _create(host_a, tiny, "off", "--no-start")
    (held,) = host_a.kvmctl("disk", "list", "holder", "-o", "json").json()
    host_a.run(["sh", "-c", "echo text >/srv/shared/not.iso; : >/srv/shared/empty; mkdir /srv/shared/folder"])
    for vm, wanted, code, words in (
        ("off", held["source"], 7, "belongs to the VM holder"),
        ("off", "/srv/shared/not.iso,device=cdrom", 2, "no ISO image"),
        ("off", "/srv/shared/empty", 2, "empty"),
        ("off", "/srv/shared/folder", 2, "directory"),
        ("off", "/srv/shared/nothing", 3, "no disk"),
        ("off", "0", 2, "out of range"),
        ("off", "10M,bus=nvme", 2, "none of"),
        ("off", "10M,pool=nowhere", 3, "no storage pool"),
        ("holder", held["source"], 4, "has the disk"),
        ("holder", "10M,bus=sata", 7, "cannot be plugged into a running guest"),
        ("holder", "10000000000G", 2, "out of range"),
    ):
        before = host_a.definitions(vm)
        refused = host_a.kvmctl("disk", "attach", vm, wanted, check=False)
        assert refused.returncode == code, (wanted, refused.stderr)
        assert words in refused.stderr, (wanted, refused.stderr)
        assert host_a.definitions(vm) == before
    assert host_a.kvmctl("disk", "attach", "off", f"{held['source']},readonly", check=False).returncode == 0
    assert host_a.kvmctl("disk", "attach", "off", "10M", "--live", check=False).returncode == 4
    assert host_a.kvmctl("disk", "detach", "off", "vdz", check=False).returncode == 3
    asked = host_a.kvmctl("disk", "detach", "holder", "vda", check=False)
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)

    # The saved half alone: a SATA disk for the next start, and growing while it is off.
    host_a.kvmctl("disk", "attach", "off", "10M,bus=sata")
    grown = host_a.kvmctl("disk", "resize", "off", "sda", "20M", "-o", "json").json()
    assert (grown["capacity_bytes"], grown["live"]) == (20 * MIB, False)
    dry = host_a.kvmctl("disk", "attach", "off", "10M", "--dry-run")
    assert "<disk" in dry.stdout
    assert len(host_a.kvmctl("disk", "list", "off", "-o", "json").json()) == 2
    host_a.kvmctl("delete", "off", "holder", "-y")
    host_a.run(["rm", "-r", "/srv/shared/not.iso", "/srv/shared/empty", "/srv/shared/folder"])


@pytest.mark.usefixtures("leaves_nothing")
def test_an_encrypted_disk_keeps_its_passphrase_to_libvirt(
    host_a: Host, tiny: images.Tiny, console: Console, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse battery\nsecond line\n")
    _create(host_a, tiny, "vault")
    made = host_a.kvmctl("disk", "attach", "vault", "16M", "--passphrase-file", str(secret), "-o", "json").json()
    assert (made["encrypted"], made["capacity_bytes"], made["live"], made["saved"]) == (True, 16 * MIB, True, True)
    guest = console(host_a, "vault").ready()
    guest.run("until [ -b /dev/vda ]; do sleep 0.1; done")
    guest.run("echo precious-and-plain | dd of=/dev/vda bs=512 conv=sync 2>/dev/null; sync")
    assert guest.run("dd if=/dev/vda bs=18 count=1 2>/dev/null") == "precious-and-plain"
    # On the host it is LUKS, and nothing of the guest's is readable; nor is the passphrase anywhere.
    file = host_a.folder / "lib/images" / Path(made["source"]).name
    assert b"LUKS" in file.read_bytes()
    assert b"precious-and-plain" not in file.read_bytes()
    assert "correct horse" not in host_a.virsh("dumpxml", "vault", "--security-info").stdout
    (uuid,) = [line.split()[0] for line in host_a.virsh("secret-list").stdout.splitlines() if made["source"] in line]
    private = host_a.virsh("secret-get-value", uuid, check=False)
    assert "private" in private.stderr

    # It starts again with what libvirt has kept, and all of it goes with the VM.
    guest.close()
    host_a.kvmctl("destroy", "vault")
    host_a.kvmctl("start", "vault")
    guest = console(host_a, "vault").ready()
    assert guest.run("dd if=/dev/vda bs=18 count=1 2>/dev/null") == "precious-and-plain"
    for content, words in (("", "does not begin with a passphrase"), ("\n", "does not begin with a passphrase")):
        secret.write_text(content)
        wrong = host_a.kvmctl("disk", "attach", "vault", "16M", "--passphrase-file", str(secret), check=False)
        assert (wrong.returncode, words in wrong.stderr) == (2, True)
    host_a.kvmctl("delete", "vault", "-y")
    assert uuid not in host_a.virsh("secret-list").stdout


@pytest.mark.usefixtures("leaves_nothing")
def test_disks_are_encrypted_as_they_are_made(
    host_a: Host, tiny: images.Tiny, console: Console, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("correct horse battery\n")
    base = tmp_path / "base.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "8M"])
    run(["qemu-io", "-c", "write -q -P 0x61 0 4096", str(base)])
    secret = f"passphrase-file={tmp_path / 'secret'}"
    create = [
        *("create", "safe", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M", "--vcpus", "1", "--graphics", "none", "--net", "none", "-q", "--image", str(base)),
        *("--no-seed", "--disk", f"16M,{secret}"),
    ]
    planned = host_a.kvmctl(*create, "--dry-run", check=False)
    assert "correct horse" not in planned.stdout + planned.stderr
    # What fails after the passphrase was kept takes it back.
    failed = host_a.kvmctl(*create, "--device", "share=/no/such:x,driver=virtiofs", check=False)
    assert failed.returncode != 0
    assert host_a.virsh("secret-list").stdout.strip() == ""

    host_a.kvmctl(*create)
    guest = console(host_a, "safe").ready()
    # A copy-on-write disk over a plain image, which is read through it.
    assert guest.run("dd if=/dev/vda bs=4 count=1 2>/dev/null") == "aaaa"
    guest.run("echo precious-and-plain | dd of=/dev/vda bs=512 seek=9 conv=sync 2>/dev/null; sync")
    (row,) = host_a.kvmctl("disk", "list", "safe", "-o", "json").json()
    assert row["encrypted"] is True
    assert b"precious-and-plain" not in (host_a.folder / "lib/images" / Path(row["source"]).name).read_bytes()
    guest.close()
    host_a.kvmctl("destroy", "safe")
    host_a.kvmctl("start", "safe")
    guest = console(host_a, "safe").ready()
    assert guest.run("dd if=/dev/vda bs=512 skip=9 count=1 2>/dev/null | head -n 1") == "precious-and-plain"
    host_a.kvmctl("delete", "safe", "-y")
    assert host_a.virsh("secret-list").stdout.strip() == ""
    (image,) = [row["name"] for row in host_a.kvmctl("image", "list", "-o", "json").json() if "base" in row["name"]]
    host_a.kvmctl("image", "delete", image, "-y")


@pytest.mark.usefixtures("leaves_nothing")
def test_a_disk_that_is_not_whole_or_stands_on_what_it_should_not_is_refused(host_a: Host, tmp_path: Path) -> None:
    """A guest could read whatever file of the host's the disk's header names."""

    def made(name: str, *options: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, str(path), "16M"])
        return path

    base = made("base")
    cut = made("cut")
    cut.write_bytes(cut.read_bytes()[:1000])
    made("loop", "-b", str(tmp_path / "round"), "-F", "qcow2")
    refused = {
        cut: "is truncated",
        made("passwd", "-b", "/etc/passwd", "-F", "raw"): "backed by '/etc/passwd', which is neither beside it",
        made("elsewhere/far", "-b", str(base), "-F", "qcow2"): "neither beside it nor in a storage pool",
        made("data", "-o", f"data_file={tmp_path / 'raw'}"): "names a data file",
        made("round", "-b", str(tmp_path / "loop"), "-F", "qcow2"): "is backed by itself",
    }
    for path, reason in refused.items():
        told = host_a.kvmctl("create", "x", "--import", str(path), "--dry-run", "-o", "json", check=False)
        assert told.returncode == 7 and reason in told.error()["message"], (path.name, told.stderr)
    # What lies beside it, or in a pool, is meant.
    made("over", "-b", "base", "-F", "qcow2")
    host_a.kvmctl("create", "x", "--import", str(made("top", "-b", "over", "-F", "qcow2")), "--dry-run")
    host_a.virsh("pool-create-as", "bases", "dir", "--target", str(tmp_path))
    host_a.kvmctl("create", "x", "--import", str(tmp_path / "elsewhere" / "far"), "--dry-run")
    host_a.virsh("pool-destroy", "bases")
