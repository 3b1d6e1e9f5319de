"""A VM's spec: what a file says a VM shall be, in the words of create's options.

Pure: no file is read here. What the spec does not say (None) is left as it is, or to create's defaults.
"""

import posixpath
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvmctl.errors import KvmctlError, UsageProblem
from kvmctl.model.disk import ExistingDisk, parse_disk
from kvmctl.model.extras import parse_device
from kvmctl.model.firmware import FIRMWARES
from kvmctl.model.forward import parse_forward
from kvmctl.model.graphics import listen_address
from kvmctl.model.names import check_new_name, harmless
from kvmctl.model.nic import MODELS, parse_nic
from kvmctl.model.pci import PciSelector
from kvmctl.model.profile import PROFILES
from kvmctl.model.tuning import parse_memory_limit, parse_numa, parse_pin
from kvmctl.model.units import GIB, KIB, MIB, parse_duration, parse_size

# libvirt refuses control characters in XML one by one; a title is one line, a description is text.
LONGEST_TITLE = 256
LONGEST_DESCRIPTION = 64 * 1024
# VIR_DOMAIN_VCPUS_MAX in libvirt's src/conf/domain_conf.c; a machine type takes less.
MOST_VCPUS = 16384
KEY_TYPES = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")


class Spec(NamedTuple):
    """What is said of one VM. ``vcpus`` and ``memory`` (bytes) are (now, at most); the rest is as create has it."""

    name: str | None = None
    title: str | None = None
    description: str | None = None
    image: str | None = None
    cdrom: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    import_: str | None = None
    pxe: bool | None = None
    vcpus: tuple[int, int | None] | None = None
    memory: tuple[int, int | None] | None = None
    cpu: str | None = None
    accel: str | None = None
    machine: str | None = None
    arch: str | None = None
    disks: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    nic_model: str | None = None
    publish: tuple[str, ...] | None = None
    pci: tuple[str, ...] | None = None
    firmware: str | None = None
    tpm: bool | None = None
    profile: str | None = None
    os: str | None = None
    graphics: str | None = None
    graphics_listen: str | None = None
    graphics_tls: bool | None = None
    graphics_password_file: str | None = None
    video: str | None = None
    sound: bool | None = None
    devices: tuple[str, ...] | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] | None = None
    password_file: str | None = None
    user_data: str | None = None
    hostname: str | None = None
    seed: bool | None = None
    autostart: bool | None = None
    autostart_order: int | None = None
    autostart_delay: int | None = None
    pins: tuple[str, ...] | None = None
    cpu_shares: int | None = None
    cpu_limit: int | None = None
    memory_limit: str | None = None
    hugepages: bool | None = None
    numa: str | None = None
    boot: tuple[str, ...] | None = None
    start: bool | None = None


KEYS: tuple[str, ...] = tuple(name.rstrip("_") for name in Spec._fields)


def from_mapping(document: Mapping[Any, Any], where: str) -> Spec:
    """The Spec that ``document`` says, each value checked for itself; ``where`` names it in errors.

    Raises UsageProblem: an unknown key (with the nearest ones), a value of the wrong kind, or what the
    option of that name would refuse.
    """
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in KEYS:
            from difflib import get_close_matches

            near = get_close_matches(str(key)[:60].lower().replace("-", "_"), KEYS, n=2)
            known = f"did you mean {' or '.join(near)}?" if near else f"keys are {', '.join(KEYS)}"
            raise UsageProblem(f"{where}: no key {str(key)[:60]!a}", known)
        if value is None:
            continue
        try:
            values[_field(key)] = _READ[key](value)
        except KvmctlError as error:
            raise UsageProblem(f"{where}: {key}: {error.message}", error.hint) from None
    return Spec(**values)


def to_mapping(spec: Spec) -> dict[str, Any]:
    """What from_mapping() reads as ``spec`` again: text, numbers, lists; what is not said is left out."""
    shown: dict[str, Any] = {}
    for name, value in spec._asdict().items():
        if value is None:
            continue
        key = name.rstrip("_")
        if key in ("vcpus", "memory"):
            now, most = value if key == "vcpus" else [size and size_text(size) for size in value]
            shown[key] = now if most is None else {_AMOUNTS[key]: now, "max": most}
        else:
            shown[key] = list(value) if isinstance(value, tuple) else value
    return shown


