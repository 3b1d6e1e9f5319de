"""Devices beside disks and cards: what ``--device`` and ``device attach`` name, and what a VM has of them."""

import re
from typing import NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import mdev, xml

_WATCHDOG_ACTIONS = ("reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi")
_HINT = (
    "one of watchdog[,action=A], vsock, panic, serial, parallel, rng, share=DIR:TAG[,driver=virtiofs][,readonly], "
    "mdev=UUID[,display=on]"
)
# What each kind is in a <domain>, in the order of a list.
_TAGS = {
    "watchdog": "watchdog",
    "vsock": "vsock",
    "panic": "panic",
    "serial": "serial",
    "parallel": "parallel",
    "rng": "rng",
    "share": "filesystem",
    "mdev": "hostdev",
}
KINDS = tuple(_TAGS)


class ExtraDevice(NamedTuple):
    """One device: its element, and whether the guest's memory must be shared with another process for it.

    ``mdev`` is the UUID of the host's mediated device that it is.
    """

    kind: str
    element: xml.Element
    shared_memory: bool = False
    mdev: str | None = None


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
    if kind == "mdev":
        display = given.pop("display", "off")
        if display not in ("on", "off"):
            raise UsageProblem(f"--device {text[:80]!a}: display={display[:30]!a} is neither on nor off")
        uuid = mdev.parse_uuid(value)
        return ExtraDevice("mdev", mdev.hostdev_element(uuid, display=display == "on"), mdev=uuid)
    if value:
        raise UsageProblem(f"--device {text[:80]!a}: {kind[:30]} takes no value", _HINT)
    if kind == "watchdog":
        action = given.pop("action", "reset")
        if action not in _WATCHDOG_ACTIONS:
            raise UsageProblem(
                f"--device {text[:80]!a}: action={action[:30]!a} is none of {', '.join(_WATCHDOG_ACTIONS)}"
            )
        model = "i6300esb" if arch in ("x86_64", "i686") else "diag288" if arch == "s390x" else "i6300esb"
        return ExtraDevice(kind, xml.new("watchdog", model=model, action=action))
    if kind == "vsock":
        vsock = xml.new("vsock", model="virtio")
        xml.add(vsock, "cid", auto="yes")
        return ExtraDevice(kind, vsock)
    if kind == "panic":
        # On x86 it is an ISA device; the PCI one is newer than libvirt 9.0.
        return ExtraDevice(kind, xml.new("panic", model="isa" if arch in ("x86_64", "i686") else None))
    if kind in ("serial", "parallel"):
        return ExtraDevice(kind, xml.new(kind, type_="pty"))
    if kind == "rng":
        rng = xml.new("rng", model="virtio")
        xml.add(rng, "backend", "/dev/urandom", model="random")
        return ExtraDevice(kind, rng)
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
    return ExtraDevice("share", share, shared_memory=driver == "virtiofs")


def add_to(domain: xml.Element, extras: tuple[ExtraDevice, ...]) -> None:
    """Put them into a whole ``<domain>``, with shared memory where one needs it."""
    devices = domain.find("devices")
    assert devices is not None, "the domain has <devices>"
    for extra in extras:
        devices.append(extra.element)
    if any(extra.shared_memory for extra in extras):
        share_memory(domain)


def memory_is_shared(domain: xml.Element) -> bool:
    """Whether other processes of the host can reach the guest's memory, as virtiofs needs it."""
    return domain.find("memoryBacking/access[@mode='shared']") is not None


def share_memory(domain: xml.Element) -> None:
    """Let them, from the guest's next start."""
    if memory_is_shared(domain):
        return
    backing = domain.find("memoryBacking")
    if backing is None:
        backing = xml.add(domain, "memoryBacking")
    if backing.find("source") is None:
        xml.add(backing, "source", type_="memfd")
    for old in backing.findall("access"):
        backing.remove(old)
    xml.add(backing, "access", mode="shared")


