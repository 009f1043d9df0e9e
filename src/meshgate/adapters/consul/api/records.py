"""What Consul says, as records, and how they are decoded from its JSON.

Only the fields that are used are named; msgspec skips the rest. Consul writes null for empty lists, maps and objects
and leaves out what is empty, so everything is optional here. What has another shape is an `InvalidAnswerError`. A
record that looks like Consul's JSON is decoded as it is; where Consul nests what we need flat, or in an order of its
own, a function makes the record.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

import msgspec

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import host_port
from meshgate.core.catalog import NOWHERE, ChainTarget, Check, Export, Instance, Locality, SamenessGroup, WanAddress
from meshgate.core.durations import parse_duration
from meshgate.core.modes import Target
from meshgate.core.proxy_config import BindAddress, DestinationLimits
from meshgate.core.routes import Policy
from meshgate.core.sni import DEFAULT

from .consul_errors import InvalidAnswerError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Instances = tuple[Instance, ...]

# `Service.Kind` of a mesh gateway, and the name that Consul's tools give it by default.
GATEWAY_KIND: Final = "mesh-gateway"
# The ID of the check that stands for the maintenance of a node.
NODE_MAINTENANCE: Final = "_node_maintenance"
# Seconds a blocking query may be held. Consul adds up to a sixteenth; a connection that was given up keeps its slot in
# the agent until this time is over.
LONGEST_WAIT: Final = 60.0


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tenant:
    """Where requests look; what is empty is not sent, and Consul takes what the client was made with.

    Only Enterprise knows namespaces and partitions; the community edition refuses them, the default ones too. `peer`
    is the name of a peering: what was imported from there.
    """

    namespace: str = ""
    partition: str = ""
    peer: str = ""


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
        return bool(self.index or self.content_hash)


NOW: Final = Cursor()


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """An answer. `filtered`: Consul (1.11 and later) says that it left out what the token may not see.

    `index` is None where the endpoint has none. `looked_up` is false for what Consul 1.8 says without a look at its
    catalog.
    """

    value: T_co
    index: int | None = None
    content_hash: str = ""
    filtered: bool = False
    looked_up: bool = True


class _Json(msgspec.Struct, rename="pascal"):
    """A part of an answer that becomes part of another record."""


def decoder(shape: object, build: Callable[[Any], T]) -> Callable[[bytes], T]:
    json_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(shape)

    def decode(content: bytes) -> T:
        try:
            return build(json_decoder.decode(content))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InvalidAnswerError(f"Consul's answer cannot be read: {words_of(error)}", "invalid") from None

    return decode


def _as_it_is(shape: type[T]) -> Callable[[bytes], T]:
    return decoder(shape, lambda answer: answer)


def _ordered(build: Callable[[Any], T], order: str) -> Callable[[Iterable[Any] | None], tuple[T, ...]]:
    """Builds the rows of a list or null, in an order of ours by attributes, so that equal answers are equal values."""
    key = attrgetter(*order.split())
    return lambda rows: tuple(sorted(map(build, rows or ()), key=key))


def _by_name(rows: object, build: Callable[[Any], T]) -> Callable[[bytes], Mapping[str, T]]:
    """A decoder of a list or null of config entries."""
    return decoder(rows, lambda found: {row.name: build(row) for row in found or ()})


# --- instances: the health and federation endpoints -------------------------------------------------------------------


class _Locality(_Json):
    region: str | None = ""
    zone: str | None = ""


class _Address(_Json):
    address: str | None = ""
    port: int | None = 0


class _Node(_Json):
    node: str = ""
    address: str | None = ""
    datacenter: str | None = ""
    partition: str | None = ""
    tagged_addresses: dict[str, str] | None = None
    locality: _Locality | None = None


class _Weights(_Json):
    passing: int = 1
    warning: int = 1


class _PeerMeta(_Json):
    sni: list[str] | None = msgspec.field(name="SNI", default=None)
    spiffe_id: list[str] | None = msgspec.field(name="SpiffeID", default=None)


class _Connect(_Json):
    peer_meta: _PeerMeta | None = None


class _Service(_Json):
    id: str = msgspec.field(name="ID", default="")
    service: str = ""
    kind: str | None = ""
    connect: _Connect | None = None
    address: str | None = ""
    port: int | None = 0
    tagged_addresses: dict[str, _Address] | None = None
    weights: _Weights | None = None
    meta: dict[str, str] | None = None
    modify_index: int | None = 0
    locality: _Locality | None = None


class _RowCheck(_Json):
    """Without the output, which may be kilobytes for each of thousands of instances."""

    check_id: str = msgspec.field(name="CheckID", default="")
    name: str | None = ""
    status: str | None = ""


class _Row(_Json):
    """A CheckServiceNode, the row of all health endpoints."""

    node: _Node
    service: _Service
    checks: list[_RowCheck] | None = None


def _instance(row: _Row) -> Instance:
    node, service = row.node, row.service
    wan = (service.tagged_addresses or {}).get("wan")
    weights = service.weights or _Weights()
    peer = (service.connect and service.connect.peer_meta) or _PeerMeta()
    checks = (Check(check.check_id, check.status or "", check.name or "") for check in row.checks or ())
    return Instance(
        node=node.node,
        datacenter=node.datacenter or "",
        id=service.id,
        service=service.service,
        address=service.address or "",
        port=service.port or 0,
        node_address=node.address or "",
        kind=service.kind or "",
        wan=None if wan is None else WanAddress(wan.address or "", wan.port or 0),
        node_wan=(node.tagged_addresses or {}).get("wan", ""),
        weight_passing=weights.passing,
        weight_warning=weights.warning,
        checks=tuple(sorted(checks, key=lambda check: check.id)),
        modify_index=service.modify_index or 0,
        partition=node.partition or DEFAULT,
        meta=tuple(sorted((service.meta or {}).items())),
        locality=_locality(service.locality or node.locality),
        peer_sni=tuple(peer.sni or ()),
        peer_identities=tuple(peer.spiffe_id or ()),
    )


def _locality(place: _Locality | None) -> Locality:
    return Locality(place.region or "", place.zone or "") if place else NOWHERE


_instances = _ordered(_instance, "node id")
decode_instances = decoder(list[_Row] | None, _instances)
decode_federated_gateways = decoder(
    dict[str, list[_Row] | None] | None,
    lambda answer: {datacenter: _instances(rows) for datacenter, rows in (answer or {}).items()},
)


class HealthCheck(msgspec.Struct, rename="pascal", frozen=True):
    """A check as its node or the agent has it. `service_id` is empty for one of the node itself.

    `output` and `notes` are anybody's text.
    """

    id: str = msgspec.field(name="CheckID", default="")
    name: str = ""
    status: str = ""
    output: str = ""
    service_id: str = msgspec.field(name="ServiceID", default="")
    notes: str = ""


decode_node_checks = decoder(list[HealthCheck] | None, lambda rows: tuple(rows or ()))
decode_agent_checks = decoder(dict[str, HealthCheck] | None, lambda rows: tuple((rows or {}).values()))


# --- the catalog ------------------------------------------------------------------------------------------------------


class _Named(_Json):
    name: str
    deleted_at: str | None = None


class _Partitions(_Json):
    """`/v1/partitions` as Consul's own client of 1.11 reads it; later ones read a bare list."""

    partitions: list[_Named] | None = None


