"""The running guest's devices, when a definition from before is brought back."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import libvirt

from kvmctl.connection import Hypervisor, is_missing
from kvmctl.errors import Refused, TimedOut
from kvmctl.model import pci, usb, xml
from kvmctl.operations import disk_media
from kvmctl.operations.disks import HOTPLUG_BUSES, disks_of, source_of
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo

# A guest lets go of a device within a second; an emulated one that is busy takes some more.
UNPLUG_SECONDS = 30.0
# A request is lost on a guest that has just begun to boot.
ASK_AGAIN_SECONDS = 5.0
_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


@dataclass(frozen=True)
class Turn:
    """Something about a device that stays: a card's cable, or (``drive``) what is in a CD drive."""

    words: str
    before: xml.Element
    after: xml.Element
    drive: str | None = None


@dataclass(frozen=True)
class Devices:
    """What is pulled out of the running guest and plugged into it, each by its name and element; and what is turned."""

    pulled: tuple[tuple[str, xml.Element], ...] = ()
    plugged: tuple[tuple[str, xml.Element], ...] = ()
    turns: tuple[Turn, ...] = ()

    def words(self) -> str:
        """ "the disk vdb is pulled out of the running guest", or nothing."""
        parts = [turn.words for turn in self.turns]
        for those, verb in ((self.pulled, "pulled out of"), (self.plugged, "plugged into")):
            if those:
                names = ", ".join(name for name, _ in those)
                parts.append(f"{names} {'is' if len(those) == 1 else 'are'} {verb} the running guest")
        return ", and ".join(parts)


def following(live: xml.Element, saved: xml.Element, then: xml.Element) -> Devices:
    """What makes the running guest follow the step from the definition ``saved`` back to ``then``.

    Only what both definitions had alike before: a card that was plugged in for this run alone stays.
    """
    has, had, wanted = _devices(live), _devices(saved), _devices(then)
    pulled = tuple((name, has[name]) for name in had if name in has and name not in wanted)
    plugged = tuple((name, wanted[name]) for name in wanted if name not in had and name not in has)
    return Devices(pulled, plugged, (*_cables(live, saved, then), *_discs(live, saved, then)))


def _cables(live: xml.Element, saved: xml.Element, then: xml.Element) -> list[Turn]:
    """The cables that were plugged in or pulled out in both definitions."""
    has, had, wanted = _cards(live), _cards(saved), _cards(then)
    found = []
    for name in had:
        if name not in has or name not in wanted:
            continue
        up = _is_up(wanted[name])
        if _is_up(had[name]) == up or _is_up(has[name]) == up:
            continue
        after = deepcopy(has[name])
        for link in after.findall("link"):
            after.remove(link)
        xml.add(after, "link", state="up" if up else "down")
        words = f"the cable of {name} is {'plugged into' if up else 'pulled out of'} the running guest"
        found.append(Turn(words, has[name], after))
    return found


def _is_up(card: xml.Element) -> bool:
    link = card.find("link")
    return link is None or link.get("state") != "down"


def _discs(live: xml.Element, saved: xml.Element, then: xml.Element) -> list[Turn]:
    """The CDs that were put into a drive or taken out in both definitions."""
    has, had, wanted = disks_of(live), disks_of(saved), disks_of(then)
    found = []
    for target in had:
        if had[target].get("device") != "cdrom" or target not in has or target not in wanted:
            continue
        now, before = source_of(had[target]), source_of(wanted[target])
        # What was put in for this run alone stays.
        if now == before or source_of(has[target]) != now:
            continue
        after = deepcopy(has[target])
        disk_media.refill(after, wanted[target])
        words = f"the drive {target} of the running guest {'is emptied' if before is None else f'gets {before}'}"
        found.append(Turn(words, has[target], after, target))
    return found


