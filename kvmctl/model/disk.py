"""Disks: what a user asks for with ``--disk``, and the ``<disk>`` that libvirt reads."""

from typing import Literal, NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.units import GIB, MIB, parse_size

BUSES = ("virtio", "scsi", "sata", "ide", "usb", "fdc")
FORMATS = ("qcow2", "raw")
CACHES = ("default", "none", "writethrough", "writeback", "directsync", "unsafe")
DISCARDS = ("ignore", "unmap")
# What a device's name begins with on each bus (libvirt's virDomainDiskDefAssignAddress).
PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}
SMALLEST_DISK = MIB
# What qcow2 can address with its usual clusters of 64 KiB (QCOW_MAX_L1_SIZE in QEMU's block/qcow2.h).
LARGEST_DISK = 2 * 1024**5

_HINT = (
    "write it SIZE or PATH, then ,bus= ,format= ,cache= ,pool= ,discard= ,serial= ,iops= ,bps= ,passphrase-file= "
    ",readonly ,shareable"
)


class DiskTuning(NamedTuple):
    """What is said of a disk beside where its bytes are. None: what fits the guest.

    ``iops`` and ``bps`` limit operations and bytes a second, reading and writing together; 0 is no limit.
    """

    bus: str | None = None
    cache: str | None = None
    discard: str | None = None
    serial: str | None = None
    readonly: bool = False
    shareable: bool = False
    iops: int | None = None
    bps: int | None = None
    device: Literal["disk", "cdrom"] = "disk"


_PLAIN = DiskTuning()


class NewDisk(NamedTuple):
    """A volume to be made, of ``size_bytes``, in ``pool``; LUKS where there is a ``passphrase_file``."""

    size_bytes: int
    tuning: DiskTuning = DiskTuning()
    format: str | None = None
    pool: str | None = None
    passphrase_file: str | None = None


class ExistingDisk(NamedTuple):
    """A file or device of the hypervisor's, used as it is."""

    path: str
    tuning: DiskTuning = DiskTuning()
    format: str | None = None


DiskRequest = NewDisk | ExistingDisk


