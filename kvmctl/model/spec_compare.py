"""What of an existing VM is not as its spec says.

Only what the spec says counts: a key, or a part of one (a disk's ``cache=``), that it leaves out may be
anything. What cloud-init was told at first boot (keys, password, host name) is in the guest since, and is
not compared.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvmctl.model import extras, spec_tuning, xml
from kvmctl.model.disk import DiskRequest, ExistingDisk, NewDisk, parse_disk
from kvmctl.model.forward import parse_forward, written
from kvmctl.model.metadata import Forward
from kvmctl.model.nic import NetworkNic, Nic, parse_nic
from kvmctl.model.pci import PciSelector
from kvmctl.model.spec import Spec, size_text
from kvmctl.model.spec_seen import Seen, SeenDisk, SeenNic
from kvmctl.model.units import human_size


@dataclass(frozen=True)
class Difference:
    """``key`` is ``now`` and shall be ``wanted``; ``how``: apply changes it, or only a new VM could have it."""

    key: str
    now: str
    wanted: str
    how: Literal["change", "recreate"]
    hint: str | None = None


def compare(spec: Spec, seen: Seen) -> tuple[Difference, ...]:
    """Every key in which ``seen`` is not as ``spec`` says, in the order of a spec's keys."""
    return tuple(found for check in _CHECKS for found in check(spec, seen))


def wanted_forwards(spec: Spec) -> tuple[Forward, ...]:
    """The ports that ``spec`` publishes."""
    return tuple(forward for text in spec.publish or () for forward in parse_forward(text))


def wanted_nics(spec: Spec) -> tuple[Nic, ...]:
    """The cards that ``spec`` asks for; empty for ``none``, and where it says nothing of them."""
    parsed = (parse_nic(text, spec.nic_model) for text in spec.networks or ())
    return tuple(nic for nic in parsed if nic is not None)


# ---------------------------------------------------------------- what apply changes


def _texts(spec: Spec, seen: Seen) -> Iterable[Difference]:
    for key, now, wanted in (
        ("title", seen.view.title, spec.title),
        ("description", seen.view.description, spec.description),
    ):
        if wanted is not None and (now or "") != wanted:
            yield Difference(key, _quoted(now), _quoted(wanted), "change")