class _Summary(_Json, gc=False):
    """A row of `/v1/internal/ui/services`."""

    name: str
    kind: str | None = ""
    nodes: tuple[str, ...] | None = None
    instance_count: int | None = 0
    checks_passing: int | None = 0
    checks_warning: int | None = 0
    checks_critical: int | None = 0
    connected_with_proxy: bool | None = False


def _names(rows: list[_Named] | None) -> tuple[str, ...]:
    return tuple(sorted(row.name for row in rows or () if not row.deleted_at))


def _digest(row: _Summary) -> int:
    checks = row.checks_passing, row.checks_warning, row.checks_critical
    return hash((*sorted(row.nodes or ()), row.instance_count, *checks, row.connected_with_proxy))


# A map from name to tags.
decode_service_names = decoder(dict[str, msgspec.Raw] | None, lambda answer: tuple(sorted(answer or ())))
# In a stable order; Consul sorts by distance.
decode_datacenters = decoder(list[str] | None, lambda names: tuple(sorted(names or ())))
decode_nodes = decoder(list[msgspec.Raw] | None, lambda rows: len(rows or ()))
decode_namespaces = decoder(list[_Named] | None, _names)
decode_partitions = decoder(
    _Partitions | list[_Named] | None,
    lambda answer: _names(answer.partitions if isinstance(answer, _Partitions) else answer),
)
decode_summaries = decoder(list[_Summary] | None, lambda rows: {row.name: _digest(row) for row in rows or ()})
decode_gateway_names = decoder(
    list[_Summary] | None,
    lambda rows: tuple(sorted({row.name for row in rows or () if row.kind == GATEWAY_KIND})),
)


