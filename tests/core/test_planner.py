"""The route table of a catalog: the same cases as Consul's golden files for mesh gateways, and what lies between them.

The fixtures hold the facts of Consul's: two services in dc1, gateways of dc2 with wan tags, of dc4 partly and of dc6
only under host names.
"""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from meshgate.core.catalog import (
    Check,
    Instance,
    Remote,
    Service,
    Snapshot,
    Subset,
    WanAddress,
    newer_gateways,
)
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .samples import TD3, host_names, instance, plan

# Each host name stands for itself, so that the tables show it as Consul's golden files do.
THEMSELVES = {
    f"{label}.us-{side}.elb.notaws.com": (f"{label}.us-{side}.elb.notaws.com",)
    for label in ("123", "456")
    for side in ("east-1", "east-2", "west-1", "west-2")
}
UP, SLOW, DOWN = (Check("up", status) for status in ("passing", "warning", "critical"))

FOO = (
    instance("172.16.1.3", checks=(UP,), meta=(("version", "1"),)),
    instance("172.16.1.4", checks=(UP,), meta=(("version", "1"),)),
    instance("172.16.1.5", checks=(UP,), meta=(("version", "2"),)),
    instance("172.16.1.9", checks=(SLOW,), meta=(("version", "2"),)),
)
BAR = (instance("172.16.1.6"), instance("172.16.1.7"), instance("172.16.1.8"))


def gateway(datacenter: str, lan: str, wan: str, port: int = 443, **fields: object) -> Instance:
    return instance(lan, datacenter=datacenter, port=8443, wan=WanAddress(wan, port), kind="mesh-gateway", **fields)


DC2 = (
    gateway("dc2", "10.0.1.1", "198.18.1.1", modify_index=5),
    gateway("dc2", "10.0.1.2", "198.18.1.2", modify_index=6),
)
DC4 = (
    gateway("dc4", "10.30.1.1", "123.us-west-2.elb.notaws.com"),
    gateway("dc4", "10.30.1.2", "456.us-west-2.elb.notaws.com"),
    gateway("dc4", "10.30.1.3", "198.38.1.1"),
)
DC6 = (gateway("dc6", "10.40.1.1", "123.us-east-1.elb.notaws.com", checks=(DOWN,)),)


def versions(instances: tuple[Instance, ...]) -> tuple[Subset, Subset]:
    """What the filters `Service.Meta.version == 1` and `== 2` leave, the second one with OnlyPassing."""
    one, two = (tuple(item for item in instances if ("version", number) in item.meta) for number in "12")
    return Subset("v1", instances=one), Subset("v2", only_passing=True, instances=two)


def mesh(**fields: object) -> Snapshot:
    """The catalog of the plain golden file."""
    ordinary: dict[str, object] = {
        "services": (Service("foo", FOO), Service("bar", BAR)),
        "remotes": (Remote("dc2", DC2), Remote("dc4", DC4), Remote("dc6", DC6)),
    }
    return Snapshot("dc1", TD3, **(ordinary | fields))  # type: ignore[arg-type]


def federated(modify_index: int) -> tuple[Instance, ...]:
    """The federation state of dc2, with another gateway than its own catalog."""
    return (gateway("dc2", "10.0.1.3", "198.18.1.3", modify_index=modify_index),)


def dc2_seen(direct: tuple[Instance, ...], replicated: tuple[Instance, ...]) -> Snapshot:
    return mesh(services=(), remotes=(Remote("dc2", newer_gateways(direct, replicated)),))


def here(name: str) -> str:
    return f"{name}.default.dc1.internal.{TD3}"


def there(datacenter: str) -> str:
    return f"*.{datacenter}.internal.{TD3}"


def route(table: RouteTable, sni: str) -> Route:
    return next(route for route in table if route.sni == sni)


def shape(table: RouteTable) -> dict[str, list[str]]:
    """Each name with its endpoints, the unhealthy ones marked by `!`."""
    return {route.sni: [spell(endpoint) for endpoint in route.endpoints] for route in table}


def spell(endpoint: Endpoint) -> str:
    return f"{'' if endpoint.healthy else '!'}{endpoint.address}:{endpoint.port}"


