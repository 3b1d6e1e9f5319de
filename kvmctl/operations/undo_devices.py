"""The running guest's cards and disks, when a definition from before is brought back."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import libvirt

from kvmctl.connection import is_missing
from kvmctl.errors import TimedOut
from kvmctl.model import xml
from kvmctl.operations.disks import HOTPLUG_BUSES
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo

# A guest lets go of a device within a second; an emulated one that is busy takes some more.
UNPLUG_SECONDS = 30.0
# A request is lost on a guest that has just begun to boot.
ASK_AGAIN_SECONDS = 5.0
_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


@dataclass(frozen=True)
class Devices:
    """What is pulled out of the running guest and plugged into it: each a name for people and the element."""

    pulled: tuple[tuple[str, xml.Element], ...] = ()
    plugged: tuple[tuple[str, xml.Element], ...] = ()

    def words(self) -> str:
        """ "the disk vdb is pulled out of the running guest", or nothing."""
        parts = []
        for those, verb in ((self.pulled, "pulled out of"), (self.plugged, "plugged into")):
            if those:
                names = ", ".join(name for name, _ in those)
                parts.append(f"{names} {'is' if len(those) == 1 else 'are'} {verb} the running guest")
        return " and ".join(parts)


def following(live: xml.Element, saved: xml.Element, then: xml.Element) -> Devices:
    """What makes the running guest follow the step from the definition ``saved`` back to ``then``.

    Only what both definitions had alike before: a card that was plugged in for this run alone stays.
    """
    has, had, wanted = _devices(live), _devices(saved), _devices(then)
    pulled = tuple((name, has[name]) for name in had if name in has and name not in wanted)
    plugged = tuple((name, wanted[name]) for name in wanted if name not in had and name not in has)
    return Devices(pulled, plugged)


def _devices(domain: xml.Element) -> dict[str, xml.Element]:
    """The cards by MAC, and the disks that can be plugged by target."""
    found = {}
    for card in domain.iterfind("devices/interface"):
        mac = card.find("mac")
        if mac is not None:
            found[f"the card {mac.get('address', '').lower()}"] = card
    for disk in domain.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("bus") in HOTPLUG_BUSES:
            found[f"the disk {target.get('dev', '')}"] = disk
    return found


def follow(domain: libvirt.virDomain, devices: Devices, undo: Undo, progress: Progress) -> None:
    """Do it. Raises TimedOut where the guest does not let go of something."""
    for name, element in devices.pulled:
        progress.step(f"waiting for {domain.name()} to let go of {name}")
        text = xml.raw(element)
        _pull(domain, name, text)
        undo.add(f"plug {name} in again", _plugger(domain, text))
    for name, element in devices.plugged:
        bare = xml.parse(xml.raw(element), "device")
        for place in bare.findall("address[@type='pci']"):
            # In the running guest it may be taken.
            bare.remove(place)
        domain.attachDeviceFlags(xml.raw(bare), _LIVE)
        undo.add(f"pull {name} out again", _puller(domain, name, xml.raw(bare)))


def _pull(domain: libvirt.virDomain, name: str, text: str) -> None:
    until, again = time.monotonic() + UNPLUG_SECONDS, 0.0
    # libvirt itself waits 5 s and then returns as if all were well; only its XML tells.
    while name in _devices(xml.parse(domain.XMLDesc(0), "domain")):
        if time.monotonic() > again:
            _ask(domain, text)
            again = time.monotonic() + ASK_AGAIN_SECONDS
        if time.monotonic() > until:
            raise TimedOut(
                f"the guest {domain.name()} did not let go of {name} in {UNPLUG_SECONDS:g} s",
                "is its system up? Nothing was changed; try again",
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
