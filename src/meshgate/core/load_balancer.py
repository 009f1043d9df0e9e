"""Which endpoint of a route the next stream gets: by policy, weight and distance, away from those that fail.

What always holds: an endpoint is given to a stream once at most; at most half of a route's endpoints are left alone
because they fail, and with no other left, those too are tried.
"""

from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import accumulate
from math import gcd
from typing import Final

from .outlier_detection import Address
from .routes import KINDS, Endpoint, Policy, Route, RouteTable

# An enum's members are slow to get at, and this runs for each stream.
_ROUND_ROBIN, _LEAST_REQUEST, _RANDOM = Policy
_FIRST_TURNS: Final = 1 << 16


class Rotation:
    """Picks positions 0..n-1 by weight, without state: the n-th pick is a function of n.

    Every cycle of as many picks as the weights add up to gives each endpoint exactly its weight. Positions are walked
    with a stride near the golden section of the cycle, which has no divisor in common with the cycle: each slot comes
    up once per cycle, and neighbors in time are far apart in the list.
    """

    __slots__ = ("_bounds", "_cycle", "_stride")

    def __init__(self, weights: Sequence[int]) -> None:
        divisor = gcd(*weights) or 1
        self._bounds = list(accumulate(weight // divisor for weight in weights))
        self._cycle = self._bounds[-1] if self._bounds else 0
        self._stride = _coprime_near(self._cycle)

    def pick(self, turn: int, tried: Container[int] = ()) -> int | None:
        """The position for the `turn`-th pick, or the next one after it that is not in `tried`; None if all are."""
        if not self._cycle:
            return None
        return self._from(bisect_right(self._bounds, turn * self._stride % self._cycle), tried)

    def draw(self, number: float, tried: Container[int] = ()) -> int | None:
        """The position that a random number from [0, 1) falls on, by weight; tried ones as in `pick`."""
        if not self._cycle:
            return None
        return self._from(bisect_right(self._bounds, int(number * self._cycle)), tried)

    def _from(self, first: int, tried: Container[int]) -> int | None:
        for step in range(len(self._bounds)):
            position = (first + step) % len(self._bounds)
            if position not in tried:
                return position
        return None


def _coprime_near(cycle: int) -> int:
    stride = max(1, round(cycle * 0.618))
    while gcd(stride, cycle) > 1:
        stride += 1
    return stride


class HostSet:
    """What placing needs of a route, derived from it once. `counts_load`: the load of its endpoints matters.

    `candidates` are the endpoints that may get traffic, as `Route.candidates`; all positions are positions in it.
    `lower_priority` are those of endpoints that are not among the nearest. `names` has, of each host name with
    addresses of both families, the positions of its IPv4 and of its IPv6 addresses.
    """

    __slots__ = (
        "address_of",
        "candidates",
        "counts_load",
        "destination",
        "limited",
        "lower_priority",
        "names",
        "of_servers",
        "rotation",
        "route",
        "sni",
        "to_gateways",
    )

    def __init__(self, route: Route) -> None:
        meaning = KINDS[route.kind]
        self.route = route
        self.sni = route.sni
        self.destination = (route.kind, route.destination)
        self.to_gateways = meaning.to_gateways
        self.limited = meaning.limited
        self.of_servers = meaning.of_servers
        self.counts_load = route.policy is _LEAST_REQUEST
        self.candidates = candidates = route.candidates
        self.address_of: tuple[Address, ...] = tuple((each.address, each.port) for each in candidates)
        self.rotation = Rotation([endpoint.weight for endpoint in candidates])
        nearest = min((endpoint.distance for endpoint in candidates), default=0)
        self.lower_priority = tuple(
            position for position, endpoint in enumerate(candidates) if endpoint.distance > nearest
        )
        names: dict[str, tuple[list[int], list[int]]] = {}
        for position, endpoint in enumerate(candidates):
            if endpoint.host_name:
                names.setdefault(endpoint.host_name, ([], []))[_is_v6(endpoint)].append(position)
        self.names = {name: families for name, families in names.items() if all(families)}


class LoadBalancer:
    """What placing remembers between streams, in one process; `draw` makes a random number from [0, 1).

    `loads` are the streams that each endpoint carries now, kept by the caller for hosts with `counts_load`.
    """

    def __init__(self, loads: Mapping[Address, int], draw: Callable[[], float]) -> None:
        self._loads = loads
        self._draw = draw
        self._turns: dict[str, int] = {}
        # By the identity of the route, which the set keeps alive.
        self._hosts: dict[int, HostSet] = {}
        self._prefers_v4: dict[str, bool] = {}
        self.ejected: dict[Address, int] = {}
        """Endpoints that are left alone while there are others, and how often each has failed."""

    def hosts(self, route: Route) -> HostSet:
        found = self._hosts.get(id(route))
        if found is None:
            found = self._hosts[id(route)] = HostSet(route)
        return found

    def next(self, hosts: HostSet, tried: tuple[int, ...]) -> int | None:
        """The position of the candidate to try; None when all are tried.

        First come the nearest ones, of host names those of the family that worked last; then the other family, then
        those that are farther away; the ejected ones come last.
        """
        shunned = self._shunned(hosts) if self.ejected else ()
        fallback = self._other_family(hosts) if hosts.names else ()
        if fallback:
            position = self._choose(hosts, tried + shunned + hosts.lower_priority + fallback)
            if position is not None:
                return position
        if hosts.lower_priority:
            position = self._choose(hosts, tried + shunned + hosts.lower_priority)
            if position is not None:
                return position
        if shunned:
            position = self._choose(hosts, tried + shunned)
            if position is not None:
                return position
        return self._choose(hosts, tried)

    def has_another(self, hosts: HostSet, tried: tuple[int, ...]) -> bool:
        """Whether a candidate is left that is neither tried nor ejected."""
        if len(hosts.candidates) <= len(tried):
            return False
        ejected = self.ejected
        return any(
            position not in tried and address not in ejected for position, address in enumerate(hosts.address_of)
        )

    def rival(self, hosts: HostSet, position: int, tried: tuple[int, ...]) -> int | None:
        """An address of the same host name and the other family, to be dialed beside it; None where there is none."""
        endpoint = hosts.candidates[position]
        families = hosts.names.get(endpoint.host_name)
        others = families[not _is_v6(endpoint)] if families is not None else ()
        return next((each for each in others if each not in tried and hosts.address_of[each] not in self.ejected), None)

    def succeeded(self, hosts: HostSet, position: int) -> bool:
        """Note that a connection stands; whether the endpoint was ejected until now."""
        if hosts.names:
            endpoint = hosts.candidates[position]
            if endpoint.host_name in hosts.names:
                self._prefers_v4[endpoint.host_name] = not _is_v6(endpoint)
        return bool(self.ejected) and self.ejected.pop(hosts.address_of[position], None) is not None

    def failed(self, address: Address) -> None:
        self.ejected[address] = self.ejected.get(address, 0) + 1

    def keep_only(self, table: RouteTable) -> None:
        self._turns = {name: turn for name, turn in self._turns.items() if table.named(name) is not None}
        routes = (table.exact, table.suffixes)
        self._hosts = {
            key: hosts
            for key, hosts in self._hosts.items()
            if routes[hosts.route.suffix].get(hosts.route.name) is hosts.route
        }
        if self.ejected:
            kept = addresses_of(table)
            self.ejected = {address: count for address, count in self.ejected.items() if address in kept}
        if self._prefers_v4:
            names = {endpoint.host_name for route in table for endpoint in route.endpoints}
            self._prefers_v4 = {name: which for name, which in self._prefers_v4.items() if name in names}

    def _shunned(self, hosts: HostSet) -> tuple[int, ...]:
        """The positions of the endpoints to leave alone; those that have failed most often first, half at most."""
        ejected = self.ejected
        failing = [
            (-ejected[address], position) for position, address in enumerate(hosts.address_of) if address in ejected
        ]
        return tuple(position for _, position in sorted(failing)[: len(hosts.candidates) // 2])

    def _other_family(self, hosts: HostSet) -> tuple[int, ...]:
        # IPv6 first, as long as nothing is known (RFC 8305 section 4).
        prefers_v4 = self._prefers_v4
        return tuple(
            position for name, families in hosts.names.items() for position in families[prefers_v4.get(name, False)]
        )

    def _choose(self, hosts: HostSet, excluded: tuple[int, ...]) -> int | None:
        route, rotation = hosts.route, hosts.rotation
        if route.policy is _ROUND_ROBIN:
            return rotation.pick(self._turn(hosts.sni), excluded)
        if route.policy is _RANDOM:
            return rotation.draw(self._draw(), excluded)
        drawn = {rotation.draw(self._draw(), excluded) for _ in range(route.choice_count)}
        return min((each for each in drawn if each is not None), key=lambda each: self._load(hosts, each), default=None)

    def _load(self, hosts: HostSet, position: int) -> float:
        return self._loads.get(hosts.address_of[position], 0) / hosts.candidates[position].weight

    def _turn(self, name: str) -> int:
        """The number of a route's pick. Counted by name, so that a new table goes on where the old one was."""
        turn = self._turns.get(name)
        if turn is None:
            # At random, so that a fleet of gateways does not begin with the same endpoint.
            turn = int(self._draw() * _FIRST_TURNS)
        self._turns[name] = turn + 1
        return turn


def addresses_of(table: RouteTable) -> set[Address]:
    """The addresses that may get traffic."""
    return {(endpoint.address, endpoint.port) for route in table for endpoint in route.candidates}


def _is_v6(endpoint: Endpoint) -> bool:
    return ":" in endpoint.address
