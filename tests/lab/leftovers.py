"""What there is on a host, so that what a test added can be told and removed."""

import contextlib
from dataclasses import dataclass

import libvirt

from tests.lab.hosts import Host

_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


@dataclass(frozen=True)
class World:
    """All that libvirt has on a host, by name, and the files that guests leave there."""

    domains: frozenset[str]
    networks: frozenset[tuple[str, bool]]
    pools: frozenset[tuple[str, bool]]
    volumes: frozenset[tuple[str, str]]
    files: frozenset[str]

    @classmethod
    def of(cls, host: Host) -> "World":
        """Look at ``host``."""
        conn = host.conn
        pools = conn.listAllStoragePools(0)
        volumes = set()
        for pool in pools:
            if pool.isActive():
                # A pool whose folder is gone cannot be read anew; it then keeps what it knew.
                with contextlib.suppress(libvirt.libvirtError):
                    pool.refresh(0)
                volumes |= {(pool.name(), name) for name in pool.listVolumes()}
        return cls(
            domains=frozenset(domain.name() for domain in conn.listAllDomains(0)),
            networks=frozenset((net.name(), bool(net.isActive())) for net in conn.listAllNetworks(0)),
            pools=frozenset((pool.name(), bool(pool.isActive())) for pool in pools),
            volumes=frozenset(volumes),
            files=frozenset(host.files()),
        )

    def beyond(self, other: "World") -> list[str]:
        """What is here and was not in ``other``, for people to read.

        Pools that kvmctl makes, and the network ``default``, may have been made or started: they belong to the host.
        """
        return [
            *(f"VM {name}" for name in sorted(self.domains - other.domains)),
            *(f"network {net}" for net, _ in sorted(self.networks - other.networks) if net != "default"),
            *(
                f"pool {pool}"
                for pool, _ in sorted(self.pools - other.pools)
                if pool not in ("default", "kvmctl-images")
            ),
            *(f"volume {name} of {pool}" for pool, name in sorted(self.volumes - other.volumes)),
            *(f"file {path}" for path in sorted(self.files - other.files)),
        ]

    def restore(self, host: Host) -> None:
        """Remove from ``host`` all that this world did not have."""
        conn = host.conn
        for domain in conn.listAllDomains(0):
            if domain.name() not in self.domains:
                _end(domain)
        now = World.of(host)
        for pool_name, name in now.volumes - self.volumes:
            with contextlib.suppress(libvirt.libvirtError):
                conn.storagePoolLookupByName(pool_name).storageVolLookupByName(name).delete(0)
        for pool in conn.listAllStoragePools(0):
            if pool.name() != "default" and pool.name() not in {name for name, _ in self.pools}:
                _drop(pool)
        for network in conn.listAllNetworks(0):
            if network.name() != "default" and network.name() not in {name for name, _ in self.networks}:
                _drop(network)
        for path in host.files() - self.files:
            host.run(["rm", "-f", "--", path])


def _end(domain: libvirt.virDomain) -> None:
    # Each of these is refused where it has nothing to do; what must hold is asked at the end.
    for step in (domain.destroy, lambda: domain.undefineFlags(_UNDEFINE)):
        with contextlib.suppress(libvirt.libvirtError):
            step()


def _drop(thing: "libvirt.virNetwork | libvirt.virStoragePool") -> None:
    for step in (thing.destroy, thing.undefine):
        with contextlib.suppress(libvirt.libvirtError):
            step()
