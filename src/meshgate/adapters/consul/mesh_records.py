"""What Consul says of namespaces, admin partitions and peered clusters, and the requests that bring it.

The followers of these know the client only as a `MeshReader`, as the other watches know it as a `Reader`.
"""

from dataclasses import dataclass
from typing import Protocol

from meshgate.core.catalog import ChainTarget, SamenessGroup

from .records import Client, Cursor, Page, Reader

# Peerings in these states are on their way out.
_ENDING = frozenset(("DELETING", "TERMINATED"))


@dataclass(frozen=True, slots=True)
class Tenant:
    """Where requests look; what is empty is not sent, and Consul takes what the client was made with.

    Only Enterprise knows namespaces and partitions. `peer` is the name of a peering: what was imported from there.
    """

    namespace: str = ""
    partition: str = ""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Peering:
    """A peering of this cluster. `addresses` are those of the peer's servers, which answer to `server_name`.

    `imported` are the names of imported services as Consul's leader remembers them: after an election it forgets them
    for a while. In Enterprise a name is `partition/namespace/name`.
    """

    name: str
    state: str
    server_name: str = ""
    addresses: tuple[tuple[str, int], ...] = ()
    imported: tuple[str, ...] = ()
    modify_index: int = 0

    @property
    def active(self) -> bool:
        """Whether it is not being deleted."""
        return self.state not in _ENDING


@dataclass(frozen=True, slots=True)
class Exported:
    """A service that the partition exports, and to whom.

    In a raw entry `*` stands for every service or namespace, and `groups` are the sameness groups to whose members it
    is exported, too.
    """

    service: str
    namespace: str
    peers: tuple[str, ...]
    partitions: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A compiled discovery chain, as far as an export follows it; see `core.catalog.Export`."""

    protocol: str
    target: ChainTarget | None


class MeshReader(Reader, Protocol):
    """The requests beyond one namespace, partition and cluster."""

    def within(self, tenant: Tenant) -> "MeshReader":
        """The same connection, for requests elsewhere."""
        ...

    async def namespaces(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        """The namespaces of the partition (Enterprise)."""
        ...

    async def nodes_visible(self) -> bool:
        """Whether the token sees nodes of the partition, or there are none that it could see."""
        ...

    async def partitions(self) -> Page[tuple[str, ...]]:
        """The admin partitions of the datacenter (Enterprise)."""
        ...

    async def peerings(self) -> Page[tuple[Peering, ...] | None]:
        """The peerings of the partition; None where this Consul knows none, being too old or told not to."""
        ...

    async def peer_through(self, cursor: Cursor) -> Page[bool]:
        """Whether the peering control plane goes through mesh gateways."""
        ...

    async def exported_services(self, cursor: Cursor) -> Page[tuple[Exported, ...]]:
        """What the partition exports; NotFoundError before Consul 1.17.3."""
        ...

    async def exported_entry(self, cursor: Cursor, partition: str) -> Page[tuple[Exported, ...]]:
        """The same as it was written, for older versions."""
        ...

    async def sameness_group(self, name: str, cursor: Cursor) -> Page[SamenessGroup]:
        """The members of a group, none where it does not exist; BadRequestError where Consul knows no groups."""
        ...

    async def discovery_chain(self, service: str, cursor: Cursor) -> Page[Chain]:
        """Where calls of a service lead."""
        ...


class MeshClient(MeshReader, Client, Protocol):
    """A client for short requests, which gives readers for long ones."""

    def scoped(self, tenant: Tenant) -> "MeshClient":
        """The same client, for requests elsewhere."""
        ...