def _cards(domain: xml.Element) -> dict[str, xml.Element]:
    found = {}
    for card in domain.iterfind("devices/interface"):
        mac = card.find("mac")
        if mac is not None:
            found[f"the card {mac.get('address', '').lower()}"] = card
    return found


def _devices(domain: xml.Element) -> dict[str, xml.Element]:
    """The cards by MAC, the disks that can be plugged by target, and the host's devices by what they are there."""
    found = _cards(domain)
    for address, element in pci.hostdev_elements(domain):
        if element.tag == "hostdev":
            found[f"the PCI device {address}"] = element
    for element in usb.hostdevs(domain):
        found[f"the USB device {usb.told(element)}"] = element
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("bus") in HOTPLUG_BUSES:
            found[f"the disk {target.get('dev', '')}"] = disk
    return found


def follow(
    hypervisor: Hypervisor,
    domain: libvirt.virDomain,
    devices: Devices,
    undo: Undo,
    progress: Progress,
    timeout: float = UNPLUG_SECONDS,
) -> None:
    """Do it. Raises TimedOut where the guest does not let go of something, Refused where it has locked a drive."""
    for turn in devices.turns:
        _turn(hypervisor, domain, turn)
        undo.add("the running guest's devices", _turner(domain, turn))
    for name, element in devices.pulled:
        progress.step(f"waiting for {domain.name()} to let go of {name}")
        text = xml.raw(element)
        _pull(domain, name, text, timeout)
        undo.add(f"plug {name} in again", _plugger(domain, text))
    for name, element in devices.plugged:
        bare = xml.parse(xml.raw(element), "device")
        for place in [*bare.findall("address[@type='pci']"), *bare.findall("alias")]:
            # In the running guest it may be taken.
            bare.remove(place)
        for target in bare.findall("target") if bare.tag == "interface" else ():
            bare.remove(target)
        domain.attachDeviceFlags(xml.raw(bare), _LIVE)
        undo.add(f"pull {name} out again", _puller(domain, name, xml.raw(bare)))


def _turn(hypervisor: Hypervisor, domain: libvirt.virDomain, turn: Turn) -> None:
    if turn.drive is None:
        domain.updateDeviceFlags(xml.raw(turn.after), _LIVE)
        return
    try:
        disk_media.update(hypervisor, domain, turn.drive, xml.raw(turn.after), _LIVE)
    except Refused as error:
        error.hint = "unmount the disc in the guest first"
        raise


def _turner(domain: libvirt.virDomain, turn: Turn) -> Callable[[], object]:
    return lambda: domain.updateDeviceFlags(xml.raw(turn.before), _LIVE)


def _pull(domain: libvirt.virDomain, name: str, text: str, timeout: float = UNPLUG_SECONDS) -> None:
    until, again = time.monotonic() + timeout, 0.0
    # libvirt itself waits 5 s and then returns as if all were well; only its XML tells.
    while name in _devices(xml.parse(domain.XMLDesc(0), "domain")):
        if time.monotonic() > again:
            _ask(domain, text)
            again = time.monotonic() + ASK_AGAIN_SECONDS
        if time.monotonic() > until:
            raise TimedOut(
                f"the guest {domain.name()} did not let go of {name} in {timeout:g} s",
                "is its system up? Nothing was changed; try again, with a longer --timeout",
            )
        time.sleep(0.1)


def _ask(domain: libvirt.virDomain, text: str) -> None:
    try:
        domain.detachDeviceFlags(text, _LIVE)
    except libvirt.libvirtError as error:
        # QEMU refuses a second request while the first is on its way; that it is gone already is what is wanted.
        if "in the process of unplug" not in (error.get_error_message() or "") and not is_missing(error):
            raise


def _plugger(domain: libvirt.virDomain, text: str) -> Callable[[], object]:
    return lambda: domain.attachDeviceFlags(text, _LIVE)


def _puller(domain: libvirt.virDomain, name: str, text: str) -> Callable[[], object]:
    return lambda: _pull(domain, name, text)
