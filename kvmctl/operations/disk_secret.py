"""The passphrase of a LUKS disk: kept by libvirt as a private secret, named by the volume's path, and nowhere else."""

from pathlib import Path

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.operations.undo import Undo

# What a secret of kvmctl's own says of itself, so that no other tool's is ever taken away.
_DESCRIPTION = "kvmctl: passphrase of a disk"


def read(path: Path) -> bytes:
    """The passphrase: the first line of ``path``. Raises UsageProblem for none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageProblem(f"the passphrase file {str(path)[:200]!a} cannot be read: {error.strerror}") from None
    if not lines or not lines[0]:
        raise UsageProblem(f"the passphrase file {str(path)[:200]!a} does not begin with a passphrase")
    return lines[0]


def keep(hypervisor: Hypervisor, path: str, passphrase: bytes, undo: Undo, uuid: str | None = None) -> str:
    """Give libvirt the passphrase of the volume at ``path``; returns the secret's UUID, ``uuid`` where one was chosen.

    It is private: libvirt uses it, and hands it out to nobody.
    """
    secret = xml.new("secret", ephemeral="no", private="yes")
    if uuid is not None:
        xml.add(secret, "uuid", uuid)
    xml.add(secret, "description", _DESCRIPTION)
    xml.add(xml.add(secret, "usage", type_="volume"), "volume", path)
    with translated(hypervisor.uri):
        made = hypervisor.conn.secretDefineXML(xml.text(secret), 0)
        undo.add(f"forget the passphrase of {path}", lambda: made.undefine())
        made.setValue(passphrase, 0)
        return str(made.UUIDString())


def forget(hypervisor: Hypervisor, path: str | None) -> None:
    """Drop the passphrase of the volume at ``path``, where kvmctl gave libvirt one."""
    if path is None:
        return
    with translated(hypervisor.uri):
        try:
            found = hypervisor.conn.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, path)
        except libvirt.libvirtError as error:
            if is_missing(error) or error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return
            raise
        if xml.parse(found.XMLDesc(0), "secret", "secret").findtext("description") == _DESCRIPTION:
            found.undefine()


def encrypt(holder: xml.Element, uuid: str) -> None:
    """Say in a volume's ``<target>`` or a disk's ``<source>`` that it is LUKS, with this secret."""
    encryption = xml.add(holder, "encryption", format="luks")
    xml.add(encryption, "secret", type_="passphrase", uuid=uuid)
