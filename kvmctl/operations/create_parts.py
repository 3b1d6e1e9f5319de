"""A new VM's disks, seed and boot files: which volumes to make, which files to use as they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, NotFound, UsageProblem
from kvmctl.model import disk as media
from kvmctl.model import xml
from kvmctl.model.metadata import OwnedVolume
from kvmctl.model.units import human_size
from kvmctl.operations import disk_secret, disk_sources, hypervisor_files, pools
from kvmctl.operations.create_request import Request
from kvmctl.operations.new_uuid import new_uuid
from kvmctl.operations.progress import Progress
from kvmctl.operations.seed import Seed, hostname_for

if TYPE_CHECKING:
    from kvmctl.operations.images import Image


class VolumePlan(NamedTuple):
    """A volume to be made: empty, over a backing image, or filled from ``upload``."""

    volume: OwnedVolume
    format: str
    capacity_bytes: int
    backing: "Image | None" = None
    upload: bytes | str | None = None
    mode: Literal["0600", "0644"] = "0600"
    secret: "Secret | None" = None


class Secret(NamedTuple):
    """The passphrase of a LUKS volume, and the UUID by which libvirt will know it."""

    uuid: str
    passphrase: bytes

    def __repr__(self) -> str:
        """Without the passphrase: it must not be seen in a traceback."""
        return f"Secret(uuid={self.uuid!r})"


class Parts:
    """The disks, seed and boot files of one plan, collected in the order in which the guest sees them."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        request: Request,
        bus: str,
        cdrom_bus: str,
        leftover: libvirt.virDomain | None,
        progress: Progress,
        bring: bool,
    ) -> None:
        self.hypervisor, self.request, self.progress, self.bring = hypervisor, request, progress, bring
        self.bus, self.cdrom_bus, self.leftover = bus, cdrom_bus, leftover
        self.volumes: list[VolumePlan] = []
        self.disks: list[xml.Element] = []
        self.warnings: list[str] = []
        self.image: Image | None = None
        self.kernel: str | None = None
        self.initrd: str | None = None
        self._targets: set[str] = set()
        self._boot = 0

    def next_boot(self) -> int:
        """The next place in the boot order."""
        self._boot += 1
        return self._boot

    def collect(self) -> None:
        """Everything, root disk first: it keeps its name whatever comes after it."""
        request = self.request
        more = list(request.disks)
        if request.image is not None:
            self._root_over_image(more)
        elif request.import_ is not None:
            self._existing(media.ExistingDisk(request.import_), boot=True)
        for index, wanted in enumerate(more):
            # Without an image the first disk is the one an installer fills and the guest then boots from.
            boots = index == 0 and not self.disks and request.kernel is None
            if isinstance(wanted, media.NewDisk):
                self._new(wanted, boot=boots)
            else:
                self._existing(wanted, boot=boots)
        if request.cdrom is not None:
            self._cdrom(request.cdrom)
        if request.kernel is not None:
            self._boot_files(request.kernel, request.initrd)
        if self._wants_seed():
            self._seed()

    def _wants_seed(self) -> bool:
        request = self.request
        told = request.user or request.ssh_keys or request.password_hash or request.user_data or request.hostname
        if request.seed is not None:
            if told and not request.seed:
                raise UsageProblem("--no-seed leaves nobody to read --user, --ssh-key, --user-data or --hostname")
            return request.seed
        return bool(told) or (request.image is not None and request.profile != "windows")

    def _root_over_image(self, more: list[media.DiskRequest]) -> None:
        assert self.request.image is not None
        from kvmctl.operations.images import resolve as resolve_image

        image = resolve_image(self.hypervisor, self.request.image, self.progress, bring=self.bring)
        self.image = image
        root = more.pop(0) if more and isinstance(more[0], media.NewDisk) else media.NewDisk(image.virtual_size_bytes)
        assert isinstance(root, media.NewDisk)
        if root.size_bytes < image.virtual_size_bytes:
            raise UsageProblem(
                f"a disk of {human_size(root.size_bytes)} is smaller than the image {image.name}, "
                f"{human_size(image.virtual_size_bytes)}",
                "give a larger --disk, or none for the image's own size",
            )
        if root.format == "raw":
            raise UsageProblem("a disk over an image is copy-on-write, which raw cannot be", "leave out format=raw")
        self._new(root, boot=self.request.kernel is None, backing=image)

    def _new(self, wanted: media.NewDisk, boot: bool, backing: "Image | None" = None) -> None:
        format_ = wanted.format or "qcow2"
        number = sum(planned.volume.role == "disk" for planned in self.volumes)
        suffix = f"-{number}" if number else ""
        name = f"{self.request.name}{suffix}.{'qcow2' if format_ == 'qcow2' else 'img'}"
        volume, source = self._free_volume(wanted.pool, name, "disk")
        secret = None
        if wanted.passphrase_file is not None:
            secret = Secret(new_uuid(), disk_secret.read(Path(wanted.passphrase_file).expanduser()))
        self.volumes.append(VolumePlan(volume, format_, wanted.size_bytes, backing, secret=secret))
        self._add(source, format_, wanted.tuning, boot)
        holder = self.disks[-1].find("source")
        if secret is not None and holder is not None:
            disk_secret.encrypt(holder, secret.uuid)

    def _existing(self, wanted: media.ExistingDisk, boot: bool) -> None:
        source, format_ = disk_sources.existing(self.hypervisor, wanted)
        if not (wanted.tuning.readonly or wanted.tuning.shareable):
            disk_sources.refuse_shared(self.hypervisor, source.path)
        self._add(source, format_, wanted.tuning, boot)

    def _cdrom(self, path: str) -> None:
        tuning = media.DiskTuning(readonly=True, device="cdrom")
        source, head = self._hypervisor_or_upload(path, "ISO", "cdrom", ".iso", disk_sources.HEAD)
        disk_sources.check_iso(path, head)
        self._add(source, "raw", tuning, boot=True, bus=self.cdrom_bus)

    def _boot_files(self, kernel: str, initrd: str | None) -> None:
        if initrd and kernel.startswith("/"):
            with hypervisor_files.beside(self.hypervisor, kernel):
                self.kernel = self._boot_file(kernel, "kernel")
                self.initrd = self._boot_file(initrd, "initrd")
            return
        self.kernel = self._boot_file(kernel, "kernel")
        self.initrd = self._boot_file(initrd, "initrd") if initrd else None

    def _boot_file(self, path: str, what: str) -> str:
        source, head = self._hypervisor_or_upload(path, what, what, "", 512)
        if not head:
            raise UsageProblem(f"the {what} {path[:200]!a} is empty")
        return source.path

    def _hypervisor_or_upload(
        self, path: str, what: str, role: str, suffix: str, head: int
    ) -> tuple[media.Source, bytes]:
        """The file where the hypervisor has it, else this machine's, to be uploaded for this guest alone."""
        if not path:
            raise UsageProblem(f"the {what} has no name", "give the path of a file")
        local = path if path.startswith("/") else None
        if local is None and not self.hypervisor.is_remote:
            local = hypervisor_files.absolute(self.hypervisor, path)
        if local is not None:
            found = hypervisor_files.look(self.hypervisor, local, head)
            if found is not None:
                return media.Source(found.kind, found.path), found.head
        mine = Path(path)
        if not mine.is_file():
            raise NotFound(f"there is no {what} {path[:200]!a}, neither here nor on the host of {self.hypervisor.uri}")
        with mine.open("rb") as file:
            beginning = file.read(head)
        volume, source = self._free_volume(None, f"{self.request.name}-{role}{suffix}", "other")
        self.volumes.append(VolumePlan(volume, "raw", mine.stat().st_size, upload=str(mine.absolute()), mode="0644"))
        return source, beginning

    def _seed(self) -> None:
        request = self.request
        from kvmctl.operations import seed as seeds

        hostname = request.hostname or hostname_for(request.name)
        seed = Seed(new_uuid(), hostname, request.user, request.ssh_keys, request.password_hash, request.user_data)
        content = seeds.build(seed)
        volume, source = self._free_volume(None, f"{request.name}-seed.iso", "seed")
        self.volumes.append(VolumePlan(volume, "raw", len(content), upload=content))
        # A CD drive would be the natural place, but Debian's cloud kernel has no driver for AHCI. Where the
        # guest's disks are on SATA or IDE it has one, and there libvirt takes no disk that is read-only.
        drive = self.bus in ("sata", "ide")
        self._add(source, "raw", media.DiskTuning(readonly=True, device="cdrom" if drive else "disk"), boot=False)

    def _free_volume(
        self, pool_name: str | None, name: str, role: Literal["disk", "seed", "other"]
    ) -> tuple[OwnedVolume, media.Source]:
        """A volume name that nothing has yet, and where the volume will be."""
        place = pools.place(self.hypervisor, pool_name or pools.DEFAULT)
        with translated(self.hypervisor.uri):
            listed = metadata_volumes(self.leftover)
            taken = place.pool is not None and pools.find_volume(place.pool, name) is not None
            if taken and (place.name, name) not in listed:
                raise Conflict(
                    f"the storage pool {place.name} has a volume {name} that no VM of kvmctl's owns",
                    "choose another VM name, or see whose it is with 'virsh vol-info'",
                )
        source, path = disk_sources.in_place(place, name)
        return OwnedVolume(place.name, name, path, role), source

    def _add(
        self, source: media.Source, format_: str, tuning: media.DiskTuning, boot: bool, bus: str | None = None
    ) -> None:
        chosen = tuning.bus or bus or (self.cdrom_bus if tuning.device == "cdrom" else self.bus)
        target = media.next_target(chosen, self._targets)
        order = self.next_boot() if boot else None
        self.disks.append(media.disk_element(source, target, chosen, format_, tuning, order))


def metadata_volumes(domain: libvirt.virDomain | None) -> set[tuple[str, str]]:
    """(pool, name) of the volumes that ``domain`` lists as its own."""
    from kvmctl.operations import metadata

    return {(v.pool, v.name) for v in metadata.read(domain).volumes} if domain is not None else set()