ALL_FOO = ["172.16.1.3:8080", "172.16.1.4:8080", "172.16.1.5:8080", "172.16.1.9:8080"]
ALL_BAR = ["172.16.1.6:8080", "172.16.1.7:8080", "172.16.1.8:8080"]
FOO_V1 = ["172.16.1.3:8080", "172.16.1.4:8080"]
FOO_V2 = ["172.16.1.5:8080", "!172.16.1.9:8080"]
REMOTES = {
    there("dc2"): ["198.18.1.1:443", "198.18.1.2:443"],
    there("dc4"): ["123.us-west-2.elb.notaws.com:443", "198.38.1.1:443", "456.us-west-2.elb.notaws.com:443"],
    there("dc6"): ["!123.us-east-1.elb.notaws.com:443"],
}


@pytest.mark.parametrize(
    ("snapshot", "routes"),
    [
        pytest.param(mesh(), {here("foo"): ALL_FOO, here("bar"): ALL_BAR, **REMOTES}, id="mesh-gateway"),
        pytest.param(mesh(services=(), remotes=()), {}, id="no-services"),
        pytest.param(
            mesh(services=(Service("foo", FOO), Service("bar", BAR, subsets=versions(BAR)))),
            {here("foo"): ALL_FOO, here("bar"): ALL_BAR, here("v1.bar"): [], here("v2.bar"): [], **REMOTES},
            id="service-subsets",
        ),
        pytest.param(
            mesh(services=(Service("foo", FOO, subsets=versions(FOO)), Service("bar", BAR, subsets=versions(BAR)))),
            {
                here("foo"): ALL_FOO,
                here("v1.foo"): FOO_V1,
                here("v2.foo"): FOO_V2,
                here("bar"): ALL_BAR,
                here("v1.bar"): [],
                here("v2.bar"): [],
                **REMOTES,
            },
            id="service-subsets2",
        ),
        pytest.param(
            mesh(services=(Service("foo", FOO, subsets=versions(FOO), default_subset="v2"),)),
            {here("foo"): FOO_V2, here("v1.foo"): FOO_V1, here("v2.foo"): FOO_V2, **REMOTES},
            id="default-service-subset",
        ),
        pytest.param(
            mesh(services=(Service("foo", FOO), Service("notfound", (), subsets=versions(FOO), default_subset="v2"))),
            {here("foo"): ALL_FOO, **REMOTES},
            id="ignore-extra-resolvers",
        ),
        pytest.param(
            dc2_seen(DC2, federated(2**64 - 1)),
            {there("dc2"): ["198.18.1.3:443"]},
            id="newer-information-in-federation-states",
        ),
        pytest.param(
            dc2_seen(DC2, federated(0)),
            {there("dc2"): ["198.18.1.1:443", "198.18.1.2:443"]},
            id="older-information-in-federation-states",
        ),
        pytest.param(dc2_seen((), federated(0)), {there("dc2"): ["198.18.1.3:443"]}, id="using-federation-states"),
    ],
)
def test_golden_variant(snapshot: Snapshot, routes: dict[str, list[str]]) -> None:
    table = plan(snapshot, addresses=THEMSELVES)
    assert shape(table) == routes
    assert table.conflicts == ()
    assert (table.datacenter, table.trust_domain, table.partition) == ("dc1", TD3, "default")


def test_service_timeouts_are_those_of_the_resolver_for_the_service_and_its_subsets_only() -> None:
    services = (Service("foo", FOO), Service("bar", BAR, subsets=versions(BAR), connect_timeout=10.0))
    timeouts = {route.sni: route.connect_timeout for route in plan(mesh(services=services))}
    assert timeouts == {
        here("foo"): None,
        here("bar"): 10.0,
        here("v1.bar"): 10.0,
        here("v2.bar"): 10.0,
        **dict.fromkeys(REMOTES),
    }


def test_a_warning_is_healthy_with_weight_1() -> None:
    assert [(endpoint.healthy, endpoint.weight) for endpoint in route(plan(mesh()), here("foo")).endpoints] == [
        (True, 1)
    ] * 4


def test_only_passing_of_a_subset_says_which_check_failed() -> None:
    table = plan(mesh(services=(Service("foo", FOO, subsets=versions(FOO)),)))
    subset = route(table, here("v2.foo"))
    assert [endpoint.cause for endpoint in subset.endpoints] == ["", "check up is warning"]
    assert [endpoint.address for endpoint in subset.candidates] == ["172.16.1.5"]


def test_gateways_with_addresses_and_with_host_names_are_used_side_by_side() -> None:
    assert len(route(plan(mesh(), addresses=THEMSELVES), there("dc4")).candidates) == 3


