"""After a migration ended in whatever way: where is the guest really? Both hosts are asked, and put in order.

The rule: exactly one guest runs. What kvmctl ends is a copy that does not run, and only while the other one is seen
running; what it lets run on is only a guest that the other host, asked now, does not have. One case is worse:
libvirt's source hands over, the answer is lost with the link, and 30 s later it lets the guest go on, which the
destination has started too. Of two that run the destination's is ended: of that one nobody has been told.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, connect, is_missing
from kvmctl.errors import KvmctlError
from kvmctl.model import state
from kvmctl.preflight.reachable import open_destination

# qemu.conf's keepalive: libvirt notices a dead peer after 30 s, and then cleans up by itself.
PATIENCE_SECONDS = 45.0
# What libvirt does within moments itself; only then does kvmctl step in.
GRACE_SECONDS = 8.0
_LOOK_SECONDS = 0.25
_TWIN = "the link had broken at the switchover and it ran on {} too, where it was ended: what it did there is gone"

Place = Literal["source", "destination", "off", "unclear"]


class Seen(NamedTuple):
    """The guest on one host. ``word`` is libvirt's state, ``absent`` or ``unreachable``."""

    word: str
    reason: int = 0

    @property
    def runs(self) -> bool:
        """Whether its CPUs may be running there."""
        return self.word in ("running", "blocked")

    @property
    def waits(self) -> bool:
        """Whether it is there with its memory, stopped."""
        return self.word == "paused"

    @property
    def post_copy_broken(self) -> bool:
        """Whether it stands still because its memory is torn between the hosts."""
        return self.waits and self.reason in (
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        )


class Truth(NamedTuple):
    """Where the guest is, as a sentence too. ``settled``: nothing more is to be done on either host."""

    place: Place
    sentence: str
    settled: bool
    source: Seen
    destination: Seen

    @property
    def never_arrived(self) -> bool:
        """Whether what was copied to the destination is but half of it; a guest that ended over there ran from it."""
        return self.place == "source" or (self.place == "off" and self.destination.word == "absent")


class Hosts:
    """Both hosts, asked anew: a connection that broke is opened again."""

    def __init__(self, source: Hypervisor, destination: Hypervisor | None, destination_uri: str, uuid: str) -> None:
        self.source, self.destination = source, destination
        self.source_uri, self.destination_uri, self.uuid = source.uri, destination_uri, uuid

    def domain(self, where: Literal["source", "destination"]) -> libvirt.virDomain:
        """The guest's domain there. Raises libvirtError or KvmctlError."""
        return self.hypervisor(where).conn.lookupByUUIDString(self.uuid)

    def hypervisor(self, where: Literal["source", "destination"]) -> Hypervisor:
        """The open connection; made again where it died."""
        known = self.source if where == "source" else self.destination
        if known is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if known.conn.isAlive():
                    return known
        if where == "source":
            self.source = connect(self.source_uri, events=True)
            return self.source
        self.destination = open_destination(self.destination_uri)
        return self.destination

    def see(self, where: Literal["source", "destination"]) -> Seen:
        """What is true there now."""
        try:
            number, reason = self.domain(where).state()
        except libvirt.libvirtError as error:
            return Seen("absent") if is_missing(error) else Seen("unreachable")
        except KvmctlError:
            return Seen("unreachable")
        return Seen(state.word(number), reason)


def settle(hosts: Hosts, before: str, patience: float = PATIENCE_SECONDS, moved: bool = True) -> Truth:
    """Wait until one place is certain, helping where libvirt does not, and say it.

    ``before`` is the guest's state before the migration; ``moved`` whether it is known that kvmctl was moving it from
    the source to the destination: only then is one of two that run ended. Raises nothing: what cannot be told is
    ``unclear``.
    """
    began = time.monotonic()
    twin = False
    while True:
        waited = time.monotonic() - began
        here, there = hosts.see("source"), hosts.see("destination")
        truth = judge(here, there, before, hosts)
        if twin:
            truth = truth._replace(sentence=f"{truth.sentence}; {_TWIN.format(hosts.destination_uri)}")
        if truth.settled or waited > patience:
            return truth
        if truth.place == "source" and there.word == "unreachable" and waited > GRACE_SECONDS and here.runs:
            return truth
        if waited > GRACE_SECONDS:
            _help(hosts, here, there, before)
            twin = (moved and here.runs and there.runs and _end_twin(hosts)) or twin
        time.sleep(_LOOK_SECONDS)