def parse_disk(text: str) -> DiskRequest:
    """``SIZE|PATH[,bus=…,format=…,cache=…,pool=…,discard=…,serial=…,readonly,shareable]``.

    What begins with a digit is a size (bare numbers are GiB), everything else is a path; a relative path
    may begin with ``./``. Raises UsageProblem.
    """
    head, *options = text.split(",")
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key in given:
            raise UsageProblem(f"--disk {text[:100]!a}: {key[:30]!a} is given twice", _HINT)
        if not equals and key not in ("readonly", "shareable"):
            raise UsageProblem(f"--disk {text[:100]!a}: {key[:30]!a} needs a value", _HINT)
        given[key] = value if equals else "yes"
    size = given.pop("size", None)
    path = given.pop("path", None)
    if "=" in head and not head.startswith(("/", ".")):
        key, _, value = head.partition("=")
        size, path, head = (value, path, "") if key == "size" else (size, value if key == "path" else path, "")
        if key not in ("size", "path"):
            raise UsageProblem(f"--disk {text[:100]!a} begins with neither a size nor a path", _HINT)
    if head:
        size, path = (head, path) if head[0].isdigit() else (size, head)
    if (size is None) == (path is None):
        raise UsageProblem(f"--disk {text[:100]!a} names neither a size nor a path, or both", _HINT)
    tuning = _tuning(given, text)
    format_ = _one_of(given, "format", FORMATS, text)
    pool = given.pop("pool", None)
    passphrase_file = given.pop("passphrase-file", None)
    if given:
        raise UsageProblem(f"--disk {text[:100]!a}: no option {next(iter(given))[:30]!a}", _HINT)
    if size is not None:
        bytes_ = parse_size(size, GIB)
        if bytes_ < SMALLEST_DISK:
            raise UsageProblem(f"--disk {text[:100]!a}: a disk has at least 1 MiB")
        if bytes_ > LARGEST_DISK:
            raise UsageProblem(f"--disk {text[:100]!a}: a disk has at most 2 PiB", "a number without a unit is GiB")
        if passphrase_file == "":
            raise UsageProblem(f"--disk {text[:100]!a}: passphrase-file= names no file")
        return NewDisk(-(-bytes_ // 512) * 512, tuning, format_, pool, passphrase_file)
    if pool is not None:
        raise UsageProblem(f"--disk {text[:100]!a}: pool= goes with a size, not with a path")
    if passphrase_file is not None:
        raise UsageProblem(f"--disk {text[:100]!a}: passphrase-file= goes with a size: only a new disk is encrypted")
    assert path is not None
    if not path or not path.isprintable():
        raise UsageProblem(f"--disk {text[:100]!a}: the path is empty or has control characters")
    return ExistingDisk(path, tuning, format_)


def _tuning(given: dict[str, str], text: str) -> DiskTuning:
    serial = given.pop("serial", None)
    if serial is not None and (not serial or len(serial) > 36 or not all(c.isalnum() or c in "_-. +" for c in serial)):
        raise UsageProblem(f"--disk {text[:100]!a}: a serial is up to 36 letters, digits, '_', '-', '.' or '+'")
    device = _one_of(given, "device", ("disk", "cdrom"), text) or "disk"
    readonly = _one_of(given, "readonly", ("yes", "no"), text) == "yes"
    return DiskTuning(
        bus=_one_of(given, "bus", BUSES, text),
        cache=_one_of(given, "cache", CACHES, text),
        discard=_one_of(given, "discard", DISCARDS, text),
        serial=serial,
        readonly=readonly or device == "cdrom",
        shareable=_one_of(given, "shareable", ("yes", "no"), text) == "yes",
        iops=_limit(given, "iops", text),
        bps=_limit(given, "bps", text),
        device="cdrom" if device == "cdrom" else "disk",
    )


def _limit(given: dict[str, str], key: str, text: str) -> int | None:
    value = given.pop(key, None)
    if value is None:
        return None
    if value == "0":
        return 0
    if key == "bps":
        return parse_size(value)
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UsageProblem(f"--disk {text[:100]!a}: {key}={value[:30]!a} is no number of operations a second")
    return int(value)


def _one_of(given: dict[str, str], key: str, known: tuple[str, ...], text: str) -> str | None:
    value = given.pop(key, None)
    if value is not None and value not in known:
        raise UsageProblem(f"--disk {text[:100]!a}: {key}={value[:30]!a} is none of {', '.join(known)}")
    return value


class Source(NamedTuple):
    """Where a disk's bytes are, in libvirt's terms: ``file`` or ``block`` with a path, or ``volume`` in a pool."""

    kind: Literal["file", "block", "volume"]
    path: str
    pool: str | None = None
    volume: str | None = None


def disk_element(
    source: Source | None,
    target: str,
    bus: str,
    format_: str = "raw",
    tuning: DiskTuning = _PLAIN,
    boot: int | None = None,
) -> xml.Element:
    """``<disk>``; without a source an empty drive."""
    disk = xml.new("disk", type_=source.kind if source else "file", device=tuning.device)
    discard = tuning.discard or ("unmap" if tuning.device == "disk" and not tuning.readonly else None)
    xml.add(disk, "driver", name="qemu", type_=format_, cache=tuning.cache, discard=discard)
    if source is not None:
        if source.kind == "volume":
            xml.add(disk, "source", pool=source.pool, volume=source.volume)
        else:
            xml.add(disk, "source", **{"file" if source.kind == "file" else "dev": source.path})
    xml.add(disk, "target", dev=target, bus=bus)
    if tuning.readonly:
        xml.add(disk, "readonly")
    if tuning.shareable:
        xml.add(disk, "shareable")
    if tuning.serial:
        xml.add(disk, "serial", tuning.serial)
    set_limits(disk, tuning.iops, tuning.bps)
    if boot is not None:
        xml.add(disk, "boot", order=boot)
    return disk


def set_limits(disk: xml.Element, iops: int | None, bps: int | None) -> None:
    """Set the limits that are given in the ``<disk>``'s ``<iotune>``, leaving its others; 0 takes one away."""
    for tag, value in (("total_iops_sec", iops), ("total_bytes_sec", bps)):
        if value is None:
            continue
        tune = disk.find("iotune")
        if tune is None:
            tune = xml.add(disk, "iotune")
        for old in tune.findall(tag):
            tune.remove(old)
        if value:
            xml.add(tune, tag, value)
        if not len(tune):
            disk.remove(tune)


def next_target(bus: str, taken: set[str]) -> str:
    """The first free device name on ``bus`` (``vda``, ``vdb`` … ``vdz``, ``vdaa``), and add it to ``taken``."""
    prefix = PREFIXES[bus]
    for index in range(26 * 27):
        letters = chr(97 + index) if index < 26 else chr(96 + index // 26) + chr(97 + index % 26)
        if prefix + letters not in taken:
            taken.add(prefix + letters)
            return prefix + letters
    raise UsageProblem(f"no free device name left on the {bus} bus")