def size_text(size: int) -> str:
    """``size`` bytes as parse_size() reads back exactly: ``2G``, ``512M``, ``4097K``."""
    for unit, bytes_ in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size % bytes_ == 0:
            return f"{size // bytes_}{unit}"
    return f"{size}B"


def beside(spec: Spec, folder: str, home: str) -> Spec:
    """``spec`` with the relative paths in it seen from ``folder``, the spec file's own, and ``~/`` from ``home``."""

    def absolute(path: str) -> str:
        if path == "-" or path.startswith("/") or "://" in path:
            return path
        if path.startswith("~/"):
            return f"{home}/{path[2:]}"
        return posixpath.normpath(f"{folder}/{path}")

    def disk(text: str) -> str:
        found = parse_disk(text)
        if isinstance(found, ExistingDisk):
            return text.replace(found.path, absolute(found.path), 1)
        file = found.passphrase_file
        return text if file is None else text.replace(f"-file={file}", f"-file={absolute(file)}", 1)

    changes: dict[str, Any] = {
        name: absolute(value)
        for name in ("cdrom", "kernel", "initrd", "import_", "password_file", "user_data", "graphics_password_file")
        if (value := getattr(spec, name)) is not None
    }
    # As --image has it: with a slash it is a path, without one an image's name.
    if spec.image is not None and "/" in spec.image:
        changes["image"] = absolute(spec.image)
    if spec.disks is not None:
        changes["disks"] = tuple(map(disk, spec.disks))
    if spec.ssh_keys is not None:
        changes["ssh_keys"] = tuple(key if key.startswith(KEY_TYPES) else absolute(key) for key in spec.ssh_keys)
    return spec._replace(**changes)


# ---------------------------------------------------------------- the values


def _field(key: str) -> str:
    return "import_" if key == "import" else key


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return f"the number {value}" if isinstance(value, (int, float)) else f"{str(value)[:60]!a}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageProblem(f"{_kind(value)} is not text", "put it in quotes")
    if not value or len(value) > 4096 or harmless(value) != value:
        raise UsageProblem("it is empty, too long, or has control characters")
    return value


def _title(value: Any) -> str:
    if not isinstance(value, str) or not (value.isprintable() and len(value) <= LONGEST_TITLE):
        raise UsageProblem(f"a title is one line of up to {LONGEST_TITLE} printable characters")
    return value