def judge(here: Seen, there: Seen, before: str, hosts: Hosts) -> Truth:
    """What the two answers mean together. Pure."""
    source, destination = hosts.source_uri, hosts.destination_uri

    def truth(place: Place, sentence: str, settled: bool) -> Truth:
        return Truth(place, sentence, settled, here, there)

    was_running = before != "paused"
    if here.post_copy_broken or there.post_copy_broken:
        if there.runs:
            return truth("destination", f"it runs on {destination}, its memory still coming from {source}", False)
        return truth(
            "unclear", f"it stands still, its memory torn between {source} and {destination}: it runs nowhere", False
        )
    if here.runs and there.runs:
        return truth("unclear", f"it is seen running on both {source} and {destination}", False)
    if there.runs or (there.waits and not was_running and here.word in ("absent", "shutoff")):
        done = here.word in ("absent", "shutoff")
        left = "" if done else f", and {source} does not answer" if here.word == "unreachable" else ""
        return truth("destination", f"it is {there.word} on {destination}{left}", done)
    if here.runs or (here.waits and not was_running):
        if there.word == "absent":
            return truth("source", f"it is {here.word} on {source}, as before, and not on {destination}", True)
        if there.word == "unreachable":
            return truth("source", f"it is {here.word} on {source}; {destination} does not answer", False)
        return truth("source", f"it is {here.word} on {source}; {destination} still has a stopped copy", False)
    if here.waits and there.word == "absent":
        # QEMU lets it go on only when it has given the connection up ("Migration is not finalized yet").
        return truth("source", f"it is paused on {source}, and not on {destination}", False)
    if here.word in ("shutoff", "crashed", "absent") and there.word in ("absent", "shutoff"):
        where = source if here.word != "absent" else destination if there.word == "shutoff" else "either host"
        return truth("off", f"it is off ({where}), and no QEMU of it runs on either host", True)
    words = f"{source}: {here.word}, {destination}: {there.word}"
    return truth("unclear", f"it is not certain where it is ({words})", False)


def _help(hosts: Hosts, here: Seen, there: Seen, before: str) -> None:
    """What libvirt left undone and is safe to do."""
    with contextlib.suppress(libvirt.libvirtError, KvmctlError):
        if here.post_copy_broken or there.post_copy_broken:
            return
        if here.runs and there.waits:
            _end(hosts.domain("destination"))
        elif there.runs and here.waits:
            _end(hosts.domain("source"))
        elif here.waits and before != "paused" and there.word == "absent":
            hosts.domain("source").resume()


def _end_twin(hosts: Hosts) -> bool:
    """Both ran when they were asked; unless that was one guest on its way, asked before and after, end the other's."""
    with contextlib.suppress(libvirt.libvirtError, KvmctlError):
        source = hosts.domain("source")
        if source.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE and hosts.see("source").runs:
            _end(hosts.domain("destination"))
            return True
    return False


def _end(domain: libvirt.virDomain) -> None:
    """End a copy, with its definition where it has one; its disks are the other's and stay."""
    persistent = domain.isPersistent()
    domain.destroy()
    if persistent:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def forget_source(hosts: Hosts) -> None:
    """The guest is on the destination: a definition left at the source must not start it a second time."""

    def quietly(step: Callable[[], object]) -> None:
        with contextlib.suppress(libvirt.libvirtError, KvmctlError):
            step()

    if hosts.see("source").word == "shutoff":
        quietly(lambda: hosts.domain("source").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM))
