"""A VM's definition as XML: reading it, defining one, editing it in place."""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, is_missing, translated
from kvmctl.errors import Conflict, Refused, UsageProblem
from kvmctl.model import metadata, xml
from kvmctl.model.comparison import comparable
from kvmctl.model.names import harmless
from kvmctl.model.state import ACTIVE
from kvmctl.operations.kept_definition import definition_kept
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.progress import Progress

_DEFINED = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


@dataclass(frozen=True)
class Plan:
    """``text`` is what libvirt is to get; ``before`` the definition there is, None for a new VM."""

    name: str
    text: str
    domain: libvirt.virDomain | None
    before: str | None
    state: str


def dump(
    hypervisor: Hypervisor, name: str, *, inactive: bool = False, secure: bool = False, migratable: bool = False
) -> dict[str, Any]:
    """``{"name", "uuid", "xml"}``: the running definition, or with ``inactive`` that of the next start.

    ``secure`` includes passwords (of VNC, say), ``migratable`` is what another host would get.
    """
    domain = hypervisor.find(name)
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
    flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
    flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0
    with translated(hypervisor.uri):
        return {"name": domain.name(), "uuid": domain.UUIDString(), "xml": domain.XMLDesc(flags)}


def plan(hypervisor: Hypervisor, text: bytes | str) -> Plan:
    """Look at XML before it is defined. Raises UsageProblem where it is none that a VM can have.

    XML without a UUID, of a name there is, updates that VM; what kvmctl remembers of it (the disks it
    made) stays where the XML says nothing of it.
    """
    tree = xml.parse(text, "domain XML", "domain")
    name = tree.findtext("name") or ""
    if not name.strip() or harmless(name) != name or "/" in name:
        raise UsageProblem(
            f"{name[:80]!a} cannot be the name of a VM" if name else "the domain XML has no <name>",
            "give it one of letters, digits, '_', '.' and '-'",
        )
    _refuse_xen(tree, name)
    domain = _existing(hypervisor, tree, name)
    if domain is None:
        return Plan(name, xml.raw(tree), None, None, "shutoff")
    with translated(hypervisor.uri):
        before = domain.XMLDesc(_DEFINED) if domain.isPersistent() else None
        if tree.find("uuid") is None:
            tree.insert(0, xml.new("uuid", domain.UUIDString()))
        remembered = metadata.from_domain(xml.parse(before, "domain")) if before else metadata.Metadata()
        if remembered != metadata.Metadata() and metadata.from_domain(tree) == metadata.Metadata():
            metadata.put(tree, remembered)
        return Plan(name, xml.raw(tree), domain, before, state_of(domain))


def _refuse_xen(tree: xml.Element, name: str) -> None:
    """Raise Refused for a guest that runs on Xen alone; libvirt would only say that it lacks a capability."""
    kind = (tree.findtext("os/type") or "").strip()
    # "linux" is how libvirt once wrote a paravirtualized guest, before it had "xen" for it.
    if kind in ("xen", "linux", "xenpvh"):
        raise Refused(
            f"{name} is a paravirtualized Xen guest (<type>{kind}</type>): its kernel talks to Xen itself, and KVM "
            "does not run it",
            "boot its disk as a full machine: kvmctl create NAME --import DISK",
        )
    if tree.get("type") == "xen":
        raise Refused(
            f"{name} is a guest of Xen (<domain type='xen'>), which this is not",
            "change that to <domain type='kvm'>, and its devices to ones that QEMU has",
        )


def _existing(hypervisor: Hypervisor, tree: xml.Element, name: str) -> libvirt.virDomain | None:
    uuid = (tree.findtext("uuid") or "").strip()
    if not uuid:
        return hypervisor.find_or_none(name)
    try:
        return hypervisor.conn.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_ARG:
            raise UsageProblem(f"{uuid[:60]!a} is not a UUID") from error
        if is_missing(error):
            return None
        raise explain(error, hypervisor.uri) from error


def define(
    hypervisor: Hypervisor, found: Plan, *, validate: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """Define it: ``{"name", "uuid", "state", "changed", "created", "pending"}``.

    ``pending``: it runs, and what changed counts from its next start on. Raises UsageProblem where
    libvirt does not take the XML; then nothing has changed.
    """
    with contextlib.ExitStack() as stack:
        if found.domain is not None:
            stack.enter_context(definition_kept(found.domain, f"define {found.name}"))
        domain = _define(hypervisor, found.text, validate, progress or Progress())
    with translated(hypervisor.uri):
        changed = found.before is None or comparable(domain.XMLDesc(_DEFINED)) != comparable(found.before)
        return _row(domain, state_of(domain), changed=changed, created=found.before is None)


def _define(hypervisor: Hypervisor, text: str, validate: bool, progress: Progress) -> libvirt.virDomain:
    try:
        return hypervisor.conn.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0)
    except libvirt.libvirtError as error:
        code, message = error.get_error_code(), " ".join((error.get_error_message() or "").split())
        if validate and code == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
            raise UsageProblem(
                f"libvirt's schema does not allow this XML: {_shortened(message)}",
                "correct it, or add --no-validate if libvirt knows more than its schema",
            ) from error
        if validate and re.search(r"unable to (find|parse|locate).*(rng|schema)|nable to create RNG", message):
            progress.warn("libvirt's schemas are not installed on that host, so the XML was not checked against them")
            return _define(hypervisor, text, False, progress)
        raise explain(error, hypervisor.uri) from error


def _shortened(message: str) -> str:
    return message.partition("XML document failed to validate against schema: ")[2] or message


def begin(hypervisor: Hypervisor, name: str) -> Plan:
    """The definition of VM ``name`` as it is to be edited. Raises Conflict for a transient one."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        if not domain.isPersistent():
            raise Conflict(
                f"{domain.name()} is transient: it has no definition to edit",
                f"'kvmctl dumpxml {domain.name()} | kvmctl define -' gives it one",
            )
        text = domain.XMLDesc(_DEFINED)
        return Plan(domain.name(), text, domain, text, state_of(domain))


def finish(hypervisor: Hypervisor, found: Plan, text: str, *, validate: bool = True) -> dict[str, Any]:
    """Put the edited ``text`` in place of ``found``; the same keys as define().

    Raises UsageProblem where the XML is wrong or names another VM, Conflict where somebody else changed
    the definition meanwhile; then nothing has changed.
    """
    assert found.domain is not None and found.before is not None
    tree = xml.parse(text, "domain XML", "domain")
    old = xml.parse(found.before, "domain XML")
    for key, instead in (("name", "'kvmctl rename' does that"), ("uuid", "a UUID stays for life")):
        if (tree.findtext(key) or "").strip() != old.findtext(key):
            raise UsageProblem(f"an edit cannot change the {key} of {found.name}", instead)
    with translated(hypervisor.uri):
        if text != found.before and found.domain.XMLDesc(_DEFINED) != found.before:
            raise Conflict(f"the definition of {found.name} was changed by somebody else meanwhile", "edit it again")
    if text == found.before:
        return _row(found.domain, found.state, changed=False, created=False)
    return define(hypervisor, Plan(found.name, text, found.domain, found.before, found.state), validate=validate)


def _row(domain: libvirt.virDomain, state: str, *, changed: bool, created: bool) -> dict[str, Any]:
    return {
        "name": domain.name(),
        "uuid": domain.UUIDString(),
        "state": state,
        "changed": changed,
        "created": created,
        "pending": changed and not created and state in ACTIVE,
    }
