"""From what was written on the command line (or in a spec) to a checked request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmctl.errors import UsageProblem
from kvmctl.model.disk import parse_disk
from kvmctl.model.extras import parse_device
from kvmctl.model.forward import parse_forward
from kvmctl.model.nic import MODELS, parse_nic
from kvmctl.model.pci import PciSelector
from kvmctl.model.spec import KEY_TYPES, LONGEST_DESCRIPTION, LONGEST_TITLE, Spec
from kvmctl.model.tuned import from_words
from kvmctl.operations import seed
from kvmctl.operations.create_request import Request

# What a spec's key is called among create's options, where that is not the same.
_OPTIONS = {"networks": "nets", "publish": "ports", "os": "os_id"}


def from_spec(name: str, spec: Spec, said: Mapping[str, Any]) -> Request:
    """The Request of ``spec`` for the VM ``name``; ``said`` are options that win over it. Raises as from_options()."""
    given = {
        _OPTIONS.get(key, key): value for key, value in spec._asdict().items() if key != "name" and value is not None
    }
    if spec.networks == ():
        given["nets"] = ("none",)
    return from_options(name, {**given, **said})


def from_options(name: str, given: Mapping[str, Any]) -> Request:
    """The Request that the options of ``create`` make, the files they name read. Raises UsageProblem, NotFound."""
    vcpus, max_vcpus = given.get("vcpus") or (None, None)
    memory, max_memory = given.get("memory") or (None, None)
    model = given.get("nic_model")
    if model is not None and model not in MODELS:
        raise UsageProblem(f"no NIC model {model[:40]!a}", f"one of {', '.join(MODELS)}")
    user_data = given.get("user_data")
    user = given.get("user")
    hostname = given.get("hostname")
    password = given.get("password_file")
    return Request(
        name=name,
        image=given.get("image"),
        cdrom=given.get("cdrom"),
        kernel=given.get("kernel"),
        initrd=given.get("initrd"),
        cmdline=_line(given.get("cmdline"), "--cmdline", 4096),
        import_=given.get("import_"),
        pxe=bool(given.get("pxe")),
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        memory_bytes=_whole_kib(memory),
        max_memory_bytes=_whole_kib(max_memory),
        cpu=given.get("cpu"),
        accel=given.get("accel") or "auto",
        machine=given.get("machine"),
        arch=given.get("arch"),
        disks=tuple(parse_disk(text) for text in given.get("disks", ())),
        nics=_nics(given.get("nets", ()), model),
        nic_model=model,
        forwards=tuple(forward for text in given.get("ports", ()) for forward in parse_forward(text)),
        pci=tuple(PciSelector.parse(text) for text in given.get("pci", ())),
        firmware=given.get("firmware"),
        tpm=given.get("tpm"),
        profile=given.get("profile"),
        os=given.get("os_id"),
        graphics=given.get("graphics") or "vnc",
        graphics_listen=given.get("graphics_listen"),
        video=given.get("video"),
        graphics_tls=bool(given.get("graphics_tls")),
        graphics_password=_secret(given.get("graphics_password_file")),
        devices=tuple(parse_device(text, given.get("arch") or "x86_64") for text in given.get("devices", ())),
        sound=bool(given.get("sound")),
        title=_line(given.get("title"), "--title", LONGEST_TITLE),
        description=_text(given.get("description"), "--description"),
        user=seed.check_user(user) if user is not None else None,
        ssh_keys=_keys(given, user_data is not None),
        password_hash=seed.read_password(_path(password)) if password is not None else None,
        user_data=seed.read_user_data(_path(user_data)) if user_data is not None else None,
        hostname=seed.check_hostname(hostname) if hostname is not None else None,
        seed=given.get("seed"),
        autostart=bool(given.get("autostart")),
        tuning=from_words({**given, "disk_limits": (), "net_limits": ()}),
        start=bool(given.get("start", True)),
        strict=bool(given.get("strict")),
    )


def _secret(file: str | None) -> str | None:
    """The first line of ``file``: the screen's password."""
    if file is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"the password file {file[:200]!a} cannot be read: {error}") from None
    if not lines or not lines[0] or not lines[0].isprintable():
        raise UsageProblem(f"the password file {file[:200]!a} does not begin with a password")
    return lines[0]


def _nics(texts: tuple[str, ...], model: str | None) -> Any:
    if not texts:
        return None
    found = tuple(nic for nic in (parse_nic(text, model) for text in texts) if nic is not None)
    if len(found) != len(texts) and len(texts) > 1:
        raise UsageProblem("--net none goes with no other --net")
    macs = [nic.mac for nic in found if nic.mac]
    if len(set(macs)) != len(macs):
        raise UsageProblem("two --net have the same MAC address")
    return found


def _keys(given: Mapping[str, Any], whole_user_data: bool) -> tuple[str, ...]:
    """The keys that were named, else the calling user's own where an image's cloud-init will take them."""
    named = tuple(
        key
        for text in given.get("ssh_keys", ())
        for key in ((seed.check_ssh_key(text),) if text.startswith(KEY_TYPES) else seed.read_ssh_keys(_path(text)))
    )
    if named or whole_user_data or given.get("image") is None or given.get("seed") is False:
        return named
    return seed.own_ssh_keys()[0]


def _path(text: str) -> Path:
    return Path("/dev/stdin") if text == "-" else Path(text).expanduser()


def _whole_kib(size: int | None) -> int | None:
    return None if size is None else -(-size // 1024) * 1024


def _line(text: str | None, flag: str, most: int) -> str | None:
    if text is None:
        return None
    if not text.isprintable() or len(text) > most:
        raise UsageProblem(f"{flag} is one line of up to {most} printable characters")
    return text


def _text(text: str | None, flag: str) -> str | None:
    if text is None:
        return None
    if len(text) > LONGEST_DESCRIPTION or not all(c.isprintable() or c in "\n\t" for c in text):
        raise UsageProblem(f"{flag} is text of up to {LONGEST_DESCRIPTION} printable characters")
    return text
