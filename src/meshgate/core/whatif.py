"""What breaks if a node, or a datacenter's gateways, go away: questions to the route table.

A way is a healthy endpoint that is not ejected. Addresses of one host name are one way, and what panic mode would try
is none. A node is known by its name and its datacenter: two datacenters may have a node of one name. The nodes of other
partitions and of peers are not known by name here, so no question is about them; their destinations count among those
with one way, or none.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

from .outlier_detection import Address
from .routes import KINDS, Endpoint, Route, RouteKind, RouteTable


@dataclass(frozen=True, slots=True)
class Left:
    """A destination, with the ways that it has and those that it would have left."""

    route: Route
    now: int
    left: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What becomes of destinations: `cut` have no way left, `thinner` have fewer."""

    cut: tuple[Left, ...]
    thinner: tuple[Left, ...]


class WhatIf:
    """Asks one table. Destinations are in the table's order.

    Attributes:
        broken: have no way as it is.
        single: have one way, so that losing its endpoint cuts them.
        nodes: each known node, as (datacenter, name).
        datacenters: those elsewhere that streams reach through their gateways.
    """

    def __init__(self, table: RouteTable, ejected: Container[Address] = ()) -> None:
        self._here = table.datacenter.lower()
        self._routes = [
            (
                route,
                place_of(route, table.datacenter),
                tuple(it for it in route.endpoints if it.healthy and (it.address, it.port) not in ejected),
            )
            for route in table
        ]
        counted = [Left(route, count, count) for route, _, ways in self._routes if (count := _count(ways)) <= 1]
        self.broken = tuple(each for each in counted if not each.now)
        self.single = tuple(each for each in counted if each.now)
        self.nodes = sorted(
            {
                (place, endpoint.node)
                for route, place, _ in self._routes
                if place
                for endpoint in route.endpoints
                if endpoint.node
            }
        )
        self.datacenters = tuple(
            route.destination for route, _, _ in self._routes if route.kind is RouteKind.DATACENTER
        )

    def without_node(self, node: str, datacenter: str) -> Loss:
        """If a node of a datacenter goes away, with all that runs on it. Names are compared in any case."""
        name, where = node.lower(), datacenter.lower()
        return self._without(lambda place, endpoint: place.lower() == where and endpoint.node.lower() == name)

    def without_gateways(self, datacenter: str) -> Loss:
        """If all gateways of another datacenter go away; of this one: nothing here can be reached through them."""
        where = datacenter.lower()
        if where == self._here:
            return self._without(lambda _place, _endpoint: True)
        return self._without(lambda place, _endpoint: place.lower() == where)

    def cutting_nodes(self) -> list[tuple[str, str, int]]:
        """The nodes that some destination needs, as (datacenter, name, destinations cut), the worst first."""
        cut: dict[tuple[str, str], int] = {}
        for _, place, ways in self._routes:
            names = {endpoint.node for endpoint in ways}
            if place and len(names) == 1 and (name := names.pop()):
                cut[place, name] = cut.get((place, name), 0) + 1
        return sorted(((*node, count) for node, count in cut.items()), key=lambda it: (-it[2], it[:2]))

    def _without(self, gone: Callable[[str, Endpoint], bool]) -> Loss:
        left = [
            Left(route, _count(ways), _count(tuple(it for it in ways if not gone(place, it))))
            for route, place, ways in self._routes
        ]
        lost = [each for each in left if each.left < each.now]
        return Loss(tuple(each for each in lost if not each.left), tuple(each for each in lost if each.left))


def place_of(route: Route, here: str) -> str:
    """The datacenter whose catalog names the nodes of a route's endpoints; "" where it is another partition or peer."""
    if route.kind is RouteKind.DATACENTER:
        return route.destination
    if KINDS[route.kind].nodes_known:
        return here
    # `n1.server.dc2`, `*.server.dc2` and `server.dc2`; of a peer's servers only the peer's name is known.
    _, server, datacenter = route.destination.rpartition("server.")
    return datacenter if server and route.kind in (RouteKind.SERVER, RouteKind.PEER_SERVER) else ""


def _count(ways: tuple[Endpoint, ...]) -> int:
    return len({(it.node, it.instance, it.host_name or it.address, it.port) for it in ways})
