"""What the commands that look at a mesh from outside (doctor, modes, probe) read from Consul, as frozen records.

"" and None stand for what Consul does not say: old versions say less, and a token may not see all.
"""

from dataclasses import dataclass, field

from meshgate.core.modes import Target
from meshgate.core.sni import DEFAULT


@dataclass(frozen=True, slots=True)
class AgentReport:
    """`/v1/agent/self` as far as it concerns the mesh. None: this version does not tell.

    `grpc_ports` are those that are open for Envoy's configuration. `max_connections` is how many connections the agent
    allows one client address, 0 for any number.
    """

    datacenter: str
    node: str
    version: str
    primary_datacenter: str
    partition: str = DEFAULT
    connect: bool | None = None
    central_config: bool | None = None
    grpc_ports: tuple[int, ...] | None = None
    max_connections: int | None = None
    acls: bool | None = None


@dataclass(frozen=True, slots=True)
class CaCertificates:
    """The roots of a datacenter and the intermediates that it signs with, as PEM; `expires` as in `CaRoots`."""

    trust_domain: str
    roots: tuple[str, ...]
    intermediates: tuple[str, ...] = ()
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class LeafCertificate:
    """An identity of the mesh: certificates and key as PEM. The key is in no repr."""

    spiffe_id: str
    certificates: str
    private_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A token as it sees itself. The anonymous token has no `accessor`."""

    accessor: str
    local: bool


@dataclass(frozen=True, slots=True)
class Replication:
    """What a datacenter says of its replication of ACLs. `kind` is Consul's: legacy, policies, roles, tokens."""

    enabled: bool
    running: bool
    source: str
    kind: str


@dataclass(frozen=True, slots=True)
class UpstreamDefinition:
    """An upstream in a registration. `mode` is its own, merged with what it inherits."""

    name: str
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""
    peer: str = ""
    mode: str = ""
    listens: str = ""
    prepared_query: bool = False


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A sidecar that the agent holds. `service` is whom it stands for; `mode` is merged with central configuration."""

    id: str
    service: str
    namespace: str
    partition: str
    mode: str
    upstreams: tuple[UpstreamDefinition, ...]


@dataclass(frozen=True, slots=True)
class UpstreamModes:
    """An entry of a service-defaults' `UpstreamConfig.Overrides`; empty fields stand for the service's own place."""

    name: str
    namespace: str
    partition: str
    peer: str
    mode: str


@dataclass(frozen=True, slots=True)
class ServiceDefaults:
    """The modes of a service-defaults; all empty where there is none."""

    mode: str = ""
    upstream_mode: str = ""
    overrides: tuple[UpstreamModes, ...] = ()


Targets = tuple[Target, ...]