class Attached(NamedTuple):
    """A device that a VM has. ``name`` is unique in the VM: ``rng0``, ``share=data``, ``mdev=UUID``."""

    name: str
    kind: str
    detail: str | None
    element: xml.Element


def attached(domain: xml.Element | None) -> list[Attached]:
    """The devices of these kinds in a ``<domain>``, numbered as it lists them."""
    found: list[Attached] = []
    if domain is None:
        return found
    for kind, tag in _TAGS.items():
        elements = domain.findall(f"devices/{tag}")
        if kind == "mdev":
            elements = [element for element in elements if mdev.uuid_of(element)]
        for number, element in enumerate(elements):
            tagged = element.find("target") if kind == "share" else None
            if kind == "mdev":
                name = f"mdev={mdev.uuid_of(element)}"
            elif tagged is not None and tagged.get("dir"):
                name = f"share={tagged.get('dir')}"
            else:
                name = f"{kind}{number}"
            found.append(Attached(name, kind, _detail(kind, element), element))
    return found


def _detail(kind: str, element: xml.Element) -> str | None:
    """What tells it from others of its kind."""
    source, cid = element.find("source"), element.find("cid")
    if kind == "watchdog":
        return f"{element.get('model')}, {element.get('action', 'reset')}"
    if kind == "vsock" and cid is not None:
        return f"cid {cid.get('address')}" if cid.get("address") else None
    if kind == "share" and source is not None:
        driver = element.find("driver[@type='virtiofs']")
        mode = "virtiofs" if driver is not None else "9p"
        return f"{source.get('dir')}, {mode}{', readonly' if element.find('readonly') is not None else ''}"
    if kind == "rng":
        return element.findtext("backend")
    if kind in ("serial", "parallel"):
        return (source.get("path") if source is not None else None) or element.get("type")
    return element.get("model")


def text_of(device: Attached) -> str | None:
    """What ``--device`` would say for its like; None where it has no words for it."""
    element, text = device.element, device.kind
    if device.kind == "mdev":
        text = device.name + (",display=on" if element.get("display") == "on" else "")
    elif device.kind == "share":
        source = element.find("source")
        folder = source.get("dir", "") if source is not None else ""
        virtiofs = element.find("driver[@type='virtiofs']") is not None
        option = ",driver=virtiofs" if virtiofs else ",readonly" if element.find("readonly") is not None else ""
        text = f"share={folder}:{device.name.removeprefix('share=')}{option}"
    elif device.kind == "watchdog":
        text = f"watchdog,action={element.get('action', 'reset')}".removesuffix(",action=reset")
    try:
        like = parse_device(text).element
    except UsageProblem:
        return None
    return text if like.get("type") == element.get("type") else None


def chosen(domain: xml.Element) -> list[Attached]:
    """Those of attached() that somebody asked for: not the first serial port and RNG, which guests have anyway."""
    found = attached(domain)
    # libvirt gives a newer q35 its iTCO watchdog by itself.
    own = [d for d in found if not (d.kind == "watchdog" and d.element.get("model") == "itco")]
    return [device for device in own if device.name not in ("serial0", "rng0")]


def select(devices: list[Attached], text: str) -> Attached | None:
    """The one that ``text`` names: its name, or its kind where it is the only one. None where there is none.

    Raises UsageProblem for what can be no name, and where a kind names several.
    """
    if not re.fullmatch(rf"({'|'.join(KINDS)})([0-9]{{0,3}}|=.{{1,200}})", text):
        raise UsageProblem(f"{text[:80]!a} names no device", "write its name in 'kvmctl device list', like rng0")
    hits = [device for device in devices if text in (device.name, device.kind)]
    if len(hits) > 1:
        names = ", ".join(device.name for device in hits)
        raise UsageProblem(f"there are several: {names}", "name one of them")
    return hits[0] if hits else None
