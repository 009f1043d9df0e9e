"""The route table: which endpoints a server name leads to.

A table is made once from a snapshot, never changes, and is replaced as a whole, so a stream sees either the old world
or the new one. Names are compared in lower case. An exact name beats a suffix, a longer suffix beats a shorter one,
and `*.a.b` matches any number of labels in front of `a.b` but not `a.b` itself (Envoy's server name matching). A name
that matches nothing has no route: there is no default.

A large table is not sent again for a small change: `difference` says what changed, `changed` applies it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from types import MappingProxyType
from typing import Final

from .sni import DEFAULT, PeeredServiceSni, ServiceSni, parse

# Octets in a DNS name (RFC 1035 section 2.3.4); no hello can bring a longer one. The bound is for who asks otherwise:
# trying every suffix of an endless name takes quadratic time.
MAX_NAME = 255
_ANY: Final = "*."  # How `Route.sni` writes a suffix; no exact name begins so.


class RouteKind(StrEnum):
    """What a route leads to; the values are the contract's, `KINDS` says what each means."""

    SERVICE = "service"
    SUBSET = "subset"
    DATACENTER = "datacenter"
    PARTITION = "partition"
    SERVER = "server"
    PEER_IMPORT = "peer-import"
    PEER_EXPORT = "peer-export"
    PEER_SERVER = "peer-server"


@dataclass(frozen=True, slots=True)
class KindMeaning:
    """What a kind of route means for everybody who treats kinds differently.

    Attributes:
        place: where its streams go, as the dashboard groups them.
        to_gateways: its endpoints are mesh gateways elsewhere, each place known by the destination's name.
        limited: the limits of destinations hold for it. As in Consul's own gateway, what peers are given has none.
        of_servers: its streams are those of Consul's own servers, which never end by themselves.
        elsewhere: what to call the place of its endpoints, where the agent cannot be asked about all of them.
        nodes_known: the agent can be asked about its endpoints' nodes.
        watch: the kind of watch that its endpoints come from.
    """

    place: str
    to_gateways: bool = False
    limited: bool = True
    of_servers: bool = False
    elsewhere: str = ""
    nodes_known: bool = False
    watch: str = ""


KINDS: Final = {
    RouteKind.SERVICE: KindMeaning("services", nodes_known=True, watch="health"),
    RouteKind.SUBSET: KindMeaning("services", nodes_known=True, watch="subset"),
    RouteKind.DATACENTER: KindMeaning(
        "datacenter", to_gateways=True, elsewhere="datacenter", nodes_known=True, watch="gateways"
    ),
    RouteKind.PARTITION: KindMeaning("partition", to_gateways=True, elsewhere="partition"),
    RouteKind.SERVER: KindMeaning("servers", of_servers=True),
    RouteKind.PEER_IMPORT: KindMeaning("peer-import", to_gateways=True, elsewhere="the peer that exports"),
    RouteKind.PEER_EXPORT: KindMeaning("peer-export", limited=False, nodes_known=True),
    RouteKind.PEER_SERVER: KindMeaning("servers", limited=False, of_servers=True),
}


