"""Devices that ``create --device`` adds beside disks and cards."""

from dataclasses import dataclass, field

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

_WATCHDOG_ACTIONS = ("reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi")
_HINT = "one of watchdog[,action=A], vsock, panic, serial, parallel, rng, share=DIR:TAG[,driver=virtiofs][,readonly]"


@dataclass(frozen=True)
class ExtraDevice:
    """One device: its element, and whether the guest's memory must be shared with another process for it."""

    element: xml.Element = field(compare=False)
    shared_memory: bool = False


def parse_device(text: str, arch: str = "x86_64") -> ExtraDevice:
    """What ``--device`` names. Raises UsageProblem."""
    head, *options = text.split(",")
    kind, _, value = head.partition("=")
    given = dict(option.partition("=")[::2] for option in options)
    if len(given) != len(options):
        raise UsageProblem(f"--device {text[:80]!a}: an option is given twice")
    made = _make(kind, value, given, arch, text)
    if given:
        raise UsageProblem(f"--device {text[:80]!a}: no option {min(given)[:30]!a}", _HINT)
    return made


def _make(kind: str, value: str, given: dict[str, str], arch: str, text: str) -> ExtraDevice:
    if kind == "share":
        return _share(value, given, text)
    if value:
        raise UsageProblem(f"--device {text[:80]!a}: {kind[:30]} takes no value", _HINT)
    if kind == "watchdog":
        action = given.pop("action", "reset")
        if action not in _WATCHDOG_ACTIONS:
            raise UsageProblem(
                f"--device {text[:80]!a}: action={action[:30]!a} is none of {', '.join(_WATCHDOG_ACTIONS)}"
            )
        model = "i6300esb" if arch in ("x86_64", "i686") else "diag288" if arch == "s390x" else "i6300esb"
        return ExtraDevice(xml.new("watchdog", model=model, action=action))
    if kind == "vsock":
        vsock = xml.new("vsock", model="virtio")
        xml.add(vsock, "cid", auto="yes")
        return ExtraDevice(vsock)
    if kind == "panic":
        # On x86 it is an ISA device; the PCI one is newer than libvirt 9.0.
        return ExtraDevice(xml.new("panic", model="isa" if arch in ("x86_64", "i686") else None))
    if kind in ("serial", "parallel"):
        return ExtraDevice(xml.new(kind, type_="pty"))
    if kind == "rng":
        rng = xml.new("rng", model="virtio")
        xml.add(rng, "backend", "/dev/urandom", model="random")
        return ExtraDevice(rng)
    raise UsageProblem(f"--device {text[:80]!a}: no device {kind[:30]!a}", _HINT)


def _share(value: str, given: dict[str, str], text: str) -> ExtraDevice:
    folder, _, tag = value.rpartition(":")
    # 31 bytes is what 9p's configuration space and virtiofs's both hold.
    if not folder.startswith("/") or not tag or len(tag) > 31 or not all(c.isalnum() or c in "_-." for c in tag):
        raise UsageProblem(
            f"--device {text[:80]!a}: a share is a directory of the host from / and a tag of up to 31 letters",
            "write it like share=/srv/data:data",
        )
    driver = given.pop("driver", "9p")
    if driver not in ("9p", "virtiofs"):
        raise UsageProblem(f"--device {text[:80]!a}: driver={driver[:30]!a} is none of 9p, virtiofs")
    readonly = given.pop("readonly", None)
    if readonly is not None and driver == "virtiofs":
        raise UsageProblem(
            f"--device {text[:80]!a}: virtiofs has no readonly", "mount it read-only in the guest, or use 9p"
        )
    share = xml.new("filesystem", type_="mount", accessmode="passthrough" if driver == "virtiofs" else "mapped")
    if driver == "virtiofs":
        xml.add(share, "driver", type_="virtiofs")
    xml.add(share, "source", dir=folder)
    xml.add(share, "target", dir=tag)
    if readonly is not None:
        xml.add(share, "readonly")
    return ExtraDevice(share, shared_memory=driver == "virtiofs")


def add_to(domain: xml.Element, extras: tuple[ExtraDevice, ...]) -> None:
    """Put them into a whole ``<domain>``, with shared memory where one needs it."""
    devices = domain.find("devices")
    assert devices is not None, "the domain has <devices>"
    for extra in extras:
        devices.append(extra.element)
    if any(extra.shared_memory for extra in extras):
        backing = domain.find("memoryBacking")
        if backing is None:
            backing = xml.add(domain, "memoryBacking")
        xml.add(backing, "source", type_="memfd")
        xml.add(backing, "access", mode="shared")
