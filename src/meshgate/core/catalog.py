"""What the gateway knows of Consul's catalog, as frozen records.

A `Snapshot` is complete and consistent in itself: the route table is a function of it and of nothing else. Empty
strings stand for what Consul left out; no record ever holds a token or a key. Sequences are tuples, so two snapshots
with equal content are equal, which is how an unchanged catalog is told from a changed one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .routes import Policy
from .sni import DEFAULT


@dataclass(frozen=True, slots=True)
class Check:
    """A health check of an instance or of its node. `status` is Consul's: passing, warning, critical."""

    id: str
    status: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class WanAddress:
    """`TaggedAddresses.wan` of a service; either half may be missing ("" and 0)."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Locality:
    """Region and zone of a cloud provider; "" where Consul does not know."""

    region: str = ""
    zone: str = ""


NOWHERE = Locality()


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of `/v1/health/*`: a service instance on its node, with all checks that count for it."""

    node: str
    datacenter: str
    id: str
    service: str
    address: str
    port: int
    node_address: str
    kind: str = ""
    wan: WanAddress | None = None
    node_wan: str = ""
    weight_passing: int = 1
    weight_warning: int = 1
    checks: tuple[Check, ...] = ()
    modify_index: int = 0
    partition: str = DEFAULT
    meta: tuple[tuple[str, str], ...] = ()
    # Of an instance in a peered cluster: the names by which its exporter routes to it (`Connect.PeerMeta.SNI`).
    peer_sni: tuple[str, ...] = ()
    peer_identities: tuple[str, ...] = ()
    # Where it runs, if Consul was told (1.17 and later).
    locality: Locality = NOWHERE


@dataclass(frozen=True, slots=True)
class Subset:
    """A subset of a service-resolver, with the instances that its filter leaves.

    Consul evaluates the filter (`filter=` on `/v1/health/connect`), so that its meaning can never differ.
    `instances` is None while that answer is not known, or was refused because the filter does not compile.
    """

    name: str
    only_passing: bool = False
    instances: tuple[Instance, ...] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A mesh service of the gateway's own datacenter: what answers for it, and its service-resolver.

    `connect_timeout` is in seconds; None where the resolver sets none. `choices` is how many endpoints the policy
    `least_request` looks at. `cold` is whether nobody follows it closely, so that all this may be old.
    """

    name: str
    instances: tuple[Instance, ...]
    namespace: str = DEFAULT
    subsets: tuple[Subset, ...] = ()
    default_subset: str = ""
    connect_timeout: float | None = None
    policy: Policy = Policy.ROUND_ROBIN
    choices: int = 2
    cold: bool = False

    @property
    def key(self) -> str:
        """The name, with its namespace in front where that is not the default one."""
        return in_namespace(self.namespace, self.name)

    def subset(self, name: str) -> Subset | None:
        """None for the empty name, too."""
        return next((subset for subset in self.subsets if name and subset.name == name), None)


@dataclass(frozen=True, slots=True)
class Remote:
    """Another datacenter of the federation, or another admin partition of the own one, and its mesh gateways."""

    name: str
    gateways: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class ChainTarget:
    """Where a discovery chain leads, in the gateway's own datacenter and partition; "" is the unnamed subset."""

    service: str
    namespace: str = DEFAULT
    subset: str = ""


@dataclass(frozen=True, slots=True)
class SamenessGroup:
    """The members of a sameness group, as one partition sees them (Enterprise 1.16 and later)."""

    name: str
    peers: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """A service of the gateway's partition that an exported-services entry opens to peers and other partitions.

    `protocol` is that of its discovery chain, "" while it is not known. `target` is where the chain's first resolver
    leads, None where that is out of the gateway's datacenter or partition. Routers and splitters are not followed: with
    one of them in front the target is the service itself. `groups` are the sameness groups that it is opened to and of
    whose members Consul has not told yet; those of others are among `peers` and `partitions`.
    """

    service: str
    namespace: str = DEFAULT
    peers: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    protocol: str = ""
    target: ChainTarget | None = None
    groups: tuple[str, ...] = ()

    def opened_to(self, groups: Sequence[SamenessGroup]) -> "Export":
        """The same, opened to the members of these groups, too; this very object where it was already."""
        opened = replace(
            self,
            peers=tuple(sorted({*self.peers, *(name for group in groups for name in group.peers)})),
            partitions=tuple(sorted({*self.partitions, *(name for group in groups for name in group.partitions)})),
        )
        return self if opened == self else opened


@dataclass(frozen=True, slots=True)
class ImportedService:
    """A service of a peered cluster: the instances stand for the peer's mesh gateways and name their own SNIs."""

    name: str
    peer: str
    instances: tuple[Instance, ...]
    namespace: str = DEFAULT

    @property
    def key(self) -> str:
        """Unique among all that is imported."""
        return f"{in_namespace(self.namespace, self.name)} of peer {self.peer}"


@dataclass(frozen=True, slots=True)
class PeerServers:
    """The servers of a peered cluster, as this cluster dials them: pairs of host and port, by one server name."""

    peer: str
    server_name: str
    addresses: tuple[tuple[str, int], ...]
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that routing depends on, at one moment.

    `expose_servers` is whether this gateway carries the traffic of Consul's own servers (WAN federation through
    gateways), and `peer_through` whether the peering control plane goes through gateways
    (`Peering.PeerThroughMeshGateways` of the mesh entry); only with one of them are `servers`, those of its own
    datacenter, known. `domain` is the agents' DNS domain, by which servers are named, with or without its final dot; it
    is not the trust domain. `groups` are those that exports name, where it is not Consul that resolves them; the
    gateway's own partition is not among their members. `node` is the gateway's own, "" where the agent does not tell.
    """

    datacenter: str
    trust_domain: str
    partition: str = DEFAULT
    services: tuple[Service, ...] = ()
    remotes: tuple[Remote, ...] = ()
    servers: tuple[Instance, ...] = ()
    domain: str = "consul"
    expose_servers: bool = False
    partitions: tuple[Remote, ...] = ()
    exports: tuple[Export, ...] = ()
    imports: tuple[ImportedService, ...] = ()
    peer_servers: tuple[PeerServers, ...] = ()
    peer_through: bool = False
    groups: tuple[SamenessGroup, ...] = ()
    node: str = ""


def in_namespace(namespace: str, name: str) -> str:
    """A name as people and accounts of ours write it: the default namespace is left out."""
    return name if namespace in ("", DEFAULT) else f"{namespace}/{name}"


def newer_gateways(direct: Iterable[Instance], federated: Iterable[Instance]) -> tuple[Instance, ...]:
    """Choose between the two views of a datacenter's gateways: its own catalog, and the federation state.

    The list in which the highest `Service.ModifyIndex` is greater wins, the federation state only if strictly
    greater (Consul's `GetMeshGatewayEndpoints`, hashicorp/consul #11522). Any list is newer than an empty one.
    """

    def newest(instances: tuple[Instance, ...]) -> int:
        return max((instance.modify_index for instance in instances), default=-1)

    own, replicated = tuple(direct), tuple(federated)
    return replicated if newest(replicated) > newest(own) else own
