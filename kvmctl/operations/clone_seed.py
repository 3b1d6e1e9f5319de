"""The seed of a copied guest: the source's, for a new machine.

A new instance-id makes cloud-init set up host name, users and SSH host keys again. The machine-id it leaves alone,
so the seed brings a boothook for that, and ``dsmode: local`` lets it run before the network comes up: with the
source's machine-id the copy would ask DHCP for the source's lease.
Source: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html and its explanation/boot.html.
"""

import io
from importlib.resources import files
from typing import Any

import libvirt

from kvmctl.connection import translated
from kvmctl.errors import Refused
from kvmctl.operations.volume_reader import read_at

# kvmctl's own seeds have some hundred KiB; a user's user-data of 1 MiB fits twice.
LARGEST_SEED = 4 * 1024 * 1024


def read(volume: libvirt.virStorageVol) -> dict[str, bytes]:
    """The files in a seed's root, by name. Raises Refused where it is no ISO that can be read."""
    with translated():
        size = volume.info()[1]
    if size > LARGEST_SEED:
        raise Refused(f"the seed {volume.path()} has {size} bytes, more than any that kvmctl makes")
    return unpack(read_at(volume, 0, size))


def unpack(data: bytes) -> dict[str, bytes]:
    """The files in the root of an ISO image, by their long names."""
    import pycdlib
    from pycdlib.pycdlibexception import PyCdlibException

    iso = pycdlib.PyCdlib()
    found: dict[str, bytes] = {}
    try:
        iso.open_fp(io.BytesIO(data))
        for entry in iso.list_children(joliet_path="/"):
            if entry is None or not entry.is_file():
                continue
            name = entry.file_identifier().decode("utf-16-be", "replace").partition(";")[0]
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, joliet_path=f"/{name}")
            found[name] = content.getvalue()
    except (PyCdlibException, ValueError, IndexError, OSError) as error:
        raise Refused(f"the seed cannot be read: {str(error)[:200]}", "--keep-identity copies it as it is") from error
    return found


def pack(content: dict[str, bytes]) -> bytes:
    """An ISO image labelled ``cidata`` with these files in its root."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, data in content.items():
        short = "".join(c if c.isalnum() else "_" for c in name).upper()[:30]
        iso.add_fp(
            io.BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def renamed(content: dict[str, bytes], hostname: str) -> dict[str, bytes]:
    """The same seed for a machine that has its new identity already, and must only not lose its name at a boot.

    The boothook of a source that was a copy itself goes: it would give the source's machine-id.
    """
    import yaml

    meta = {**_mapping(content.get("meta-data", b"")), "local-hostname": hostname}
    kept = {name: data for name, data in content.items() if name != "vendor-data" or not data.startswith(_hook())}
    return {
        **kept,
        "meta-data": yaml.safe_dump(meta, sort_keys=False).encode(),
        "user-data": _rename(content.get("user-data", b""), hostname),
    }


def _hook() -> bytes:
    return b"#cloud-boothook\n" + files("kvmctl").joinpath("data/clone-identity.sh").read_bytes()


def renewed(content: dict[str, bytes], instance_id: str, hostname: str) -> dict[str, bytes]:
    """The same seed for another machine: ``instance_id`` is a UUID, which becomes the machine-id too."""
    import yaml

    meta = _mapping(content.get("meta-data", b""))
    meta.update({"instance-id": instance_id, "local-hostname": hostname, "dsmode": "local"})
    return {
        **content,
        "meta-data": yaml.safe_dump(meta, sort_keys=False).encode(),
        "user-data": _rename(content.get("user-data", b""), hostname),
        "vendor-data": _hook(),
    }


def _mapping(data: bytes) -> dict[str, Any]:
    import yaml

    try:
        parsed = yaml.safe_load(data)
    except yaml.YAMLError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _rename(user_data: bytes, hostname: str) -> bytes:
    """user-data wins over meta-data, so a host name in it is the source's for ever unless it is changed here."""
    import yaml

    if not user_data.startswith(b"#cloud-config"):
        return user_data
    config = _mapping(user_data)
    if not config.keys() & {"hostname", "fqdn"}:
        return user_data
    domain = str(config.get("fqdn") or "").partition(".")[2]
    if "fqdn" in config:
        config["fqdn"] = f"{hostname}.{domain}" if domain else hostname
    config["hostname"] = hostname
    head = b"#cloud-config\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=False).encode()