# --- the agent and what it holds --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What the agent says of itself. None: this version does not tell.

    `limited` is empty, or says which rule the token lacks; then only the datacenter is known (from the catalog) and
    the rest holds Consul's defaults. `grpc_ports` are those that are open for Envoy's configuration. `max_connections`
    is how many connections the agent allows one client address, 0 for any number. `blocked` are the beginnings of paths
    that it answers to nobody. `streaming` is whether it answers queries for health from a stream of its servers
    (`use_streaming_backend`, since 1.10): such a query ends with its client, others go on until their wait is over.
    """

    datacenter: str
    node: str = ""
    version: str = ""
    dns_domain: str = "consul"
    primary_datacenter: str = ""
    partition: str = DEFAULT
    server: bool = False
    limited: str = ""
    connect: bool | None = None
    central_config: bool | None = None
    grpc_ports: tuple[int, ...] | None = None
    max_connections: int | None = None
    acls: bool | None = None
    blocked: tuple[str, ...] = ()
    streaming: bool = False

    @property
    def enterprise(self) -> bool:
        """Whether this is Consul Enterprise, by its version (`1.18.2+ent`)."""
        return "+ent" in self.version


class _AgentConfig(_Json):
    datacenter: str
    node_name: str | None = ""
    version: str | None = ""
    server: bool | None = False
    primary_datacenter: str | None = ""
    partition: str | None = ""


class _DebugConfig(_Json):
    dns_domain: str | None = msgspec.field(name="DNSDomain", default="")
    primary_datacenter: str | None = ""
    connect_enabled: bool | None = None
    enable_central_service_config: bool | None = None
    grpc_port: int | None = msgspec.field(name="GRPCPort", default=None)
    grpc_tls_port: int | None = msgspec.field(name="GRPCTLSPort", default=None)
    http_max_conns_per_client: int | None = msgspec.field(name="HTTPMaxConnsPerClient", default=None)
    acls_enabled: bool | None = msgspec.field(name="ACLsEnabled", default=None)
    http_block_endpoints: list[str] | None = msgspec.field(name="HTTPBlockEndpoints", default=None)
    use_streaming_backend: bool | None = None


class _AgentSelf(_Json):
    config: _AgentConfig
    debug_config: _DebugConfig | None = None


def _agent_facts(answer: _AgentSelf) -> AgentFacts:
    config, debug = answer.config, answer.debug_config or _DebugConfig()
    ports = [port for port in (debug.grpc_port, debug.grpc_tls_port) if port is not None]
    return AgentFacts(
        datacenter=config.datacenter,
        node=config.node_name or "",
        version=config.version or "",
        dns_domain=(debug.dns_domain or "consul").rstrip("."),
        primary_datacenter=config.primary_datacenter or debug.primary_datacenter or "",
        partition=config.partition or DEFAULT,
        server=bool(config.server),
        connect=debug.connect_enabled,
        central_config=debug.enable_central_service_config,
        grpc_ports=tuple(port for port in ports if port > 0) if ports else None,
        max_connections=debug.http_max_conns_per_client,
        acls=debug.acls_enabled,
        blocked=tuple(debug.http_block_endpoints or ()),
        streaming=bool(debug.use_streaming_backend),
    )


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
    kind: str = GATEWAY_KIND
    locality: Locality = NOWHERE
    access_logs: Mapping[str, Any] = field(default_factory=dict)


class _Mode(_Json):
    mode: str = ""


class _WithMode(msgspec.Struct, rename="pascal", frozen=True):
    mesh_gateway: _Mode | None = None

    @property
    def mode(self) -> str:
        """The mode that is set here, merged with what is inherited where Consul does that; "" for none."""
        return self.mesh_gateway.mode if self.mesh_gateway else ""


class UpstreamDefinition(_WithMode, frozen=True):
    name: str = msgspec.field(name="DestinationName", default="")
    type: str = msgspec.field(name="DestinationType", default="")
    namespace: str = msgspec.field(name="DestinationNamespace", default="")
    partition: str = msgspec.field(name="DestinationPartition", default="")
    peer: str = msgspec.field(name="DestinationPeer", default="")
    datacenter: str = ""
    local_bind_address: str = ""
    local_bind_port: int = 0
    local_bind_socket_path: str = ""

    @property
    def listens(self) -> str:
        """Where the sidecar listens for it: a path, or `host:port`."""
        return self.local_bind_socket_path or host_port(self.local_bind_address or "127.0.0.1", self.local_bind_port)

    @property
    def prepared_query(self) -> bool:
        return self.type == "prepared_query"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A sidecar that the agent holds. `service` is whom it stands for; `mode` is merged with central configuration."""

    id: str
    service: str
    namespace: str
    partition: str
    mode: str
    upstreams: tuple[UpstreamDefinition, ...]


