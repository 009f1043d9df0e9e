"""Which destinations are cut, and which have fewer ways, if a node or a datacenter's gateways go away."""

import pytest

from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable
from meshgate.core.whatif import Left, WhatIf, place_of


def at(node: str, number: int = 1, *, healthy: bool = True, instance: str = "", host_name: str = "") -> Endpoint:
    return Endpoint(f"10.0.0.{number}", 20000, healthy, 1, node, instance or f"i{number}", host_name=host_name)


def to(destination: str, *endpoints: Endpoint, kind: RouteKind = RouteKind.SERVICE) -> Route:
    return Route(f"{destination}.example", kind, destination, endpoints, suffix=kind is RouteKind.DATACENTER)


def asked(*routes: Route, ejected: tuple[tuple[str, int], ...] = ()) -> WhatIf:
    return WhatIf(RouteTable.of("dc1", "t.consul", "default", iter(routes)), ejected)


def names(left: tuple[Left, ...]) -> list[tuple[str, int, int]]:
    return [(each.route.destination, each.now, each.left) for each in left]


def test_a_destination_with_one_healthy_endpoint_is_single_and_with_none_broken() -> None:
    table = asked(
        to("none"),
        to("one", at("n1", 1), at("n2", 2, healthy=False)),
        to("sick", at("n1", 3, healthy=False)),
        to("two", at("n1", 4), at("n2", 5)),
    )
    assert names(table.single) == [("one", 1, 1)]
    assert names(table.broken) == [("none", 0, 0), ("sick", 0, 0)]


def test_an_ejected_endpoint_is_no_way() -> None:
    table = asked(to("web", at("n1", 1), at("n2", 2)), ejected=(("10.0.0.2", 20000),))
    assert names(table.single) == [("web", 1, 1)]
    assert names(table.without_node("n1", "dc1").cut) == [("web", 1, 0)]


def test_addresses_of_one_host_name_are_one_way() -> None:
    pair = (at("n1", 1, instance="web", host_name="web.example"), at("n1", 2, instance="web", host_name="web.example"))
    assert names(asked(to("web", *pair)).single) == [("web", 1, 1)]


def test_a_node_cuts_what_runs_on_it_alone_and_thins_the_rest() -> None:
    table = asked(
        to("both", at("n1", 1), at("n2", 2), at("n2", 3)),
        to("elsewhere", at("n2", 4)),
        to("here", at("n1", 5), at("n1", 6)),
        to("sick", at("n1", 7, healthy=False)),
    )
    loss = table.without_node("N1", "DC1")
    assert names(loss.cut) == [("here", 2, 0)]
    assert names(loss.thinner) == [("both", 3, 2)]
    assert table.cutting_nodes() == [("dc1", "n1", 1), ("dc1", "n2", 1)]
    assert table.nodes == [("dc1", "n1"), ("dc1", "n2")]


def test_nodes_of_one_name_in_two_datacenters_are_two() -> None:
    table = asked(to("web", at("n1", 1)), to("dc2", at("n1", 2), kind=RouteKind.DATACENTER))
    assert names(table.without_node("n1", "dc1").cut) == [("web", 1, 0)]
    assert names(table.without_node("n1", "dc2").cut) == [("dc2", 1, 0)]
    assert table.cutting_nodes() == [("dc1", "n1", 1), ("dc2", "n1", 1)]


def test_the_worst_node_comes_first() -> None:
    table = asked(to("a", at("n1", 1)), to("b", at("n2", 2)), to("c", at("n2", 3)))
    assert table.cutting_nodes() == [("dc1", "n2", 2), ("dc1", "n1", 1)]


def test_without_a_datacenters_gateways_its_servers_are_cut_too() -> None:
    gateways = at("gw", 1), at("gw2", 2)
    table = asked(
        to("web", at("n1", 3)),
        to("n1.server.dc1", at("n1", 4), kind=RouteKind.SERVER),
        to("*.server.dc2", *gateways, kind=RouteKind.SERVER),
        to("dc2", *gateways, kind=RouteKind.DATACENTER),
        to("dc3", at("gw", 5), kind=RouteKind.DATACENTER),
    )
    loss = table.without_gateways("DC2")
    assert names(loss.cut) == [("*.server.dc2", 2, 0), ("dc2", 2, 0)]
    assert loss.thinner == ()
    assert table.datacenters == ("dc2", "dc3")


def test_without_the_gateways_of_its_own_datacenter_nothing_has_a_way() -> None:
    table = asked(to("web", at("n1", 1), at("n2", 2)), to("sick"), to("dc2", at("gw", 3), kind=RouteKind.DATACENTER))
    assert names(table.without_gateways("dc1").cut) == [("web", 2, 0), ("dc2", 1, 0)]


@pytest.mark.parametrize(
    ("kind", "destination", "place"),
    [
        (RouteKind.SERVICE, "web", "dc1"),
        (RouteKind.SUBSET, "v2.web", "dc1"),
        (RouteKind.PEER_EXPORT, "web", "dc1"),
        (RouteKind.DATACENTER, "dc2", "dc2"),
        (RouteKind.SERVER, "n1.server.dc2", "dc2"),
        (RouteKind.SERVER, "server.dc1", "dc1"),
        (RouteKind.PEER_SERVER, "server.dc1", "dc1"),
        (RouteKind.PEER_SERVER, "servers of peer east", ""),
        (RouteKind.PARTITION, "p1", ""),
        (RouteKind.PEER_IMPORT, "east/web", ""),
        (RouteKind.PEER_IMPORT, "east/web.server.dc1", ""),
    ],
)
def test_where_the_nodes_of_a_route_are_named(kind: RouteKind, destination: str, place: str) -> None:
    assert place_of(to(destination, kind=kind), "dc1") == place


def test_nodes_of_a_peer_are_none_of_this_datacenter() -> None:
    table = asked(to("east/web", at("n1", 1), kind=RouteKind.PEER_IMPORT), to("web", at("", 2)))
    assert names(table.single) == [("east/web", 1, 1), ("web", 1, 1)]
    assert names(table.without_node("n1", "dc1").cut) == []
    assert (table.cutting_nodes(), table.nodes) == ([], [])
