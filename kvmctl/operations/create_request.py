"""What a new VM shall be, and what of it is wrong whatever the hypervisor."""

from typing import Literal, NamedTuple

from kvmctl.errors import UsageProblem
from kvmctl.model import disk as media
from kvmctl.model import nic as wires
from kvmctl.model.extras import ExtraDevice
from kvmctl.model.firmware import Firmware
from kvmctl.model.metadata import Forward
from kvmctl.model.names import check_new_name
from kvmctl.model.pci import PciSelector, check_count
from kvmctl.model.profile import Profile
from kvmctl.model.tuned import Tuning
from kvmctl.model.units import MIB, human_size

DEFAULT_MEMORY = 2048 * MIB
DEFAULT_VCPUS = 2
SMALLEST_MEMORY = 16 * MIB


class Request(NamedTuple):
    """What the user asked for, read and checked for itself but not yet against any hypervisor."""

    name: str
    image: str | None = None
    cdrom: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    import_: str | None = None
    pxe: bool = False
    vcpus: int | None = None
    max_vcpus: int | None = None
    memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    cpu: str | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    machine: str | None = None
    arch: str | None = None
    disks: tuple[media.DiskRequest, ...] = ()
    # None: nothing was said of networks; empty: none is wanted.
    nics: tuple[wires.Nic, ...] | None = None
    nic_model: str | None = None
    forwards: tuple[Forward, ...] = ()
    pci: tuple[PciSelector, ...] = ()
    firmware: Firmware | None = None
    tpm: bool | None = None
    profile: Profile | None = None
    os: str | None = None
    graphics: Literal["none", "vnc", "spice"] = "vnc"
    graphics_listen: str | None = None
    video: str | None = None
    graphics_tls: bool = False
    graphics_password: str | None = None
    devices: tuple[ExtraDevice, ...] = ()
    sound: bool = False
    title: str | None = None
    description: str | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    password_hash: str | None = None
    user_data: str | None = None
    hostname: str | None = None
    seed: bool | None = None
    autostart: bool = False
    tuning: Tuning = Tuning()
    start: bool = True
    strict: bool = False

    def __repr__(self) -> str:
        """Without the password, which must not be seen in a traceback."""
        return f"{type(self).__name__}(name={self.name!r})"


def check(request: Request) -> None:
    """Raise UsageProblem for what is wrong whatever the hypervisor."""
    check_new_name(request.name)
    sources = [
        flag
        for flag, value in (("--image", request.image), ("--cdrom", request.cdrom), ("--import", request.import_))
        if value is not None
    ]
    if len(sources) > 1 and sources != ["--cdrom", "--import"]:
        raise UsageProblem(f"{' and '.join(sources)} do not go together", "give one of them")
    if not sources and not request.pxe and request.kernel is None:
        raise UsageProblem(
            "nothing was given to boot from", "give --image, --cdrom, --import, --kernel or --pxe ('kvmctl image list')"
        )
    if request.kernel is None and (request.initrd or request.cmdline):
        raise UsageProblem("--initrd and --cmdline go with --kernel")
    vcpus, memory = request.vcpus or DEFAULT_VCPUS, request.memory_bytes or DEFAULT_MEMORY
    if request.max_vcpus is not None and request.max_vcpus < vcpus:
        raise UsageProblem(f"{vcpus} vCPUs are more than their maximum of {request.max_vcpus}")
    if request.max_memory_bytes is not None and request.max_memory_bytes < memory:
        raise UsageProblem("the memory is more than its maximum")
    if memory < SMALLEST_MEMORY:
        raise UsageProblem(f"{human_size(memory)} of memory is less than any guest can start with", "give at least 16M")
    if request.user_data is not None and (request.user or request.password_hash or request.ssh_keys):
        raise UsageProblem("--user-data is the whole user-data: --user, --ssh-key and --password-file belong into it")
    if request.video is not None and request.graphics == "none":
        raise UsageProblem("--video goes with --graphics vnc or spice")
    if request.pxe and request.nics == ():
        raise UsageProblem("--pxe needs a network card", "leave out --net none")
    if request.forwards and request.nics == ():
        raise UsageProblem("-p needs a network card", "leave out --net none")
    check_count(0, len(request.pci))
    _check_start(request)


def _check_start(request: Request) -> None:
    tuning = request.tuning
    if request.autostart and tuning.start_order:
        raise UsageProblem(
            "--autostart and --autostart-order exclude each other", "the order alone lets it start with its host"
        )
    if tuning.start_delay and not tuning.start_order:
        raise UsageProblem("--autostart-delay is for a VM with a start order", "give --autostart-order as well")