class _Proxy(_WithMode, frozen=True):
    config: dict[str, Any] | None = None
    access_logs: dict[str, Any] | None = None
    destination_service_name: str | None = ""
    upstreams: tuple[UpstreamDefinition, ...] | None = None


class _AgentService(_Json):
    """`/v1/agent/service/:id`, and a value of `/v1/agent/services`."""

    id: str = msgspec.field(name="ID", default="")
    service: str = ""
    kind: str | None = ""
    namespace: str | None = ""
    partition: str | None = ""
    address: str | None = ""
    port: int | None = 0
    tagged_addresses: dict[str, _Address] | None = None
    meta: dict[str, str] | None = None
    proxy: _Proxy | None = None
    locality: _Locality | None = None


def _own_registration(answer: _AgentService) -> OwnRegistration:
    tagged = (BindAddress(tag, at.address or "", at.port or 0) for tag, at in (answer.tagged_addresses or {}).items())
    proxy = answer.proxy or _Proxy()
    return OwnRegistration(
        id=answer.id,
        service=answer.service,
        kind=answer.kind or "",
        address=answer.address or "",
        port=answer.port or 0,
        tagged=tuple(sorted(tagged, key=lambda address: address.name)),
        meta=answer.meta or {},
        config=proxy.config or {},
        access_logs=proxy.access_logs or {},
        locality=_locality(answer.locality),
    )


@dataclass(frozen=True, slots=True)
class OwnInstance:
    """A registration as the catalog has it on a node, with its checks and those of the node."""

    node: str
    registration: OwnRegistration
    checks: tuple[HealthCheck, ...] = ()


