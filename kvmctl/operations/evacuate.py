"""Emptying a host: every VM to another one."""

from kvmctl.connection import Hypervisor, translated
from kvmctl.model.migration import Wish


def order(hypervisor: Hypervisor) -> list[tuple[str, bool]]:
    """(name, whether it runs) of each VM, in the order to move them: running ones first, the smallest first.

    One after the other: two at once would share the link, and each would stand still longer. The small ones are
    gone soonest, should the host not last.
    """
    with translated(hypervisor.uri):
        # info(): state, most memory in KiB, memory, vCPUs, CPU time
        found = [(not d.isActive(), d.info()[2], d.name()) for d in hypervisor.conn.listAllDomains(0)]
    return [(name, not off) for off, _, name in sorted(found)]


def wish_for(wish: Wish, runs: bool) -> Wish:
    """``wish`` as it fits one VM: what is off moves by its definition alone."""
    return wish if runs else wish._replace(offline=True, postcopy="never")
