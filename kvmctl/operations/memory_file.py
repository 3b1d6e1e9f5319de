"""A running guest's memory in a file: how its writing is looked after, and how its head is read and replaced.

The file is a storage volume on the hypervisor's host and is reached through streams.
"""

import contextlib
import time

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Refused
from kvmctl.model import save_image, xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.model.units import human_size
from kvmctl.operations import pools
from kvmctl.operations.abortable import abortable
from kvmctl.operations.progress import Progress
from kvmctl.operations.volume_reader import find_by_path, read_at
from kvmctl.preflight import emulation

# A guest that writes its memory faster than the file takes it would never be done: after so many seconds it is
# stopped for the rest.
CONVERGE_SECONDS = 30.0
# How long an event of libvirt's may be on its way on a busy machine.
EVENT_SECONDS = 5.0


def check_room(hypervisor: Hypervisor, domain: libvirt.virDomain, memory: OwnedVolume) -> None:
    """Raise Refused where the pool has less room than the guest's memory takes up now."""
    with translated(hypervisor.uri):
        available = pools.ensure_pool(hypervisor, memory.pool).info()[3]
        used = domain.memoryStats().get("rss", 0) * 1024
    if used > available:
        raise Refused(
            f"the storage pool {memory.pool} has {human_size(available)} free, and the memory of {domain.name()} "
            f"needs about {human_size(used)} there",
            "make room there first",
        )


def live(hypervisor: Hypervisor, domain: libvirt.virDomain) -> int:
    """The flag with which a guest runs on while its memory is written; 0 where the copy could not be trusted then."""
    virt = xml.parse(domain.XMLDesc(0), "domain", "domain").get("type")
    return 0 if emulation.forgets_writes(hypervisor, virt) else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE


def write(
    hypervisor: Hypervisor, domain: libvirt.virDomain, request: str, flags: int, progress: Progress
) -> int | None:
    """Take the snapshot ``request`` with its memory in a file; returns how many ms the guest stood still, if known."""
    text = f"copying the memory of {domain.name()}"
    progress.step(text)
    patience = Patience(domain, progress, text)
    with Pause(hypervisor, domain) as pause:
        try:
            abortable(lambda: domain.snapshotCreateXML(request, flags), domain.abortJob, patience.look)
        except libvirt.libvirtError as error:
            raise explain(error, hypervisor.uri) from error
        finally:
            patience.end()
        return pause.milliseconds()


def delete(hypervisor: Hypervisor, memory: OwnedVolume) -> None:
    """Delete a memory file, whether its pool has seen it yet or not."""
    pools.refresh(pools.ensure_pool(hypervisor, memory.pool))
    pools.delete_volume(hypervisor, memory.pool, memory.name)


def head(hypervisor: Hypervisor, memory: OwnedVolume) -> tuple[libvirt.virStorageVol, save_image.SaveImage]:
    """The volume that libvirt wrote, and its head as it wrote it."""
    volume = find_by_path(hypervisor, memory.path or "")
    if volume is None:
        raise Refused(f"the memory file {memory.path} is not in the storage pool {memory.pool}")
    length = save_image.head_length(read_at(volume, 0, save_image.HEADER_SIZE))
    return volume, save_image.parse(read_at(volume, 0, length))


def write_head(volume: libvirt.virStorageVol, data: bytes) -> None:
    """Replace the first bytes of the file; what follows them stays."""
    stream = volume.connect().newStream(0)
    try:
        volume.upload(stream, 0, len(data), 0)
        while data:
            data = data[stream.send(data[: pools.CHUNK]) :]
        stream.finish()
    except libvirt.libvirtError as error:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise explain(error) from error


class Patience:
    """Looks after the writing of the memory: tells how far it is, and stops a guest that would never be done."""

    def __init__(self, domain: libvirt.virDomain, progress: Progress, text: str) -> None:
        self.domain, self.progress, self.text = domain, progress, text
        self.until = time.monotonic() + CONVERGE_SECONDS
        self.stopped = False

    def look(self) -> None:
        """Called every now and then."""
        stats = self.domain.jobStats(0)
        total, done = stats.get("data_total"), stats.get("data_processed")
        if total and done is not None:
            self.progress.amount(self.text, min(done, total), total)
        if not self.stopped and time.monotonic() > self.until:
            self.stopped = True
            self.domain.suspend()

    def end(self) -> None:
        """Let a guest that was stopped run on."""
        if self.stopped and self.domain.state(0)[0] == libvirt.VIR_DOMAIN_PAUSED:
            self.domain.resume()


class Pause:
    """How long a guest stood still, by libvirt's own events."""

    def __init__(self, hypervisor: Hypervisor, domain: libvirt.virDomain) -> None:
        self._conn = hypervisor.conn
        self._domain = domain
        self._number: int | None = None
        self._since: float | None = None
        self._total = 0.0
        self._seen = False

    def __enter__(self) -> "Pause":
        with contextlib.suppress(libvirt.libvirtError):
            self._number = self._conn.domainEventRegisterAny(
                self._domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._number is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._conn.domainEventDeregisterAny(self._number)

    def _event(self, _conn: object, _domain: object, event: int, _detail: int, _opaque: object) -> None:
        now = time.monotonic()
        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and self._since is None:
            self._since = now
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._since is not None:
            self._total += now - self._since
            self._since, self._seen = None, True

    def milliseconds(self) -> int | None:
        """The pause, after waiting a moment for an event that is still on its way."""
        until = time.monotonic() + EVENT_SECONDS
        while not self._seen and self._number is not None and time.monotonic() < until:
            time.sleep(0.01)
        return round(self._total * 1000) if self._seen else None
