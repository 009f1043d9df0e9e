"""What the client gives: typed answers with what is needed to ask again, and the protocol of the client itself.

The watches know the client only as a `Reader`, so they can be tested without a socket.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from meshgate.core.balance import Policy
from meshgate.core.catalog import NOWHERE, Instance, Locality
from meshgate.core.gateway_options import DestinationLimits
from meshgate.core.listeners import BindAddress

T_co = TypeVar("T_co", covariant=True)

Instances = tuple[Instance, ...]

# `Service.Kind` of a mesh gateway, and the name that Consul's tools give it by default.
GATEWAY_KIND: Final = "mesh-gateway"

# Seconds a blocking query may be held. Consul adds up to a sixteenth; a connection that was given up keeps its slot in
# the agent until this time is over.
LONGEST_WAIT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a blocking query goes on. The default one does not block: it asks for the present state.

    `wait` is in seconds. `content_hash` is for the agent's own endpoints, which have no index.
    """

    index: int = 0
    content_hash: str = ""
    wait: float = LONGEST_WAIT

    @property
    def blocks(self) -> bool:
        """Whether a query with this cursor may be held by Consul."""
        return bool(self.index or self.content_hash)


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """An answer. `filtered`: Consul (1.11 and later) says that it left out what the token may not see.

    `index` is None where the endpoint has none.
    """

    value: T_co
    index: int | None = None
    content_hash: str = ""
    filtered: bool = False


@dataclass(frozen=True, slots=True)
class CaRoots:
    """The trust domain of the mesh, and when its certificates end, in Unix time.

    `expires` is that of the active root, `intermediate_expires` that of the intermediate which signs under it; None
    where there is none, or none that can be read.
    """

    trust_domain: str
    expires: float | None = None
    intermediate_expires: float | None = None


@dataclass(frozen=True, slots=True)
class SubsetRule:
    """A subset as its service-resolver defines it; an empty filter leaves all instances."""

    name: str
    filter: str = ""
    only_passing: bool = False


@dataclass(frozen=True, slots=True)
class Resolver:
    """The parts of a service-resolver that a gateway follows. `connect_timeout` is in seconds.

    `ignored_policy` is a load balancing policy that a gateway does not follow; "" where there is none.
    """

    name: str
    subsets: tuple[SubsetRule, ...] = ()
    default_subset: str = ""
    connect_timeout: float | None = None
    policy: Policy = Policy.ROUND_ROBIN
    choices: int = 2
    ignored_policy: str = ""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What the agent says of itself.

    `limited` is empty, or says which rule the token lacks; then only the datacenter is known (from the catalog) and
    the rest holds Consul's defaults.
    """

    datacenter: str
    node: str = ""
    version: str = ""
    dns_domain: str = "consul"
    primary_datacenter: str = ""
    partition: str = "default"
    server: bool = False
    limited: str = ""

    @property
    def enterprise(self) -> bool:
        """Whether this is Consul Enterprise, by its version (`1.18.2+ent`)."""
        return "+ent" in self.version


@dataclass(frozen=True, slots=True)
class OwnRegistration:
    """The gateway's registration as the agent holds it, merged with the central configuration (proxy-defaults).

    `config` is `Proxy.Config`, as decoded from JSON; so is `access_logs` (`Proxy.AccessLogs`, Consul 1.15 and later).
    """

    id: str
    service: str
    address: str
    port: int
    tagged: tuple[BindAddress, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str = ""
    kind: str = GATEWAY_KIND
    locality: Locality = NOWHERE
    access_logs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """A check as the agent holds it. `service_id` is empty for one of its node; `notes` are anybody's text."""

    id: str
    service_id: str = ""
    notes: str = ""


class Reader(Protocol):
    """The requests of the watches. Each raises a `ConsulError`, and leaves nothing behind when it is cancelled."""

    async def ca_roots(self, cursor: Cursor) -> Page[CaRoots]:
        """The trust domain; NotReadyError while the datacenter has none."""
        ...

    async def service_names(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        """Names of all services of the catalog that the token may read, as they are spelled, sorted."""
        ...

    async def connect_instances(self, service: str, cursor: Cursor, *, subset_filter: str = "") -> Page[Instances]:
        """What answers for a service in the mesh; BadRequestError where the filter does not compile."""
        ...

    async def instances(self, service: str, cursor: Cursor, *, datacenter: str = "", kind: str = "") -> Page[Instances]:
        """The instances that have this very name, of one kind only where `kind` is given."""
        ...

    async def summaries(self, cursor: Cursor) -> Page[Mapping[str, int]]:
        """For each service a number that changes with its instances, their nodes or their health; for this run only."""
        ...

    async def resolvers(self, cursor: Cursor) -> Page[tuple[Resolver, ...]]:
        """All service-resolvers that the token may read."""
        ...

    async def resolver_exists(self, service: str, *, datacenter: str = "") -> bool:
        """Whether a service has a resolver; PermissionDeniedError if and only if the token may not read the service."""
        ...

    async def datacenters(self) -> Page[tuple[str, ...]]:
        """The datacenters of the WAN, the local one included."""
        ...

    async def federated_gateways(self, cursor: Cursor) -> Page[Mapping[str, Instances]]:
        """The mesh gateways of each datacenter, as the federation states have them."""
        ...

    async def gateway_names(self, datacenter: str) -> Page[tuple[str, ...]]:
        """The service names of a datacenter's mesh gateways."""
        ...

    async def agent_facts(self) -> AgentFacts:
        """What the agent says of itself."""
        ...

    async def agent_service(self, service_id: str, cursor: Cursor) -> Page[OwnRegistration]:
        """A registration as the agent holds it; NotFoundError where it holds none of this ID."""
        ...

    async def destination_limits(self, service: str) -> DestinationLimits:
        """What each destination of a gateway may have by the gateway's service-defaults."""
        ...

    async def agent_checks(self, service_id: str) -> tuple[AgentCheck, ...]:
        """The checks that the agent holds of a service, and among others that of the maintenance of its node."""
        ...

    async def register(self, payload: Mapping[str, Any]) -> None:
        """Register a service with the agent; its earlier checks of other IDs stay."""
        ...

    async def deregister_check(self, check_id: str) -> None:
        """Remove a check from the agent."""
        ...

    async def deregister(self, service_id: str) -> None:
        """Remove a registration from the agent."""
        ...


class Client(Reader, Protocol):
    """A reader for short requests, which gives readers for long ones."""

    def dedicated(self) -> AbstractAsyncContextManager[Reader]:
        """A reader with one connection of its own, for queries that are held."""
        ...
