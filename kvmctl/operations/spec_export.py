"""A VM as a spec: what ``apply`` would make its like from, and what no spec can say of it."""

from typing import Any

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError, NotFound
from kvmctl.model import spec_tuning, tuning
from kvmctl.model.disk import parse_disk
from kvmctl.model.forward import written
from kvmctl.model.graphics import LOOPBACK
from kvmctl.model.names import check_new_name
from kvmctl.model.nic import parse_nic
from kvmctl.model.spec import Spec, to_mapping
from kvmctl.model.spec_compare import disk_text, nic_text
from kvmctl.model.spec_seen import Seen, SeenDisk
from kvmctl.operations import spec as specs
from kvmctl.preflight.accel import choose_accel


def export(hypervisor: Hypervisor, name: str) -> tuple[dict[str, Any], list[str]]:
    """The spec of VM ``name`` as a mapping, and what it leaves out, a sentence each. Raises NotFound."""
    found = specs.look(hypervisor, name)
    if found is None:
        # find() says it as everywhere; what a killed create left is not a VM to export either.
        hypervisor.find(name)
        raise NotFound(f"{name} was never made whole", f"'kvmctl delete {name}' removes what is left of it")
    seen = found[1]
    missing: list[str] = [f"it cannot say {what}" for what in seen.beyond]
    view = seen.view
    disks, boot = _disks(seen, missing)
    spec = Spec(
        name=view.name,
        title=_titled(view.title, missing),
        description=view.description,
        kernel=_boot_file(seen, "kernel", seen.kernel, missing),
        initrd=_boot_file(seen, "initrd", seen.initrd, missing),
        cmdline=seen.cmdline,
        pxe=seen.pxe or None,
        vcpus=(view.vcpus, view.max_vcpus if view.max_vcpus != view.vcpus else None),
        memory=_memory(view.memory_bytes, view.max_memory_bytes),
        cpu=view.cpu,
        accel=_accel(hypervisor, seen),
        machine=view.machine,
        arch=view.arch,
        disks=tuple(disks),
        networks=_networks(seen, missing),
        publish=tuple(written(forward) for forward in seen.forwards) or None,
        pci=view.pci or None,
        firmware=view.firmware,
        tpm=seen.tpm or None,
        profile=seen.profile,
        graphics=_graphics(seen, missing),
        graphics_listen=seen.graphics_listen if seen.graphics_listen != LOOPBACK else None,
        graphics_tls=seen.graphics_tls or None,
        video=seen.video if seen.graphics != "none" else None,
        sound=seen.sound or None,
        devices=seen.devices or None,
        user=seen.user,
        seed=True if seen.seeded else None,
        autostart=seen.autostart if seen.order is None else None,
        **_tuned(seen, missing),
        start=seen.running,
        image=boot.get("image"),
        cdrom=boot.get("cdrom"),
        import_=boot.get("import_"),
    )
    try:
        check_new_name(view.name)
    except KvmctlError:
        missing.append("no new VM can have its name: give the spec another one")
    if seen.seeded:
        missing.append("what its first boot was told (SSH keys, password, user-data, host name) is not in it")
    if not (boot or spec.kernel or spec.pxe):
        missing.append("nothing in it says what a new VM would boot from: add image, import, cdrom or kernel")
    return to_mapping(spec), missing


def _tuned(seen: Seen, missing: list[str]) -> dict[str, Any]:
    told = spec_tuning.told(seen.tree, seen.order)
    if told["boot"] is None and tuning.boot_of(seen.tree):
        missing.append("it cannot say its boot order, which names a card by its MAC")
    return told


def _titled(title: str | None, missing: list[str]) -> str | None:
    if title is not None and not title.isprintable():
        missing.append("its title has control characters, and is left out")
        return None
    return title


def _memory(now: int | None, most: int | None) -> tuple[int, int | None] | None:
    if now is None:
        return None
    return now, most if most != now else None


def _accel(hypervisor: Hypervisor, seen: Seen) -> str | None:
    """Its accelerator where another than the host's own choice; left out, the spec serves any host."""
    try:
        usual = choose_accel(hypervisor, "auto", seen.view.arch).accel
    except KvmctlError:
        return None
    return seen.view.accel if seen.view.accel != usual and seen.view.accel in ("kvm", "tcg") else None


def _disks(seen: Seen, missing: list[str]) -> tuple[list[str], dict[str, str]]:
    """The disks as ``--disk`` has them, and the one key that says what is booted from."""
    disks = [disk for disk in seen.disks if disk.device == "disk" and _sayable(disk, missing)]
    boot: dict[str, str] = {}
    first = _first(seen, disks)
    if seen.image is not None and first is not None and first.owned is not None:
        boot["image"] = seen.image
        disks.remove(first)
        # The first size is the disk over the image, whatever place libvirt has it at.
        disks.insert(0, first)
    elif first is not None and first.owned is None and not first.readonly and seen.kernel is None:
        boot["import_"] = first.source or ""
        disks.remove(first)
        if first.bus or first.cache:
            missing.append("the bus and cache of the disk it boots from are those of its profile")
    for drive in (disk for disk in seen.disks if disk.device == "cdrom" and disk.source is not None):
        if "cdrom" in boot:
            missing.append(f"of its CDs only one: not {drive.source}")
        elif "image" not in boot:
            boot["cdrom"] = drive.source or ""
    return [disk_text(disk) for disk in disks], boot


def _first(seen: Seen, disks: list[SeenDisk]) -> SeenDisk | None:
    """The disk it boots from: first in its boot order, else the one it lists first."""
    orders = {}
    for element in seen.tree.iterfind("devices/disk"):
        boot, target = element.find("boot"), element.find("target")
        if boot is not None and target is not None and boot.get("order", "").isdigit():
            orders[target.get("dev")] = int(boot.get("order", "0"))
    return min(disks, key=lambda disk: orders.get(disk.target, 10**6), default=None)


def _sayable(disk: SeenDisk, missing: list[str]) -> bool:
    try:
        parse_disk(disk_text(disk))
    except KvmctlError:
        missing.append(f"it cannot say the disk {disk.target} ({disk.source or 'empty'})")
        return False
    if disk.source is not None and not disk.source.startswith("/") and disk.owned is None:
        missing.append(f"it cannot say the disk {disk.target} ({disk.source}), which is no file of the host's")
        return False
    return True


def _networks(seen: Seen, missing: list[str]) -> tuple[str, ...]:
    texts = []
    for card in seen.nics:
        text = nic_text(card)
        try:
            parse_nic(text)
        except KvmctlError:
            missing.append(f"it cannot say {text}" if card.nic is None else f"it cannot say the card {text}")
            continue
        texts.append(text)
    return tuple(texts)


def _graphics(seen: Seen, missing: list[str]) -> str | None:
    if seen.graphics in ("none", "vnc", "spice"):
        if seen.graphics_listen not in (None, LOOPBACK, "::1") and not seen.graphics_tls:
            missing.append("its screen's password is not in it: add graphics_password_file")
        return seen.graphics
    missing.append(f"it cannot say its {seen.graphics} graphics")
    return None


def _boot_file(seen: Seen, what: str, path: str | None, missing: list[str]) -> str | None:
    if path is not None and any(v.role == "other" and v.path == path for v in seen.volumes):
        missing.append(f"its {what} {path} is this VM's own copy, which goes when it is deleted: name the original")
    return path