class _OwnRow(_Json):
    """A row of `/v1/health/service/:service`."""

    node: _Node
    service: _AgentService
    checks: list[HealthCheck] | None = None


def _sidecars(services: Mapping[str, _AgentService] | None) -> tuple[Sidecar, ...]:
    found = [
        Sidecar(
            id=service.id,
            service=service.proxy.destination_service_name or "",
            namespace=service.namespace or DEFAULT,
            partition=service.partition or DEFAULT,
            mode=service.proxy.mode,
            upstreams=service.proxy.upstreams or (),
        )
        for service in (services or {}).values()
        if service.kind == "connect-proxy" and service.proxy is not None
    ]
    return tuple(sorted(found, key=lambda one: (one.partition, one.namespace, one.id)))


decode_agent_facts = decoder(_AgentSelf, _agent_facts)
decode_own_registration = decoder(_AgentService, _own_registration)
decode_own_registrations = decoder(
    dict[str, _AgentService] | None,
    lambda services: {each.id: _own_registration(each) for each in (services or {}).values()},
)
decode_own_instances = decoder(
    list[_OwnRow] | None,
    _ordered(lambda row: OwnInstance(row.node.node, _own_registration(row.service), tuple(row.checks or ())), "node"),
)
decode_sidecars = decoder(dict[str, _AgentService] | None, _sidecars)


# --- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CaRoots:
    """The trust domain of the mesh, its root certificates as PEM, and when they end, in Unix time.

    `expires` is that of the active root, `intermediate_expires` that of the intermediate which signs under it; None
    where there is none, or none that can be read.
    """

    trust_domain: str
    expires: float | None = None
    intermediate_expires: float | None = None
    roots: tuple[str, ...] = field(default=(), repr=False)


class _Root(_Json):
    id: str = msgspec.field(name="ID", default="")
    root_cert: str | None = ""
    intermediate_certs: list[str] | None = None
    not_after: str | None = ""
    active: bool | None = False


class _Roots(_Json):
    trust_domain: str | None = ""
    active_root_id: str | None = msgspec.field(name="ActiveRootID", default="")
    roots: list[_Root] | None = None


def _ca_roots(answer: _Roots) -> CaRoots:
    roots = answer.roots or []
    active = next((root for root in roots if root.active or root.id == answer.active_root_id), _Root())
    # Consul appends each new intermediate: the last one signs.
    signing = (active.intermediate_certs or [""])[-1]
    return CaRoots(
        answer.trust_domain or "",
        unix_time(active.not_after or ""),
        _certificate_end(signing),
        tuple(root.root_cert for root in roots if root.root_cert),
    )


def _certificate_end(pem: str) -> float | None:
    if not pem:
        return None
    try:
        from cryptography import x509  # noqa: PLC0415 - heavy, and few datacenters have intermediates

        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp()
    except (ValueError, ImportError, OSError):  # No descriptor for the import, or another version lies there by now.
        return None