class Policy(StrEnum):
    """The policies of a service-resolver's `LoadBalancer` that a mesh gateway follows; the names are Consul's.

    `least_request` looks at a few endpoints at random and takes the one with the fewest streams for its weight. The
    hashing policies need what a gateway cannot see; Consul's own gateway ignores them too.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_REQUEST = "least_request"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to dial. `cause` says why it is unhealthy; empty while it is healthy.

    A weight of 0 is for what must never be dialed, in panic mode neither. `distance` orders endpoints that are not
    equally near: farther ones only get what no nearer one takes. `host_name` is what the address was resolved from.
    """

    address: str
    port: int
    healthy: bool
    weight: int
    node: str
    instance: str
    cause: str = ""
    distance: int = 0
    host_name: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A name and where it leads.

    Attributes:
        name: the exact SNI, or the suffix without its `*.`.
        destination: what metrics call the route: a service, a subset or a datacenter, never a stranger's text.
        endpoints: all that are known, unhealthy ones too.
        connect_timeout: for all attempts of a stream together, in seconds; None for the gateway's own.
        choice_count: how many endpoints the policy `least_request` looks at.
        panic_threshold: percent of healthy endpoints under which all get traffic; 0 for never.
        stale: the endpoints may be old, so that Consul is to be asked before a stream is placed.
        service, namespace: of the service in Consul that it stands for; "" where it stands for none.
    """

    name: str
    kind: RouteKind
    destination: str
    endpoints: tuple[Endpoint, ...]
    suffix: bool = False
    connect_timeout: float | None = None
    policy: Policy = Policy.ROUND_ROBIN
    choice_count: int = 2
    panic_threshold: int = 0
    stale: bool = False
    service: str = ""
    namespace: str = ""

    @property
    def candidates(self) -> tuple[Endpoint, ...]:
        """The endpoints that may get traffic; made anew at each call."""
        healthy = tuple(endpoint for endpoint in self.endpoints if endpoint.healthy)
        # Envoy's panic mode: too few healthy hosts, so all are tried. Off (0) unless the operator wants it.
        if len(healthy) * 100 < self.panic_threshold * len(self.endpoints):
            return tuple(endpoint for endpoint in self.endpoints if endpoint.weight)
        return healthy

    @property
    def sni(self) -> str:
        """The route as users write it: `*.` in front of a suffix."""
        return f"{_ANY}{self.name}" if self.suffix else self.name


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the relay needs to know to place a stream. Build it with `RouteTable.of`.

    `conflicts` lists names that two different things in Consul claim and that therefore have only one of them.
    `unroutable` says of names that somebody might expect to have a route why they have none; it is for people, and no
    part of what a table is.
    """

    datacenter: str
    trust_domain: str
    partition: str
    exact: MappingProxyType[str, Route]
    suffixes: MappingProxyType[str, Route]
    conflicts: tuple[str, ...] = ()
    unroutable: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls,
        datacenter: str,
        trust_domain: str,
        partition: str,
        routes: Iterator[Route],
        unroutable: Mapping[str, str] = MappingProxyType({}),
    ) -> "RouteTable":
        """Make a table. Of two routes for one name the first is kept and the other one noted as a conflict."""
        all_routes = list(routes)
        exact = {route.name: route for route in all_routes if not route.suffix}
        suffixes = {route.name: route for route in all_routes if route.suffix}
        conflicts: list[str] = []
        if len(exact) + len(suffixes) < len(all_routes):
            exact, suffixes = {}, {}
            conflicts = [
                route.sni
                for route in all_routes
                if (suffixes if route.suffix else exact).setdefault(route.name, route) is not route
            ]
        return cls(
            datacenter,
            trust_domain,
            partition,
            MappingProxyType(exact),
            MappingProxyType(suffixes),
            tuple(sorted(conflicts)),
            unroutable,
        )

    def find(self, server_name: str) -> Route | None:
        """The route of a server name in any case; None where there is none. O(labels) dictionary look-ups.

        A name longer than `MAX_NAME` matches nothing, one with an empty label in front of a suffix not that suffix.
        """
        if len(server_name) > MAX_NAME:
            return None
        name = server_name.lower()
        route = self.exact.get(name)
        if route is not None:
            return route
        while True:
            label, dot, name = name.partition(".")
            if not (label and dot):
                return None
            route = self.suffixes.get(name)
            if route is not None:
                return route

    def on_demand(self, server_name: str) -> ServiceSni | PeeredServiceSni | None:
        """What a name says of a service that Consul can be asked for, whether there is one or not.

        It is one of the table's own datacenter and partition, one that these export to a peer, or one of a peer.
        """
        if not self.trust_domain or len(server_name) > MAX_NAME:
            return None
        name, trust_domain = server_name.lower(), self.trust_domain.lower()
        said = parse(name, trust_domain=trust_domain) or parse(name)
        if isinstance(said, PeeredServiceSni):
            own = said.trust_domain == trust_domain
            return said if not own or said.partition == self.partition.lower() else None
        here = (self.datacenter.lower(), self.partition.lower(), trust_domain)
        if isinstance(said, ServiceSni) and (said.datacenter, said.partition, said.trust_domain) == here:
            return said
        return None

    def named(self, sni: str) -> Route | None:
        """The route that users write so (`Route.sni`)."""
        return self.suffixes.get(sni.removeprefix(_ANY)) if sni.startswith(_ANY) else self.exact.get(sni)

    def __iter__(self) -> Iterator[Route]:
        """All routes, ordered by name, exact ones first."""
        for routes in (self.exact, self.suffixes):
            yield from (routes[name] for name in sorted(routes))

    def __len__(self) -> int:
        return len(self.exact) + len(self.suffixes)


NO_ROUTES: Final = RouteTable("", "", DEFAULT, MappingProxyType({}), MappingProxyType({}))
"""Before anything is known."""


@dataclass(frozen=True, slots=True)
class TableChange:
    """The way from one table to another: routes that are new or different, and names (as in `Route.sni`) that go."""

    datacenter: str
    trust_domain: str
    partition: str
    routes: tuple[Route, ...]
    removed: tuple[str, ...]
    conflicts: tuple[str, ...] = ()


def difference(before: RouteTable, after: RouteTable) -> TableChange:
    routes: list[Route] = []
    removed: list[str] = []
    for old, new in ((before.exact, after.exact), (before.suffixes, after.suffixes)):
        # Nearly all routes are the same objects as before, and tables are large: `is` comes first.
        get = old.get
        fresh = [(name, route) for name, route in new.items() if get(name) is not route]
        routes += [route for name, route in sorted(fresh, key=itemgetter(0)) if get(name) != route]
        if len(new) - sum(name not in old for name, _ in fresh) < len(old):
            removed += [old[name].sni for name in sorted(old.keys() - new.keys())]
    return TableChange(
        after.datacenter,
        after.trust_domain,
        after.partition,
        routes=tuple(routes),
        removed=tuple(removed),
        conflicts=after.conflicts,
    )


def changed(table: RouteTable, change: TableChange) -> RouteTable:
    # Copies: streams that are being placed hold the table.
    exact, suffixes = table.exact.copy(), table.suffixes.copy()
    for name in change.removed:
        (suffixes if name.startswith(_ANY) else exact).pop(name.removeprefix(_ANY), None)
    for route in change.routes:
        (suffixes if route.suffix else exact)[route.name] = route
    return RouteTable(
        change.datacenter,
        change.trust_domain,
        change.partition,
        MappingProxyType(exact),
        MappingProxyType(suffixes),
        conflicts=change.conflicts,
    )
