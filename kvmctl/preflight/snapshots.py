"""What of a guest a snapshot, or a copy of it, could not hold: each thing named, before anything is touched."""

from typing import Literal, NamedTuple

from kvmctl.model import xml

Kind = Literal["internal", "external"]


class Disk(NamedTuple):
    """A writable or read-only disk of a domain, as far as snapshots and copies must know it.

    ``path`` is None where the disk is no file or block device of the host (network storage, empty drive).
    """

    target: str
    path: str | None
    kind: str
    format: str
    readonly: bool
    shareable: bool
    device: str
    transient: bool

    @property
    def written(self) -> bool:
        """Whether the guest can change it, so that a snapshot must hold it."""
        return not self.readonly and self.device in ("disk", "lun")


def disks_of(domain: xml.Element) -> list[Disk]:
    """Every disk in a whole ``<domain>``, in its order."""
    return [_disk(element) for element in domain.findall("devices/disk")]


def _disk(element: xml.Element) -> Disk:
    source = element.find("source")
    driver = element.find("driver")
    target = element.find("target")
    path = None
    if source is not None:
        path = source.get("file") or source.get("dev")
    return Disk(
        target=target.get("dev", "?") if target is not None else "?",
        path=path,
        kind=element.get("type", "file"),
        format=driver.get("type", "raw") if driver is not None else "raw",
        readonly=element.find("readonly") is not None or element.get("device") in ("cdrom", "floppy"),
        shareable=element.find("shareable") is not None,
        device=element.get("device", "disk"),
        transient=element.find("transient") is not None,
    )


def has_nvram(domain: xml.Element) -> bool:
    """Whether the guest has UEFI variables, which libvirt 9.0 puts into no snapshot."""
    loader = domain.find("os/loader")
    return (
        domain.find("os/nvram") is not None
        or (loader is not None and loader.get("type") == "pflash")
        or (domain.find("os") is not None and domain.find("os[@firmware='efi']") is not None)
    )


def against_memory(domain: xml.Element) -> list[str]:
    """Why this guest's memory can be kept in no snapshot and no copy: one sentence each, empty where it can.

    These devices have state outside of QEMU, so a moment without it would be half a moment.
    """
    found: list[str] = []
    for element in domain.findall("devices/hostdev"):
        found.append(f"the passed-through {element.get('type', 'host')} device's state cannot be read")
    for element in domain.findall("devices/interface[@type='hostdev']"):
        mac = element.find("mac")
        found.append(f"the passed-through NIC {mac.get('address') if mac is not None else ''} has state of its own")
    if domain.find("devices/tpm") is not None:
        found.append("its TPM keeps its state outside of the snapshot")
    for element in domain.findall("devices/filesystem"):
        driver = element.find("driver")
        kind = driver.get("type", "path") if driver is not None else "path"
        tag = element.find("target")
        name = tag.get("dir", "?") if tag is not None else "?"
        found.append(f"the shared folder {name} ({kind}) is changed from outside")
    return found


def against_disks(domain: xml.Element, kind: Kind) -> list[str]:
    """Why this guest's disks cannot be in a snapshot of this kind: one sentence each."""
    found: list[str] = []
    for disk in disks_of(domain):
        if not disk.written:
            continue
        if disk.transient:
            found.append(f"the disk {disk.target} is transient")
        elif disk.shareable:
            found.append(f"the disk {disk.target} is shared with other guests, which would not go back with this one")
        elif disk.device == "lun":
            found.append(f"the disk {disk.target} passes SCSI commands through to a device")
        elif kind == "internal" and disk.format != "qcow2":
            found.append(f"the disk {disk.target} is {disk.format}, and only qcow2 holds snapshots inside")
        elif kind == "external" and disk.kind not in ("file", "block"):
            found.append(f"the disk {disk.target} is {disk.kind} storage, and kvmctl can only put an overlay on a file")
    return found


def has_written_disks(domain: xml.Element) -> bool:
    """Whether there is anything on disk that a snapshot could hold."""
    return any(disk.written for disk in disks_of(domain))