def unix_time(text: str) -> float | None:
    """The Unix time that an RFC 3339 text names; None where it names none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


class LeafCertificate(msgspec.Struct, rename="pascal", frozen=True):
    """An identity of the mesh: certificates and key as PEM. The key is in no repr."""

    spiffe_id: str = msgspec.field(name="ServiceURI")
    certificates: str = msgspec.field(name="CertPEM")
    private_key: str = msgspec.field(name="PrivateKeyPEM")

    def __repr__(self) -> str:
        return f"LeafCertificate({self.spiffe_id!r})"


decode_ca_roots = decoder(_Roots, _ca_roots)
decode_leaf = _as_it_is(LeafCertificate)


# --- config entries and what is made of them --------------------------------------------------------------------------


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


class _Subset(_Json):
    filter: str | None = ""
    only_passing: bool | None = False


# More choices than that find the least loaded endpoint no better, and each costs time for each stream.
_MOST_CHOICES: Final = 16


class _LeastRequest(_Json):
    choice_count: int | None = 0


class _LoadBalancer(_Json):
    policy: str | None = ""
    least_request_config: _LeastRequest | None = None


class _Resolver(_Json):
    name: str
    default_subset: str | None = ""
    subsets: dict[str, _Subset | None] | None = None
    connect_timeout: str | int | None = ""
    load_balancer: _LoadBalancer | None = None


def _resolver(entry: _Resolver) -> Resolver:
    subsets = (
        SubsetRule(name, subset.filter or "", bool(subset.only_passing)) if subset else SubsetRule(name)
        for name, subset in (entry.subsets or {}).items()
    )
    balancer = entry.load_balancer or _LoadBalancer()
    named = balancer.policy or Policy.ROUND_ROBIN.value
    followed = named in list(Policy)
    return Resolver(
        entry.name,
        subsets=tuple(sorted(subsets, key=lambda subset: subset.name)),
        default_subset=entry.default_subset or "",
        connect_timeout=_timeout(entry.connect_timeout or ""),
        policy=Policy(named) if followed else Policy.ROUND_ROBIN,
        choices=min(max((balancer.least_request_config or _LeastRequest()).choice_count or 2, 2), _MOST_CHOICES),
        ignored_policy="" if followed else named,
    )


def _timeout(value: str | int) -> float | None:
    """Seconds of a duration string, or of the nanoseconds that Go writes for a bare duration; None if unreadable."""
    try:
        return (value / 1e9 if isinstance(value, int) else parse_duration(value)) or None
    except (ValueError, OverflowError):
        return None


class _Limits(_Json):
    max_connections: int | None = None
    max_pending_requests: int | None = None


class UpstreamConfig(_WithMode, frozen=True):
    """What a service-defaults says of one upstream, or of all; empty names stand for the service's own place."""

    name: str = ""
    namespace: str = ""
    partition: str = ""
    peer: str = ""
    limits: _Limits | None = None


class _UpstreamConfiguration(_Json):
    defaults: UpstreamConfig | None = None
    overrides: tuple[UpstreamConfig, ...] | None = None


class ServiceDefaults(_WithMode, frozen=True):
    """A service-defaults or the proxy-defaults, as far as modes and limits go; all empty where there is none."""

    name: str = ""
    upstream_config: _UpstreamConfiguration | None = None

    @property
    def overrides(self) -> tuple[UpstreamConfig, ...]:
        return (self.upstream_config or _UpstreamConfiguration()).overrides or ()

    @property
    def upstream_defaults(self) -> UpstreamConfig:
        return (self.upstream_config or _UpstreamConfiguration()).defaults or UpstreamConfig()

    @property
    def limits(self) -> DestinationLimits:
        """Without `MaxConcurrentRequests`: Envoy holds no TCP connection pool to it (`enforceMaxRequests`)."""
        limits = self.upstream_defaults.limits or _Limits()
        return DestinationLimits(max(0, limits.max_connections or 0), max(0, limits.max_pending_requests or 0))


class _MeshPeering(_Json):
    peer_through_mesh_gateways: bool | None = False


class _Mesh(_Json):
    name: str = "mesh"
    peering: _MeshPeering | None = None


class _Member(_Json):
    peer: str | None = ""
    partition: str | None = ""


class _SamenessGroup(_Json):
    """A sameness-group config entry (Enterprise 1.16 and later)."""

    name: str = ""
    members: list[_Member] | None = None


def _sameness_group(entry: _SamenessGroup) -> SamenessGroup:
    members = entry.members or []
    return SamenessGroup(
        entry.name,
        _distinct(member.peer for member in members),
        _distinct(member.partition for member in members),
    )