def _description(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_DESCRIPTION:
        raise UsageProblem(f"a description is text of up to {LONGEST_DESCRIPTION} characters")
    if not all(c.isprintable() or c in "\n\t" for c in value):
        raise UsageProblem("it has control characters, which could harm a terminal")
    # libvirt gives a text back without the line ends that YAML's blocks leave behind it.
    return value.rstrip("\n")


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageProblem(f"{_kind(value)} is neither true nor false")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts; one text alone is a list of one."""
    several = value if isinstance(value, list) else [value]
    return tuple(_text(one) for one in several)


def _one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known or not isinstance(value, str):
            raise UsageProblem(f"{_kind(value)} is none of {', '.join(known)}")
        return value

    return read


def _name(value: Any) -> str:
    return check_new_name(value if isinstance(value, str) else _text(value))


def _pair(value: Any, main: str, read: Callable[[Any], int]) -> tuple[int, int | None]:
    """``2``, ``"2,max=4"`` or ``{main: 2, max: 4}``."""
    if isinstance(value, dict):
        unknown = [key for key in value if key not in (main, "max")]
        if unknown or main not in value:
            raise UsageProblem(f"write {{{main}: N, max: M}}, or 'N,max=M'")
        now, most = value[main], value.get("max")
    elif isinstance(value, str) and "," in value:
        now, _, rest = value.partition(",")
        if not rest.startswith("max="):
            raise UsageProblem(f"{value[:60]!a} is neither N nor N,max=M")
        most = rest.removeprefix("max=")
    else:
        now, most = value, None
    first, last = read(now), None if most is None else read(most)
    if last is not None and last < first:
        raise UsageProblem("it is more than its own maximum")
    return first, last


def _count(value: Any) -> int:
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6
    number = int(value) if digits else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= MOST_VCPUS:
        raise UsageProblem(f"{_kind(value)} is not a number from 1 to {MOST_VCPUS}")
    return number


def _memory(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UsageProblem(f"{_kind(value)} is not a size", "write it like 2G or 512M")
    # libvirt counts in KiB.
    return -(-parse_size(str(value), MIB) // KIB) * KIB


def _disks(value: Any) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [value]
    texts = tuple(str(one) if isinstance(one, int) and not isinstance(one, bool) else _text(one) for one in several)
    for text in texts:
        parse_disk(text)
    return texts


def _networks(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    if len([text for text in texts if parse_nic(text) is None]) and len(texts) > 1:
        raise UsageProblem("'none' goes with no other network")
    return texts


def _publish(value: Any) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [value]
    for one in several:
        if isinstance(one, int):
            # YAML 1.1 reads 22:22 as a number to the base of 60.
            raise UsageProblem(f"{one} is a number", 'put it in quotes: "8080:80"')
    texts = _texts(several)
    forwards = [forward for text in texts for forward in parse_forward(text)]
    places = [(forward.protocol, forward.address, forward.host_port) for forward in forwards]
    if len(set(places)) != len(places):
        raise UsageProblem("two of them want the same port of the host")
    return texts


def _pci(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        PciSelector.parse(text)
    return texts


def _devices(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        parse_device(text)
    return texts


def _number(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UsageProblem(f"{_kind(value)} is not a number from {least} to {most}")
        return value

    return read


def _delay(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UsageProblem(f"{_kind(value)} is not a duration", "write it like 30s or 2m")
    return round(parse_duration(str(value)))


def _pins(value: Any) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [value]
    for one in several:
        if isinstance(one, int):
            # YAML 1.1 reads 1:30 as a number to the base of 60.
            raise UsageProblem(f"{one} is a number", 'put it in quotes: "0:2"')
    texts = _texts(several)
    pins = [parse_pin(text) for text in texts]
    if not all(pin.cpus for pin in pins):
        raise UsageProblem("a vCPU that may run on all CPUs is not pinned", "leave it out")
    if len({pin.vcpu for pin in pins}) != len(pins):
        raise UsageProblem("a vCPU is pinned twice")
    return texts


def _memory_limit(value: Any) -> str:
    """``"soft=2G,hard=6G"`` or ``{soft: 2G, hard: 6G}``."""
    if isinstance(value, dict):
        value = ",".join(f"{key}={size}" for key, size in value.items())
    text = _text(value)
    parse_memory_limit(text)
    return text


def _numa(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    parse_numa(text)
    return text


def _boot(value: Any) -> tuple[str, ...]:
    """A list, or one text with commas."""
    words = _texts(value.split(",") if isinstance(value, str) else value)
    if not words:
        raise UsageProblem("it names nothing to boot from")
    return words


_AMOUNTS = {"vcpus": "count", "memory": "size"}
_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("image", "cdrom", "kernel", "initrd", "cmdline", "import", "cpu", "machine", "arch", "os"), _text),
    "video": _text,
    **dict.fromkeys(("user", "password_file", "user_data", "hostname", "graphics_password_file"), _text),
    **dict.fromkeys(("pxe", "tpm", "sound", "graphics_tls", "autostart", "start", "seed", "hugepages"), _switch),
    "name": _name,
    "title": _title,
    "description": _description,
    "vcpus": lambda value: _pair(value, "count", _count),
    "memory": lambda value: _pair(value, "size", _memory),
    "accel": _one_of(("auto", "kvm", "tcg")),
    "disks": _disks,
    "networks": _networks,
    "nic_model": _one_of(MODELS),
    "publish": _publish,
    "pci": _pci,
    "devices": _devices,
    "firmware": _one_of(FIRMWARES),
    "profile": _one_of(PROFILES),
    "graphics": _one_of(("none", "vnc", "spice")),
    "graphics_listen": lambda value: str(listen_address(_text(value))),
    "ssh_keys": _texts,
    "autostart_order": _number(0, 99999),
    "autostart_delay": _delay,
    "pins": _pins,
    "cpu_shares": _number(2, 262144),
    "cpu_limit": _number(0, 100),
    "memory_limit": _memory_limit,
    "numa": _numa,
    "boot": _boot,
}