@pytest.mark.parametrize(("threshold", "candidates"), [(0, 0), (50, 1)])
def test_a_datacenter_whose_only_gateway_is_critical_has_it_tried_in_panic_mode_only(
    threshold: int, candidates: int
) -> None:
    gateways = route(plan(mesh(), panic_threshold=threshold, addresses=THEMSELVES), there("dc6"))
    assert len(gateways.endpoints) == 1
    assert len(gateways.candidates) == candidates


def test_the_panic_threshold_is_everyones() -> None:
    table = plan(mesh(services=(Service("foo", FOO, subsets=versions(FOO)),)), panic_threshold=50)
    assert {route.panic_threshold for route in table} == {50}


def test_routes_are_named_for_metrics_as_consul_spells_them() -> None:
    services = (Service("Web", FOO, subsets=(Subset("V1", instances=FOO),)),)
    table = plan(mesh(services=services))
    assert {route.sni: (route.kind, route.destination) for route in table} == {
        here("web"): (RouteKind.SERVICE, "Web"),
        here("v1.web"): (RouteKind.SUBSET, "V1.Web"),
        **{there(name): (RouteKind.DATACENTER, name) for name in ("dc2", "dc4", "dc6")},
    }


def test_an_endpoint_says_which_instance_on_which_node_it_is() -> None:
    sidecar = instance("", node="n1", id="web-1-sidecar-proxy", port=21000, weight_passing=9)
    (endpoint,) = route(plan(mesh(services=(Service("web", (sidecar,)),))), here("web")).endpoints
    assert endpoint == Endpoint("10.10.1.1", 21000, True, 9, "n1", "web-1-sidecar-proxy")


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        pytest.param({}, "172.16.1.3", id="same datacenter and partition"),
        pytest.param({"datacenter": "dc2"}, "198.18.1.9", id="another datacenter"),
        pytest.param({"partition": "p1"}, "198.18.1.9", id="another partition"),
    ],
)
def test_an_instance_elsewhere_is_dialled_at_its_wan_address(fields: dict[str, str], address: str) -> None:
    sidecar = instance(wan=WanAddress("198.18.1.9", 443), **fields)
    (endpoint,) = route(plan(mesh(services=(Service("web", (sidecar,)),))), here("web")).endpoints
    assert endpoint.address == address


def test_a_service_of_a_namespace_and_a_partition_has_them_in_its_name() -> None:
    service = Service("web", (instance(partition="p1"),), namespace="team", subsets=(Subset("v1", instances=()),))
    table = plan(Snapshot("dc1", TD3, "p1", services=(service,)))
    assert [route.sni for route in table] == [
        f"v1.web.team.p1.dc1.internal-v1.{TD3}",
        f"web.team.p1.dc1.internal-v1.{TD3}",
    ]


DOTTED = Service("v2.web", BAR)
SUBSETTED = Service("web", FOO, subsets=(Subset("v2", instances=FOO),))


@pytest.mark.parametrize("services", [(DOTTED, SUBSETTED), (SUBSETTED, DOTTED)])
def test_a_subset_keeps_its_name_against_a_service_with_a_dot(services: tuple[Service, ...]) -> None:
    table = plan(mesh(services=services, remotes=()))
    assert shape(table) == {here("web"): ALL_FOO, here("v2.web"): ALL_FOO}
    assert route(table, here("v2.web")).kind is RouteKind.SUBSET
    assert table.conflicts == (here("v2.web"),)


def test_a_service_with_a_dot_is_routed_where_nobody_else_has_the_name() -> None:
    assert shape(plan(mesh(services=(DOTTED, Service("web", FOO)), remotes=()))) == {
        here("v2.web"): ALL_BAR,
        here("web"): ALL_FOO,
    }


@pytest.mark.parametrize("turned", [False, True])
def test_services_that_differ_by_case_are_one_route_whatever_their_order(turned: bool) -> None:
    services = (Service("Web", FOO), Service("web", FOO))
    table = plan(mesh(services=services[::-1] if turned else services, remotes=()))
    assert shape(table) == {here("web"): ALL_FOO}
    assert table.find(here("WEB")) is route(table, here("web"))
    assert table.conflicts == (here("web"),)