def _vcpus(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.vcpus is None:
        return
    now, most = spec.vcpus
    view = seen.view
    if view.vcpus != now or (most is not None and view.max_vcpus != most):
        shown = f"{view.vcpus},max={view.max_vcpus}" if most is not None else str(view.vcpus)
        yield Difference("vcpus", shown, f"{now},max={most}" if most is not None else str(now), "change")


def _memory(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.memory is None:
        return
    now, most = spec.memory
    view = seen.view
    if view.memory_bytes != now or (most is not None and view.max_memory_bytes != most):
        shown = human_size(view.memory_bytes)
        if most is not None:
            shown += f", at most {human_size(view.max_memory_bytes)}"
        wanted = human_size(now) + (f", at most {human_size(most)}" if most is not None else "")
        yield Difference("memory", shown, wanted, "change")


def _publish(spec: Spec, seen: Seen) -> Iterable[Difference]:
    wanted = wanted_forwards(spec)
    if spec.publish is not None and set(wanted) != set(seen.forwards):
        yield Difference("publish", _listed(map(written, seen.forwards)), _listed(map(written, wanted)), "change")


def _autostart(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.autostart is not None and spec.autostart != seen.autostart:
        yield Difference("autostart", _yes(seen.autostart), _yes(spec.autostart), "change")


def _tuning(spec: Spec, seen: Seen) -> Iterable[Difference]:
    for key, now, wanted in spec_tuning.unlike(spec, seen.tree, seen.order):
        yield Difference(key, now, wanted, "change")


def _start(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.start is not None and spec.start != seen.running:
        words = {True: "running", False: "off"}
        yield Difference("start", words[seen.running], words[spec.start], "change")


# ---------------------------------------------------------------- what only a new VM could have


def _plain(spec: Spec, seen: Seen) -> Iterable[Difference]:
    view = seen.view
    compared: tuple[tuple[str, Any, Any], ...] = (
        # A path or URL is looked at once, when the VM is made; the image it became has another name.
        ("image", seen.image, None if spec.image is None or "/" in spec.image else spec.image),
        ("cmdline", seen.cmdline, spec.cmdline),
        ("pxe", seen.pxe, spec.pxe or None),
        ("cpu", view.cpu, spec.cpu),
        ("accel", view.accel, None if spec.accel == "auto" else spec.accel),
        ("arch", view.arch, spec.arch),
        ("firmware", view.firmware, spec.firmware),
        ("tpm", seen.tpm, spec.tpm),
        ("graphics", seen.graphics, spec.graphics),
        ("graphics_listen", seen.graphics_listen or "none", spec.graphics_listen),
        ("graphics_tls", seen.graphics_tls, spec.graphics_tls),
        ("video", seen.video, spec.video),
        ("sound", seen.sound, spec.sound),
        ("os", seen.os, spec.os if seen.os is not None else None),
        ("user", seen.user, spec.user if seen.user is not None else None),
    )
    for key, now, wanted in compared:
        if wanted is not None and now != wanted:
            yield _anew(key, _shown(now), _shown(wanted))
    if spec.machine is not None and not _same_machine(spec.machine, view.machine or ""):
        yield _anew("machine", view.machine or "unknown", spec.machine)
    # linux and generic leave nothing behind that tells one from the other.
    if spec.profile is not None and (spec.profile == "windows") != (seen.profile == "windows"):
        yield _anew("profile", "windows" if seen.profile == "windows" else "linux or generic", spec.profile)


def _boot_files(spec: Spec, seen: Seen) -> Iterable[Difference]:
    for key, now, wanted in (("kernel", seen.kernel, spec.kernel), ("initrd", seen.initrd, spec.initrd)):
        if wanted is not None and now != wanted and not _uploaded(seen, now, key):
            yield _anew(key, now or "none", wanted)


def _uploaded(seen: Seen, path: str | None, what: str) -> bool:
    """Whether ``path`` is the hypervisor's own copy of a file of this machine's."""
    return any(volume.role == "other" and volume.path == path and what in volume.name for volume in seen.volumes)


def _same_machine(wanted: str, now: str) -> bool:
    # q35 is an alias of the newest pc-q35-N.N there was when the VM was made.
    return wanted == now or re.fullmatch(rf"(pc-)?{re.escape(wanted)}-[0-9]+\.[0-9]+", now) is not None


def _networks(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.networks is None:
        return
    wanted = wanted_nics(spec)
    if len(wanted) != len(seen.nics) or not all(map(_fits_nic, wanted, seen.nics)):
        hint = f"'kvmctl nic attach' and 'nic detach' change the cards of {seen.view.name}"
        yield Difference("networks", _listed(map(nic_text, seen.nics)), _listed(spec.networks), "recreate", hint)


def _fits_nic(wanted: Nic, seen: SeenNic) -> bool:
    now = seen.nic
    if type(wanted) is not type(now):
        return False
    # Whether the network is NAT is the network's own matter.
    names = [name for name in wanted._fields if name != "nat"]
    said = [(getattr(wanted, name), getattr(now, name)) for name in names]
    return all(value is None or value == has for value, has in said)


def nic_text(seen: SeenNic) -> str:
    """A card as ``--net`` would ask for its like; its MAC is left out, which no second VM can have."""
    nic = seen.nic
    if nic is None:
        return f"a card of the kind {seen.kind}"
    if isinstance(nic, NetworkNic):
        head = f"network:{nic.network}"
    else:
        place = getattr(nic, "bridge", None) or getattr(nic, "dev", None)
        mode = getattr(nic, "mode", None)
        head = f"{seen.kind}:{place}" + (f":{mode}" if mode else "") if place else seen.kind
    model = f",model={nic.model}" if nic.model else ""
    rates = "".join(f",{key}={size_text(rate)}" for key, rate in (("in", nic.inbound), ("out", nic.outbound)) if rate)
    return head + model + (f",ip={nic.ip}" if nic.ip else "") + rates


def _disks(spec: Spec, seen: Seen) -> Iterable[Difference]:
    disks = [disk for disk in seen.disks if disk.device == "disk"]
    wanted = [parse_disk(text) for text in spec.disks or ()]
    drives = [one for one in wanted if one.tuning.device == "cdrom"]
    wanted = [one for one in wanted if one.tuning.device != "cdrom"]
    if spec.import_ is not None:
        wanted.insert(0, ExistingDisk(spec.import_))
    # A disk over an image may go without a size, which is the image's own then.
    unsaid = spec.image is not None and not (wanted and isinstance(wanted[0], NewDisk))
    few = len(wanted) + unsaid
    if spec.disks is None and spec.import_ is None:
        yield from _cdrom(spec, seen)
        return
    if few != len(disks) or not _all_fit(wanted, disks):
        hint = f"'kvmctl disk attach', 'disk detach' and 'disk resize' change the disks of {seen.view.name}"
        said = [*([f"import {spec.import_}"] if spec.import_ else []), *(spec.disks or ())]
        yield Difference("disks", _listed(map(disk_text, disks)), _listed(said), "recreate", hint)
    if not drives:
        yield from _cdrom(spec, seen)


def _all_fit(wanted: Sequence[DiskRequest], disks: Sequence[SeenDisk]) -> bool:
    """Whether each wanted disk has one of its own. libvirt sorts disks by bus, so their order says nothing."""
    taken: dict[int, int] = {}

    def place(index: int, tried: set[int]) -> bool:
        for number, disk in enumerate(disks):
            if number in tried or not _fits_disk(wanted[index], disk):
                continue
            tried.add(number)
            if number not in taken or place(taken[number], tried):
                taken[number] = index
                return True
        return False

    return all(place(index, set()) for index in range(len(wanted)))


def _fits_disk(wanted: DiskRequest, disk: SeenDisk) -> bool:
    tuning = wanted.tuning
    if isinstance(wanted, NewDisk):
        if disk.capacity_bytes is not None and disk.capacity_bytes != wanted.size_bytes:
            return False
        if wanted.pool is not None and (disk.owned is None or disk.owned.pool != wanted.pool):
            return False
    elif disk.source != wanted.path:
        return False
    said = (
        (wanted.format, disk.format),
        (tuning.bus, disk.bus),
        (tuning.cache, disk.cache),
        (tuning.discard, disk.discard),
        (tuning.serial, disk.serial),
        (tuning.iops, disk.iops),
        (tuning.bps, disk.bps),
    )
    switches = tuning.readonly == disk.readonly and tuning.shareable == disk.shareable
    return switches and all(value is None or value == now for value, now in said)


def disk_text(disk: SeenDisk) -> str:
    """A disk as ``--disk`` would ask for its like: by size where kvmctl made it, else by path.

    What a new disk has by itself (qcow2, discarding what the guest trims) is left out.
    """
    size = size_text(disk.capacity_bytes) if disk.capacity_bytes else None
    made = disk.owned is not None and size is not None
    parts = [size if made and size is not None else disk.source or "an empty drive"]
    for key, value in (
        ("bus", disk.bus),
        ("format", None if made and disk.format == "qcow2" else disk.format),
        ("pool", disk.owned.pool if made and disk.owned is not None else None),
        ("cache", disk.cache),
        ("discard", None if disk.discard == "unmap" and not disk.readonly else disk.discard),
        ("serial", disk.serial),
        ("iops", disk.iops or None),
        ("bps", size_text(disk.bps) if disk.bps else None),
    ):
        parts += [f"{key}={value}"] if value else []
    parts += ["readonly"] if disk.readonly else []
    parts += ["shareable"] if disk.shareable else []
    return ",".join(parts)


def _cdrom(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.cdrom is None:
        return
    drives = [disk for disk in seen.disks if disk.device == "cdrom"]
    # Once the guest is installed its CD is ejected.
    if any(drive.source in (None, spec.cdrom) or _uploaded(seen, drive.source, "cdrom") for drive in drives):
        return
    hint = f"'kvmctl disk insert {seen.view.name}' changes the CD" if drives else None
    yield Difference("cdrom", _listed(drive.source or "empty" for drive in drives), spec.cdrom, "recreate", hint)


def _pci(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.pci is None:
        return
    chosen = [PciSelector.parse(text) for text in spec.pci]
    named = {str(one.address) for one in chosen if one.address is not None and not one.vf}
    # Which device an id, a virtual function or a group stood for was decided when the VM was made.
    exact = not any(one.group for one in chosen)
    if not named <= set(seen.view.pci) or (exact and len(chosen) != len(seen.view.pci)):
        hint = f"'kvmctl pci attach' and 'pci detach' change what {seen.view.name} has"
        yield Difference("pci", _listed(seen.view.pci), _listed(spec.pci), "recreate", hint)


def _devices(spec: Spec, seen: Seen) -> Iterable[Difference]:
    if spec.devices is None:
        return
    # Compared by what they become: "driver=9p" and "action=reset" are what is meant without them.
    wanted, there = (
        sorted(xml.raw(extras.parse_device(text).element) for text in texts) for texts in (spec.devices, seen.devices)
    )
    if wanted != there:
        hint = f"'kvmctl device attach' and 'device detach' change what {seen.view.name} has"
        yield Difference("devices", _listed(seen.devices), _listed(spec.devices), "recreate", hint)


_CHECKS: tuple[Callable[[Spec, Seen], Iterable[Difference]], ...] = (
    _texts,
    _vcpus,
    _memory,
    _plain,
    _boot_files,
    _disks,
    _networks,
    _publish,
    _pci,
    _devices,
    _tuning,
    _autostart,
    _start,
)


def _anew(key: str, now: str, wanted: str) -> Difference:
    return Difference(key, now, wanted, "recreate")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _shown(value: Any) -> str:
    return "none" if value is None else _yes(value) if isinstance(value, bool) else str(value)


def _quoted(text: str | None) -> str:
    return repr(text) if text else "none"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "none"
