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
    """An address to dial. `cause` says why it is unhealthy; empty while it is healthy."""

    address: str
    port: int
    healthy: bool
    weight: int
    node: str
    instance: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A name and where it leads.

    `name` is the exact SNI, or the suffix without its `*.`. `destination` is what metrics call the route: a service, a
    subset or a datacenter of Consul's, never a stranger's text. `candidates` are the endpoints that may get traffic,
    all known ones are in `endpoints`. `connect_timeout` is in seconds, None for the gateway's own. `choices` is how
    many endpoints the policy `least_request` looks at.
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
    panic_threshold: int = 0

    def __post_init__(self) -> None:
        healthy = tuple(endpoint for endpoint in self.endpoints if endpoint.healthy)
        # Envoy's panic mode: too few healthy hosts, so all are tried. Off (0) unless the operator wants it.
        panic = len(healthy) * 100 < self.panic_threshold * len(self.endpoints)
        object.__setattr__(self, "candidates", self.endpoints if panic else healthy)
        object.__setattr__(self, "rotation", Rotation([endpoint.weight for endpoint in self.candidates]))

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
    """

    datacenter: str
    trust_domain: str
    partition: str
    exact: Mapping[str, Route]
    suffixes: Mapping[str, Route]
    conflicts: tuple[str, ...] = ()

    @classmethod
    def of(cls, datacenter: str, trust_domain: str, partition: str, routes: Iterator[Route]) -> "RouteTable":
        """Make a table. Of two routes for one name the first is kept and the other one noted as a conflict."""
        exact: dict[str, Route] = {}
        suffixes: dict[str, Route] = {}
        conflicts = [
            route.sni
            for route in routes
            if (suffixes if route.suffix else exact).setdefault(route.name, route) is not route
        ]
        return cls(
            datacenter,
            trust_domain,
            partition,
            MappingProxyType(exact),
            MappingProxyType(suffixes),
            tuple(sorted(conflicts)),
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

    def __iter__(self) -> Iterator[Route]:
        """All routes, ordered by name, exact ones first."""
        for routes in (self.exact, self.suffixes):
            yield from (routes[name] for name in sorted(routes))

    def __len__(self) -> int:
        return len(self.exact) + len(self.suffixes)
