"""A VM's switches: whether it starts with its host, and whether delete spares it."""

from dataclasses import dataclass
from typing import Any

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict
from kvmctl.model import start_order
from kvmctl.operations import metadata
from kvmctl.operations import start_order as start_orders
from kvmctl.operations.lifecycle import state_of


@dataclass(frozen=True)
class Plan:
    """``mark`` is autostart or protected, ``on`` what it shall be, ``changes`` whether it is not yet."""

    domain: libvirt.virDomain
    name: str
    uuid: str
    state: str
    mark: str
    on: bool
    changes: bool

    def row(self) -> dict[str, Any]:
        """``{"name", "uuid", "state", "changed", MARK}``."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "state": self.state,
            "changed": self.changes,
            self.mark: self.on,
        }


def plan(hypervisor: Hypervisor, name: str, mark: str, on: bool) -> Plan:
    """Look at the switch. Raises NotFound; Conflict for the autostart of a transient VM."""
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        shown = domain.name()
        if mark == "autostart":
            if on and not domain.isPersistent():
                raise Conflict(
                    f"{shown} is transient: it ends with its run, so it cannot start with the host",
                    f"'kvmctl dumpxml {shown} | kvmctl define -' makes it stay",
                )
            now = start_orders.starts_with_host(hypervisor, domain)
            # An order that is not in force is taken away, too.
            now = now or (not on and start_orders.of(domain) is not None)
        else:
            now = metadata.read(domain).protected
        return Plan(domain, shown, domain.UUIDString(), state_of(domain), mark, on, now != on)


def run(hypervisor: Hypervisor, found: Plan) -> dict[str, Any]:
    """Set the switch."""
    if found.changes:
        with translated(hypervisor.uri):
            if found.mark == "autostart":
                found.domain.setAutostart(1 if found.on else 0)
                if not found.on:
                    metadata.write(found.domain, start_order.put(metadata.read(found.domain), None))
            else:
                metadata.write(found.domain, metadata.read(found.domain)._replace(protected=found.on))
    return found.row()
