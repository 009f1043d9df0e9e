"""The route table: which endpoints a server name leads to.

A table is made once from a snapshot, never changes, and is replaced as a whole, so a stream sees either the old world
or the new one. Names are compared in lower case. An exact name beats a suffix, a longer suffix beats a shorter one,
and `*.a.b` matches any number of labels in front of `a.b` but not `a.b` itself (Envoy's server name matching). A name
that matches nothing has no route: there is no default.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from .balance import Policy, Rotation
from .sni import ServiceSni, parse

# Octets in a DNS name (RFC 1035 section 2.3.4); no hello can bring a longer one. The bound is for who asks otherwise:
# trying every suffix of an endless name takes quadratic time.
MAX_NAME = 255


class RouteKind(StrEnum):
    """What a route leads to; the values are the contract's."""

    SERVICE = "service"
    SUBSET = "subset"
    DATACENTER = "datacenter"
    PARTITION = "partition"
    SERVER = "server"
    PEER_IMPORT = "peer-import"
    PEER_EXPORT = "peer-export"
    PEER_SERVER = "peer-server"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to dial. `cause` says why it is unhealthy; empty while it is healthy.

    A weight of 0 is for what must never be dialled, in panic mode neither. `distance` orders endpoints that are not
    equally near: farther ones only get what no nearer one takes.
    """

    address: str
    port: int
    healthy: bool
    weight: int
    node: str
    instance: str
    cause: str = ""
    distance: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """A name and where it leads.

    `name` is the exact SNI, or the suffix without its `*.`. `destination` is what metrics call the route: a service, a
    subset or a datacenter of Consul's, never a stranger's text. `candidates` are the endpoints that may get traffic,
    all known ones are in `endpoints`; `far` are the positions of the candidates that are not among the nearest.
    `connect_timeout` is in seconds, None for the gateway's own. `choices` is how
    many endpoints the policy `least_request` looks at. `cold` is whether the endpoints may be old, so that Consul is to
    be asked before a stream is placed.
    """

    name: str
    kind: RouteKind
    destination: str
    endpoints: tuple[Endpoint, ...]
    suffix: bool = False
    connect_timeout: float | None = None
    policy: Policy = Policy.ROUND_ROBIN
    choices: int = 2
    candidates: tuple[Endpoint, ...] = field(init=False)
    rotation: Rotation = field(init=False, compare=False, repr=False)
    far: tuple[int, ...] = field(init=False, compare=False, repr=False)
    panic_threshold: int = 0
    cold: bool = False

    def __post_init__(self) -> None:
        healthy = tuple(endpoint for endpoint in self.endpoints if endpoint.healthy)
        # Envoy's panic mode: too few healthy hosts, so all are tried. Off (0) unless the operator wants it.
        panic = len(healthy) * 100 < self.panic_threshold * len(self.endpoints)
        candidates = tuple(endpoint for endpoint in self.endpoints if endpoint.weight) if panic else healthy
        object.__setattr__(self, "candidates", candidates)
        object.__setattr__(self, "rotation", Rotation([endpoint.weight for endpoint in self.candidates]))
        nearest = min((endpoint.distance for endpoint in candidates), default=0)
        far = tuple(position for position, endpoint in enumerate(candidates) if endpoint.distance > nearest)
        object.__setattr__(self, "far", far)

    @property
    def sni(self) -> str:
        """The route as users write it: `*.` in front of a suffix."""
        return f"*.{self.name}" if self.suffix else self.name

    @property
    def match(self) -> str:
        """`exact` or `suffix`."""
        return "suffix" if self.suffix else "exact"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the relay needs to know to place a stream. Build it with `RouteTable.of`.

    `conflicts` lists names that two different things in Consul claim and that therefore have only one of them.
    `withheld` says of names that somebody might expect to have a route why they have none; it is for people, and no
    part of what a table is.
    """

    datacenter: str
    trust_domain: str
    partition: str
    exact: MappingProxyType[str, Route]
    suffixes: MappingProxyType[str, Route]
    conflicts: tuple[str, ...] = ()
    withheld: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls,
        datacenter: str,
        trust_domain: str,
        partition: str,
        routes: Iterator[Route],
        withheld: Mapping[str, str] = MappingProxyType({}),
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
            withheld,
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

    def own_service(self, server_name: str) -> ServiceSni | None:
        """What a name says of a service of the table's own datacenter and partition, whether there is one or not."""
        said = parse(server_name.lower(), trust_domain=self.trust_domain.lower()) if self.trust_domain else None
        here = (self.datacenter.lower(), self.partition.lower())
        return said if isinstance(said, ServiceSni) and (said.datacenter, said.partition) == here else None

    def has(self, sni: str) -> bool:
        """Whether there is a route that users write so (`Route.sni`)."""
        return sni in self.exact or (sni.startswith("*.") and sni.removeprefix("*.") in self.suffixes)

    def __iter__(self) -> Iterator[Route]:
        """All routes, ordered by name, exact ones first."""
        for routes in (self.exact, self.suffixes):
            yield from (routes[name] for name in sorted(routes))

    def __len__(self) -> int:
        return len(self.exact) + len(self.suffixes)