decode_resolvers = decoder(list[_Resolver] | None, _ordered(_resolver, "name"))
decode_service_defaults = _as_it_is(ServiceDefaults)
decode_proxy_defaults = decoder(list[ServiceDefaults] | None, lambda rows: rows[0].mode if rows else "")
decode_destination_limits = _by_name(list[ServiceDefaults] | None, attrgetter("limits"))
decode_peer_through = _by_name(
    list[_Mesh] | None, lambda entry: bool((entry.peering or _MeshPeering()).peer_through_mesh_gateways)
)
decode_sameness_groups = _by_name(list[_SamenessGroup] | None, _sameness_group)


@dataclass(frozen=True, slots=True)
class Chain:
    """A compiled discovery chain: what an export follows of it (see `core.catalog.Export`), and where calls end up."""

    protocol: str
    target: ChainTarget | None
    targets: tuple[Target, ...] = ()


class _ChainResolver(_Json):
    target: str = ""


class _ChainNode(_Json):
    resolver: _ChainResolver | None = None


class _Target(_Json):
    service: str
    datacenter: str | None = ""
    sni: str | None = msgspec.field(name="SNI", default="")
    namespace: str | None = ""
    partition: str | None = ""
    service_subset: str | None = ""
    peer: str | None = ""
    external: bool | None = False


class _CompiledChain(_Json):
    service_name: str
    start_node: str
    namespace: str | None = ""
    partition: str | None = ""
    datacenter: str | None = ""
    protocol: str | None = ""
    nodes: dict[str, _ChainNode] | None = None
    targets: dict[str, _Target] | None = None


class _Compiled(_Json):
    chain: _CompiledChain


def _chain(answer: _Compiled) -> Chain:
    chain = answer.chain
    targets = tuple(
        Target(
            service=found.service,
            datacenter=found.datacenter or "",
            sni=found.sni or "",
            namespace=found.namespace or DEFAULT,
            partition=found.partition or DEFAULT,
            subset=found.service_subset or "",
            peer=found.peer or "",
            external=bool(found.external),
        )
        for _, found in sorted((chain.targets or {}).items())
    )
    start = (chain.nodes or {}).get(chain.start_node)
    if start is None:
        raise ValueError("a discovery chain has no start node")
    if start.resolver is None:
        # A router or splitter: which way a request goes is not for a gateway that sees no requests.
        found = ChainTarget(chain.service_name, chain.namespace or DEFAULT)
        return Chain(chain.protocol or "tcp", found, targets)
    target = (chain.targets or {}).get(start.resolver.target)
    if target is None:
        raise ValueError("a discovery chain lacks its target")
    here = (chain.datacenter or "", chain.partition or DEFAULT)
    local = (target.datacenter or "", target.partition or DEFAULT) == here and not (target.peer or target.external)
    found = ChainTarget(target.service, target.namespace or DEFAULT, target.service_subset or "")
    return Chain(chain.protocol or "tcp", found if local else None, targets)


decode_chain = decoder(_Compiled, _chain)


# --- peerings and exports ---------------------------------------------------------------------------------------------

# Peerings in these states are on their way out.
_ENDING: Final = frozenset(("DELETING", "TERMINATED"))


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
        return self.state not in _ENDING


class _StreamStatus(_Json):
    imported_services: list[str] | None = None


class _Peering(_Json):
    name: str
    state: str | None = ""
    deleted_at: str | None = None
    peer_server_name: str | None = ""
    peer_server_addresses: list[str] | None = None
    peer_ca_pems: list[str] | None = msgspec.field(name="PeerCAPems", default=None)
    stream_status: _StreamStatus | None = None
    modify_index: int | None = 0


def _peering(row: _Peering) -> Peering:
    return Peering(
        row.name,
        "DELETING" if row.deleted_at else row.state or "",
        row.peer_server_name or "",
        tuple(sorted(_addresses(row.peer_server_addresses or []))),
        tuple(sorted((row.stream_status or _StreamStatus()).imported_services or ())),
        row.modify_index or 0,
    )


