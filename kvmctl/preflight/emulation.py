"""What QEMU's emulator (TCG) does wrong that a guest's owner must know of."""

from kvmctl.connection import Hypervisor, translated

# As libvirt counts versions: 9.0.0.
_SAFE = 9_000_000


def forgets_writes(hypervisor: Hypervisor, virt: str | None) -> bool:
    """Whether what a guest of libvirt's domain type ``virt`` writes while its memory is sent may get lost.

    Seen with 7.2: guests that hang after a move, by kvmctl as by virsh. Nobody but QEMU's version tells: its commit
    03bfc2188f ("physmem: Fix migration dirty bitmap coherency with TCG memory access") went into 9.0. A guest that
    is paused writes nothing, and under KVM the kernel keeps count.
    """
    if virt != "qemu":
        return False
    with translated(hypervisor.uri):
        version: int = hypervisor.conn.getVersion()
    return version < _SAFE
