"""Cancelling a migration from outside, and putting right what one left that was killed."""

import contextlib
import time
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, is_missing, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, UsageProblem
from kvmctl.model.migration import Note
from kvmctl.operations import migrate_after, migrate_reclaim, migrate_storage
from kvmctl.operations.lifecycle import state_of
from kvmctl.operations.migrate_note import read_note, remove_note
from kvmctl.operations.migrate_truth import Hosts, Truth, forget_source, settle
from kvmctl.operations.progress import Progress
from kvmctl.preflight.reachable import open_destination

# libvirt's answer to a cancelled job comes at once; its end may wait for a host that does not answer.
END_SECONDS = 40.0
# A QEMU that had stopped its guest to switch when the link died waits for TCP, which looks again ever more seldom:
# after an outage of a minute it may take another two until the guest can go on.
PATIENCE_SECONDS = 180.0


def abort(hypervisor: Hypervisor, name: str) -> dict[str, Any]:
    """Cancel the migration of ``name`` that is under way, and wait for its end.

    Returns ``{"name", "uuid", "state", "changed"}``. Raises Conflict where another job is at work, or post-copy
    has begun: then the guest runs on the other side already.
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        changed = False
        if domain.isActive():
            stats = domain.jobStats(0)
            if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE:
                operation = stats.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
                if operation != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
                    raise Conflict(
                        f"{domain.name()} is busy, but not with a migration away from here",
                        "a migration is cancelled on the host that the guest leaves",
                    )
                domain.abortJob()
                changed = True
                _until_over(domain)
        return {"name": domain.name(), "uuid": domain.UUIDString(), "state": state_of(domain), "changed": changed}


def _until_over(domain: libvirt.virDomain) -> None:
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end and domain.isActive():
        if domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
            return
        time.sleep(0.1)


def recover(hypervisor: Hypervisor, name: str, destination: str | None, progress: Progress) -> dict[str, Any]:
    """Find the guest on both hosts and leave one, in order.

    ``destination`` None: where the note in its metadata says it was going (or came from). Returns ``{"name",
    "uuid", "place", "state", "source", "destination", "sentence"}``. Raises KvmctlError where even now it is not
    certain; NotFound where neither host has it.
    """
    uuid, note, other_uri = _what_is_known(hypervisor, name, destination)
    other = open_destination(other_uri)
    hosts = Hosts(hypervisor, other, other_uri, uuid)
    _wait_for_jobs(hosts)
    before = _before(hosts)
    progress.step("asking both hosts what is true")
    truth = settle(hosts, before, PATIENCE_SECONDS, moved=note is not None and note.source == hosts.source_uri)
    if _torn(truth):
        truth = _resume_post_copy(hosts, truth)
    if truth.place == "unclear":
        twice = truth.source.runs and truth.destination.runs
        hint = f"power one of them off: 'kvmctl -c URI destroy {name}'" if twice else "try again when both hosts answer"
        raise KvmctlError(f"{name}: {truth.sentence}", hint)
    if truth.place == "source" and truth.source.waits and not truth.settled and truth.destination.word == "absent":
        raise Conflict(f"{name}: {truth.sentence}; its QEMU does not let it go on yet", "try again in a minute")
    return _put_in_order(hosts, name, uuid, note, truth, before)


def _what_is_known(hypervisor: Hypervisor, name: str, destination: str | None) -> tuple[str, Note | None, str]:
    domain = None
    with contextlib.suppress(NotFound):
        domain = hypervisor.find(name)
    if domain is None:
        if destination is None:
            raise NotFound(f"no VM named {name[:100]!a} on {hypervisor.uri}", "name the other host as well: VM DEST")
        other = open_destination(destination)
        found = other.find(name)
        return found.UUIDString(), read_note(found), destination
    note = read_note(domain)
    if destination is None:
        if note is None or not note.destination:
            raise UsageProblem(
                f"{name[:100]!a} holds no note of a migration, so the other host is not known",
                "name it: 'kvmctl migrate VM DEST --recover'",
            )
        destination = note.destination
    return domain.UUIDString(), note, destination


def _before(hosts: Hosts) -> str:
    """The state the guest had before: a pause of the user's own is one that no migration made."""
    try:
        number, reason = hosts.domain("source").state()
    except (libvirt.libvirtError, KvmctlError):
        return "running"
    paused_by_user = number == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_USER
    return "paused" if paused_by_user else "running"


def _wait_for_jobs(hosts: Hosts) -> None:
    """A migration that libvirt still works on is let finish: it goes on without the kvmctl that began it."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        try:
            if hosts.domain("source").jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                return
        except libvirt.libvirtError as error:
            if is_missing(error) or error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                return
        except KvmctlError:
            return
        time.sleep(0.2)
    raise Conflict(
        "the migration is still under way, and goes on without kvmctl", "wait for it, or cancel it with --abort"
    )


def _torn(truth: Truth) -> bool:
    return truth.source.post_copy_broken or truth.destination.post_copy_broken


def _resume_post_copy(hosts: Hosts, truth: Truth) -> Truth:
    """The memory is on both sides, and libvirt can go on sending it where the connection is back."""
    flags = (
        libvirt.VIR_MIGRATE_POSTCOPY
        | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        | libvirt.VIR_MIGRATE_LIVE
    )
    domain = hosts.domain("source")
    try:
        domain.migrateToURI3(hosts.destination_uri, {}, flags | libvirt.VIR_MIGRATE_PEER2PEER)
    except libvirt.libvirtError as error:
        raise KvmctlError(
            f"{truth.sentence}, and sending it on failed: {error.get_error_message()}", "is the link between them up?"
        ) from error
    return settle(hosts, "running")


def _put_in_order(hosts: Hosts, name: str, uuid: str, note: Note | None, truth: Truth, before: str) -> dict[str, Any]:
    sentence = truth.sentence
    if truth.place == "destination":
        forget_source(hosts)
        warnings = migrate_after.arrive_after_crash(hosts, note)
        sentence = "; ".join([sentence, *warnings])
    else:
        half = note.volumes if note is not None and truth.never_arrived else ()
        if note is not None and truth.place == "source":
            problem = migrate_reclaim.reclaim(hosts.domain("source"), before, PATIENCE_SECONDS)
            if problem is not None:
                raise Conflict(f"{name}: {sentence}; {problem}", "try again in a minute")
        left = migrate_storage.delete(hosts.hypervisor("destination"), half) if half else []
        if left:
            raise KvmctlError(f"{name}: {sentence}; could not remove {'; '.join(left)}")
        with contextlib.suppress(KvmctlError, libvirt.libvirtError):
            remove_note(hosts.domain("source"))
    seen = truth.destination if truth.place == "destination" else truth.source
    return {
        "name": name,
        "uuid": uuid,
        "place": truth.place,
        "state": seen.word,
        "source": hosts.source_uri,
        "destination": hosts.destination_uri,
        "sentence": sentence,
    }
