"""The note of a move in the domain's metadata: what whoever finds the guest after a crash must know."""

import contextlib

import libvirt

from kvmctl.errors import UsageProblem
from kvmctl.model import migration, xml
from kvmctl.model.migration import Note

_PLACES = (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def write_note(domain: libvirt.virDomain, note: Note) -> None:
    """Write the note into the running domain's metadata, which goes along with it.

    Into the saved one's, too, where the note must outlive the guest: there are volumes to be removed, or autostart to
    be set. libvirt waits for the disk whenever it saves a definition, and so does the migration.
    """
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE
    if domain.isPersistent() and (note.volumes or note.autostart):
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    _set(domain, xml.raw(migration.to_element(note)), flags)


def remove_note(domain: libvirt.virDomain) -> None:
    """Take the note out, wherever it is; none there is as good."""
    for flags in _PLACES:
        if _note_in(domain, flags) is not None:
            _set(domain, None, flags)


def read_note(domain: libvirt.virDomain) -> Note | None:
    """The note that a migration left with the domain, or None."""
    return next((note for flags in _PLACES if (note := _note_in(domain, flags)) is not None), None)


def _note_in(domain: libvirt.virDomain, flags: int) -> Note | None:
    with contextlib.suppress(libvirt.libvirtError, UsageProblem):
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, migration.NAMESPACE, flags)
        return migration.from_element(xml.parse(text, "migration note"))
    return None


def _set(domain: libvirt.virDomain, text: str | None, flags: int) -> None:
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, migration.PREFIX, migration.NAMESPACE, flags)
