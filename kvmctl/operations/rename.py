"""Giving a VM another name."""

from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict
from kvmctl.model.names import check_new_name
from kvmctl.model.state import ACTIVE
from kvmctl.operations.lifecycle import state_of


@dataclass(frozen=True)
class Plan:
    """``changes`` is False where it has that name already."""

    domain: libvirt.virDomain
    old: str
    new: str
    uuid: str
    state: str
    changes: bool

    def row(self) -> dict[str, Any]:
        """``{"name", "uuid", "state", "changed", "old_name"}``."""
        return {
            "name": self.new,
            "uuid": self.uuid,
            "state": self.state,
            "changed": self.changes,
            "old_name": self.old,
        }


def plan(hypervisor: Hypervisor, name: str, new: str) -> Plan:
    """Look before a rename. Raises NotFound; Conflict where it runs or the name is taken; UsageProblem."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        old, uuid, state = domain.name(), domain.UUIDString(), state_of(domain)
        if old == new:
            return Plan(domain, old, new, uuid, state, False)
        check_new_name(new)
        if hypervisor.find_or_none(new) is not None:
            raise Conflict(f"there is a VM named {new} already", "choose another name")
        if state in ACTIVE:
            raise Conflict(f"{old} is {state}, and libvirt renames only what is off", f"'kvmctl stop {old}' first")
        if domain.hasManagedSaveImage(0):
            raise Conflict(
                f"{old} has a saved state, which libvirt would lose track of",
                f"'kvmctl restore {old}' and 'kvmctl stop {old}' first",
            )
    return Plan(domain, old, new, uuid, state, True)


def run(hypervisor: Hypervisor, found: Plan) -> dict[str, Any]:
    """Rename it."""
    if found.changes:
        try:
            found.domain.rename(found.new, 0)
        except libvirt.libvirtError as error:
            if hypervisor.find_or_none(found.new) is not None:
                raise Conflict(f"there is a VM named {found.new} already", "choose another name") from error
            raise explain(error, hypervisor.uri) from error
    return found.row()