def _addresses(texts: list[str]) -> Iterator[tuple[str, int]]:
    """`host:port` with brackets around IPv6; what is none is left out."""
    for text in texts:
        host, _, port = text.rpartition(":")
        if host and port.isascii() and port.isdigit() and len(port) <= len("65535"):
            yield host.removeprefix("[").removesuffix("]"), int(port)


class _Consumers(_Json):
    peers: list[str] | None = None
    partitions: list[str] | None = None


class _Exported(_Json):
    """A row of `/v1/exported-services`."""

    service: str
    namespace: str | None = ""
    consumers: _Consumers | None = None


class _Consumer(_Json):
    """`PeerName` was the first name of `Peer`."""

    peer: str | None = ""
    peer_name: str | None = ""
    partition: str | None = ""
    sameness_group: str | None = ""


class _EntryService(_Json):
    name: str
    namespace: str | None = ""
    consumers: list[_Consumer] | None = None


class _ExportsEntry(_Json):
    """An exported-services config entry, named for the partition that it is of."""

    name: str = DEFAULT
    services: list[_EntryService] | None = None


def _exported(row: _Exported) -> Export:
    to = row.consumers or _Consumers()
    return Export(row.service, row.namespace or DEFAULT, _distinct(to.peers or ()), _distinct(to.partitions or ()))


def _as_written(row: _EntryService) -> Export:
    to = row.consumers or []
    return Export(
        row.name,
        row.namespace or DEFAULT,
        _distinct(consumer.peer or consumer.peer_name for consumer in to),
        _distinct(consumer.partition for consumer in to),
        groups=_distinct(consumer.sameness_group for consumer in to),
    )


def _distinct(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name}))


class Intention(StrEnum):
    """What Consul's intentions say of a call: its own decision, or that each request is judged by its permissions."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


class _Intention(_Json):
    source_name: str | None = ""
    permissions: list[msgspec.Raw] | None = None


def _judged_by_request(matches: Mapping[str, list[_Intention] | None]) -> dict[str, bool]:
    # The most specific come first.
    rows = [row for found in matches.values() for row in found or ()]
    return {row.source_name or "": bool(row.permissions) for row in reversed(rows)}


decode_intention_check = decoder(dict[str, Any], lambda answer: bool(answer.get("Allowed")))
# By the caller, which may be `*`: whether its intention has permissions.
decode_intention_match = decoder(dict[str, list[_Intention] | None], _judged_by_request)
decode_peering_roots = decoder(_Peering, lambda answer: tuple(answer.peer_ca_pems or ()))
decode_peerings = decoder(list[_Peering] | None, _ordered(_peering, "name"))
decode_exported_services = decoder(list[_Exported] | None, _ordered(_exported, "namespace service"))
_entry_exports = _ordered(_as_written, "namespace service")
decode_exported_entries = _by_name(list[_ExportsEntry] | None, lambda entry: _entry_exports(entry.services))


# --- tokens -----------------------------------------------------------------------------------------------------------


class _Token(_Json):
    expiration_time: datetime | None = None


class Replication(msgspec.Struct, rename="pascal", frozen=True):
    """What a datacenter says of its replication of ACLs. `kind` is Consul's: legacy, policies, roles, tokens."""

    enabled: bool = False
    running: bool = False
    source: str = msgspec.field(name="SourceDatacenter", default="")
    kind: str = msgspec.field(name="ReplicationType", default="")


class _Allowed(_Json):
    allow: bool | None = False


class _LoginAnswer(_Json):
    secret_id: str = msgspec.field(name="SecretID")


decode_login = decoder(_LoginAnswer, lambda answer: answer.secret_id)
decode_token = decoder(_Token, lambda token: token.expiration_time)
decode_replication = _as_it_is(Replication)
decode_allowed = decoder(list[_Allowed] | None, lambda rows: tuple(bool(row.allow) for row in rows or ()))
