"""The cloud-init seed of a new guest: what it says, and the small ISO that carries it.

Source: cloud-init's NoCloud datasource, an ISO 9660 file system labelled ``cidata`` with ``user-data``
and ``meta-data`` in it (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html).
"""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from kvmctl.errors import NotFound, UsageProblem

# A user name as useradd(8) takes it.
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ssh-dss", "ecdsa-sha2-", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-")
LARGEST_TEXT = 1024 * 1024


class Seed(NamedTuple):
    """What the guest is told on its first boot. ``user_data`` is the whole text where the user wrote their own."""

    instance_id: str
    hostname: str
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    password_hash: str | None = None
    user_data: str | None = None


def check_user(name: str) -> str:
    """``name`` if a Linux guest can have such a user; else UsageProblem."""
    if not _USER.match(name):
        raise UsageProblem(f"{name[:60]!a} cannot be a user's name", "use lower-case letters, digits, '_' and '-'")
    return name


def check_hostname(name: str) -> str:
    """``name`` if it is a host name (RFC 1123), with or without a domain; else UsageProblem."""
    if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
        raise UsageProblem(f"{name[:80]!a} is not a host name", "use letters, digits and '-', with '.' between labels")
    return name


def hostname_for(vm: str) -> str:
    """The host name of a VM that was given none: its own name, with what a host name cannot have made ``-``."""
    label = re.sub(r"[^A-Za-z0-9-]+", "-", vm.partition(".")[0]).strip("-")[:63].strip("-")
    return label or "guest"


def read_ssh_keys(path: Path) -> tuple[str, ...]:
    """The public keys in ``path``, a line each. A private key is refused, and never read further than that."""
    text = _read_text(path, "SSH key")
    if "PRIVATE KEY-----" in text:
        raise UsageProblem(f"{path} is a private key, which has no business in a guest", f"give {path}.pub")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for key in keys:
        if not _is_ssh_key(key):
            raise UsageProblem(f"{path} is not an SSH public key: it has the line {key[:40]!a}")
    if not keys:
        raise UsageProblem(f"{path} has no SSH key in it")
    return keys


def check_ssh_key(text: str) -> str:
    """``text`` if it is a public key, as a line of an authorized_keys file has it; else UsageProblem."""
    key = text.strip()
    if not _is_ssh_key(key):
        raise UsageProblem(f"{key[:40]!a} is not an SSH public key", "give a whole line of a .pub file, or the file")
    return key


def _is_ssh_key(line: str) -> bool:
    return line.startswith(_KEY_TYPES) and len(line.split()) >= 2 and line.isprintable()


def own_ssh_keys() -> tuple[tuple[str, ...], Path | None]:
    """The calling user's own public key, if there is one, and its file."""
    for kind in ("ed25519", "ecdsa", "rsa"):
        path = Path.home() / ".ssh" / f"id_{kind}.pub"
        if path.is_file():
            return read_ssh_keys(path), path
    return (), None


def read_password(path: Path) -> str:
    """The first line of ``path`` as a hash that the guest can store; the password itself goes no further.

    bcrypt is understood by the C libraries of every distribution still supported (libxcrypt, musl, the BSDs).
    """
    import bcrypt

    text = _read_text(path, "password")
    password = text.splitlines()[0] if text.splitlines() else ""
    if not password:
        raise UsageProblem(f"{path} has no password on its first line")
    encoded = password.encode()
    if len(encoded) > 72 or "\0" in password:
        raise UsageProblem(f"the password in {path} is longer than 72 bytes or has a NUL in it")
    hashed: bytes = bcrypt.hashpw(encoded, bcrypt.gensalt(rounds=10))
    return hashed.decode("ascii")


def read_user_data(path: Path) -> str:
    """A whole user-data file, refused where cloud-init would ignore it."""
    import yaml

    text = _read_text(path, "user-data")
    if text.startswith("#cloud-config"):
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageProblem(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
        if parsed is not None and not isinstance(parsed, dict):
            raise UsageProblem(f"{path}: a #cloud-config is a mapping")
    elif not text.startswith(
        ("#!", "#include", "#cloud-boothook", "#part-handler", "## template:", "Content-Type:", "MIME-Version:")
    ):
        raise UsageProblem(
            f"{path} is no user-data that cloud-init would read", "its first line is #cloud-config or #!"
        )
    return text


def _read_text(path: Path, what: str) -> str:
    try:
        if not path.is_file() and not path.is_fifo() and not path.is_char_device():
            if path.exists():
                raise UsageProblem(f"the {what} file {path} is not a file")
            raise NotFound(f"there is no {what} file {path}")
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise UsageProblem(f"the {what} file {path} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_TEXT:
        raise UsageProblem(f"the {what} file {path} is larger than 1 MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageProblem(f"the {what} file {path} is not text") from None


def user_data(seed: Seed) -> str:
    """The ``user-data`` document."""
    import yaml

    if seed.user_data is not None:
        return seed.user_data
    config: dict[str, Any] = {"hostname": seed.hostname, "preserve_hostname": False}
    if seed.user is not None:
        account: dict[str, Any] = {
            "name": seed.user,
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": seed.password_hash is None,
        }
        if seed.ssh_keys:
            account["ssh_authorized_keys"] = list(seed.ssh_keys)
        if seed.password_hash:
            account["hashed_passwd" if seed.user == "root" else "passwd"] = seed.password_hash
        if seed.user == "root":
            config["disable_root"] = False
        config["users"] = [account]
    else:
        if seed.ssh_keys:
            config["ssh_authorized_keys"] = list(seed.ssh_keys)
        if seed.password_hash:
            # The image's own default user, whatever its name.
            config["password"] = seed.password_hash
    if seed.password_hash:
        config["ssh_pwauth"] = True
        config["chpasswd"] = {"expire": False}
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=False)


def meta_data(seed: Seed) -> str:
    """The ``meta-data`` document: a new instance-id makes cloud-init take the guest for a new machine."""
    import yaml

    return yaml.safe_dump({"instance-id": seed.instance_id, "local-hostname": seed.hostname}, sort_keys=False)


def build(seed: Seed) -> bytes:
    """The ISO, some hundred KiB."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, text in (("user-data", user_data(seed)), ("meta-data", meta_data(seed))):
        data = text.encode()
        short = name.replace("-", "_").upper()
        iso.add_fp(
            io.BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