def test_a_service_without_mesh_instances_has_no_route_and_claims_no_name() -> None:
    table = plan(mesh(services=(Service("web", (), subsets=(Subset("v2", instances=FOO),)), DOTTED), remotes=()))
    assert shape(table) == {here("v2.web"): ALL_BAR}
    assert table.conflicts == ()


def test_a_datacenter_without_gateways_has_no_route() -> None:
    assert shape(plan(mesh(services=(), remotes=(Remote("dc9", ()),)))) == {}


@pytest.mark.parametrize("name", ["dc1", "DC1"])
def test_the_own_datacenter_never_becomes_a_suffix(name: str) -> None:
    own = Remote(name, (gateway("dc1", "10.0.0.1", "198.18.0.1"),))
    table = plan(mesh(services=(Service("foo", FOO),), remotes=(own,)))
    assert shape(table) == {here("foo"): ALL_FOO}
    assert table.find(here("unknown")) is None


def test_without_a_trust_domain_there_is_nothing_to_route() -> None:
    table = plan(replace(mesh(), trust_domain=""))
    assert len(table) == 0
    assert table.datacenter == "dc1"


def test_a_subset_whose_filter_does_not_compile_has_no_route_and_leaves_the_others_alone() -> None:
    services = (Service("foo", FOO, subsets=(Subset("bad"), *versions(FOO))),)
    assert shape(plan(mesh(services=services, remotes=()))) == {
        here("foo"): ALL_FOO,
        here("v1.foo"): FOO_V1,
        here("v2.foo"): FOO_V2,
    }


def test_a_default_subset_whose_filter_does_not_compile_takes_the_unnamed_route_with_it() -> None:
    services = (Service("foo", FOO, subsets=(Subset("bad"), versions(FOO)[0]), default_subset="bad"),)
    assert shape(plan(mesh(services=services, remotes=()))) == {here("v1.foo"): FOO_V1}


def test_a_default_subset_that_is_not_defined_means_all_instances() -> None:
    services = (Service("foo", FOO, subsets=versions(FOO), default_subset="v3"),)
    assert shape(plan(mesh(services=services)))[here("foo")] == ALL_FOO


@given(st.permutations(FOO), st.permutations([Service("bar", BAR), Service("web", BAR)]), st.permutations(DC2))
def test_the_order_in_which_consul_lists_things_makes_no_difference(
    foo: list[Instance], services: list[Service], gateways: list[Instance]
) -> None:
    def table(foo: tuple[Instance, ...], services: tuple[Service, ...], gateways: tuple[Instance, ...]) -> RouteTable:
        return plan(mesh(services=(*services, Service("foo", foo)), remotes=(Remote("dc2", gateways),)))

    usual = table(FOO, (Service("bar", BAR), Service("web", BAR)), DC2)
    assert table(tuple(foo), tuple(services), tuple(gateways)) == usual


def test_every_address_of_a_host_name_is_an_endpoint_beside_numeric_ones() -> None:
    gateways = (gateway("dc2", "10.0.0.1", "lb.example", weight_passing=2), gateway("dc2", "10.0.0.2", "198.18.1.2"))
    snapshot = Snapshot("dc1", TD3, remotes=(Remote("dc2", gateways),))
    assert host_names(snapshot) == {"lb.example"}
    (route,) = plan(snapshot, addresses={"lb.example": ("192.0.2.1", "2001:db8::1")})
    assert [(each.address, each.healthy, each.weight) for each in route.endpoints] == [
        ("192.0.2.1", True, 2),
        ("198.18.1.2", True, 1),
        ("2001:db8::1", True, 2),
    ]


def test_host_name_without_an_address_is_not_healthy_and_says_so() -> None:
    snapshot = Snapshot("dc1", TD3, remotes=(Remote("dc2", (gateway("dc2", "10.0.0.1", "lb.example"),)),))
    (route,) = plan(snapshot)
    (endpoint,) = route.endpoints
    assert not endpoint.healthy
    assert endpoint.cause == "no address is known for the host name lb.example"


@pytest.mark.parametrize("port", [0, -5, 70000])
def test_port_that_is_none_is_not_healthy_and_harms_no_other_endpoint(port: int) -> None:
    service = Service("foo", (instance("172.16.1.3"), instance("172.16.1.4", port=port)))
    (route,) = plan(Snapshot("dc1", TD3, services=(service,)))
    assert [endpoint.address for endpoint in route.candidates] == ["172.16.1.3"]
    assert {endpoint.cause for endpoint in route.endpoints} == {"", f"{port} is no port"}
