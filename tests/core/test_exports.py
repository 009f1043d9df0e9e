"""Exported services: to peers, as Consul's golden files have them, and between partitions."""

from typing import Any

import pytest

from meshgate.core.catalog import ChainTarget, Check, Export, Instance, Service, Snapshot, Subset, WanAddress
from meshgate.core.explain import explain
from meshgate.core.export_routes import AS_CONSUL, ExportRules
from meshgate.core.reasons import Reason
from meshgate.core.routes import Policy, RouteKind, RouteTable

from .samples import TD3, host_names, instance, plan

PASSED = ExportRules(pass_http=True)
ENFORCED = ExportRules(enforce=True)
DOWN = (Check("up", "critical"),)

FOO = (instance("172.16.1.3"), instance("172.16.1.4"))
BAR = (instance("172.16.1.6"), instance("172.16.1.7"))
V2 = (instance("172.16.1.9", checks=(Check("up", "warning"),)),)


def tcp(service: str, *peers: str, target: str = "", subset: str = "", **fields: Any) -> Export:
    """An export of protocol tcp whose chain leads to `target`."""
    ordinary: dict[str, Any] = {"protocol": "tcp", "target": ChainTarget(target or service, subset=subset)}
    return Export(service, peers=peers, **(ordinary | fields))


def mesh(*exports: Export, **fields: Any) -> Snapshot:
    services = (Service("foo", FOO), Service("bar", BAR, subsets=(Subset("v2", True, V2), Subset("bad"))))
    return Snapshot("dc1", TD3, **({"services": services, "exports": exports} | fields))


def external(service: str, peer: str, ns: str = "default", partition: str = "default") -> str:
    return f"{service}.{ns}.{partition}.{peer}.external.{TD3}"


def exported(table: RouteTable) -> dict[str, list[str]]:
    """Each name for a peer with its endpoints, the unhealthy ones marked by `!`."""
    return {
        route.sni: [f"{'' if it.healthy else '!'}{it.address}:{it.port}" for it in route.endpoints]
        for route in table
        if route.kind is RouteKind.PEER_EXPORT
    }


ALL_FOO, ALL_BAR = ["172.16.1.3:8080", "172.16.1.4:8080"], ["172.16.1.6:8080", "172.16.1.7:8080"]


@pytest.mark.parametrize(
    ("exports", "routes"),
    [
        pytest.param(
            (tcp("bar", "peer-a"), tcp("foo", "peer-a"), tcp("foo", "peer-b")),
            {
                external("bar", "peer-a"): ALL_BAR,
                external("foo", "peer-a"): ALL_FOO,
                external("foo", "peer-b"): ALL_FOO,
            },
            id="with-exported-peered-services",
        ),
        pytest.param(
            (tcp("foo", "peer-a", target="bar"),),
            {external("foo", "peer-a"): ALL_BAR},
            id="case-cross-peers-resolver-redirect-tcp",
        ),
        pytest.param(
            (tcp("bar", "peer-a", subset="v2"),),
            {external("bar", "peer-a"): ["!172.16.1.9:8080"]},
            id="default subset, with OnlyPassing",
        ),
        pytest.param(
            (tcp("foo", "peer-a", protocol="http"), tcp("bar", "peer-a", protocol="grpc")),
            {},
            id="with-exported-peered-services-http",
        ),
        pytest.param(
            (tcp("foo", "peer-a", protocol="http", target="foo"),),
            {},
            id="with-exported-peered-services-http-with-router",
        ),
        pytest.param((Export("foo", peers=("peer-a",), protocol="tcp"),), {}, id="redirect out of here"),
        pytest.param((Export("foo", peers=("peer-a",)),), {}, id="chain not known yet"),
        pytest.param((tcp("foo"),), {}, id="exported to no peer"),
        pytest.param((tcp("nobody", "peer-a"),), {}, id="no instances"),
        pytest.param((tcp("bar", "peer-a", subset="v9"),), {}, id="subset that is not there"),
        pytest.param((tcp("bar", "peer-a", subset="bad"),), {}, id="subset whose filter does not compile"),
    ],
)
def test_golden_variant(exports: tuple[Export, ...], routes: dict[str, list[str]]) -> None:
    assert exported(plan(mesh(*exports))) == routes


def test_http_exports_are_passed_on_where_that_is_wanted_to_the_service_itself() -> None:
    snapshot = mesh(tcp("foo", "peer-a", protocol="http"), tcp("bar", "peer-a", protocol="grpc", target="foo"))
    assert exported(plan(snapshot, rules=PASSED)) == {
        external("foo", "peer-a"): ALL_FOO,
        external("bar", "peer-a"): ALL_FOO,
    }


def test_an_export_without_a_named_subset_follows_the_default_one() -> None:
    services = (Service("bar", BAR, subsets=(Subset("v2", True, V2),), default_subset="v2"),)
    assert exported(plan(mesh(tcp("bar", "peer-a"), services=services))) == {
        external("bar", "peer-a"): ["!172.16.1.9:8080"]
    }


def test_a_default_subset_that_is_not_defined_means_all_instances() -> None:
    services = (Service("bar", BAR, default_subset="v9"),)
    assert exported(plan(mesh(tcp("bar", "peer-a"), services=services))) == {external("bar", "peer-a"): ALL_BAR}


def test_exports_never_panic_and_take_the_resolvers_settings_of_their_target() -> None:
    services = (
        Service("foo", FOO),
        Service("bar", (instance(checks=DOWN),), connect_timeout=7.0, policy=Policy.LEAST_REQUEST, choices=5),
    )
    table = plan(mesh(tcp("foo", "peer-a", target="bar"), services=services), panic_threshold=50)
    route = table.find(external("foo", "peer-a"))
    assert route is not None
    assert (route.connect_timeout, route.policy, route.choice_count) == (7.0, Policy.LEAST_REQUEST, 5)
    assert route.endpoints
    assert not route.candidates


def test_an_export_of_a_namespace_and_partition_has_them_in_its_name() -> None:
    services = (Service("foo", (instance(partition="p1"),), namespace="team"),)
    target = ChainTarget("foo", "team")
    export = Export("foo", "team", ("peer-a",), protocol="tcp", target=target)
    table = plan(mesh(export, services=services, partition="p1"))
    assert exported(table) == {external("foo", "peer-a", "team", "p1"): ["172.16.1.3:8080"]}
    route = table.find(external("FOO", "Peer-A", "team", "p1"))
    assert route is not None
    assert route.destination == "team/foo to peer peer-a"


def test_a_service_of_the_same_name_in_another_namespace_is_another_one() -> None:
    table = plan(mesh(Export("foo", "team", ("peer-a",), protocol="tcp", target=ChainTarget("foo", "team"))))
    assert exported(table) == {}
    assert table.unroutable == {external("foo", "peer-a", "team"): "no mesh instance of team/foo is known"}


def test_names_are_compared_without_regard_to_case() -> None:
    services = (Service("foo", FOO),)
    assert exported(plan(mesh(tcp("Foo", "Peer-A"), services=services))) == {external("foo", "peer-a"): ALL_FOO}


def test_host_names_of_exported_instances_are_looked_up() -> None:
    services = (Service("foo", (instance("foo.example"),)),)
    assert host_names(mesh(tcp("foo", "peer-a"), services=services)) == {"foo.example"}


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        (
            tcp("foo", "peer-a", protocol="http2"),
            (
                "foo is exported with protocol http2, for which a gateway has to end TLS, and this one never does: "
                'set protocol = "tcp" in service-defaults/foo, or use Envoy gateways in this cluster'
            ),
        ),
        (
            Export("foo", peers=("peer-a",), protocol="tcp"),
            "foo is exported, but its resolver leads out of this datacenter or partition",
        ),
        (
            Export("foo", peers=("peer-a",)),
            "foo is exported, but Consul has not said yet where its discovery chain leads",
        ),
        (tcp("foo", "peer-a", target="nobody"), "no mesh instance of nobody is known"),
        (tcp("foo", "peer-a", target="bar", subset="bad"), "bar has no subset bad with a usable filter"),
    ],
)
def test_an_export_without_a_route_is_refused_with_the_reason(export: Export, reason: str) -> None:
    table = plan(mesh(export))
    told = explain(table, external("foo", "peer-a").upper())
    assert (told.decision, told.reason) == ("refused", Reason.UNKNOWN_SNI)
    assert (told.steps[-1].rule, told.steps[-1].outcome) == ("withheld", reason)


def test_without_exports_nothing_is_withheld() -> None:
    assert plan(mesh()).unroutable == {}


# --- between partitions -----------------------------------------------------------------------------------------------


def partitioned(*exports: Export) -> Snapshot:
    services = (
        Service("web", (instance(partition="p1"),), subsets=(Subset("v1", instances=()),)),
        Service("web", (instance(partition="p1"),), namespace="team"),
    )
    return Snapshot("dc1", TD3, "p1", services=services, exports=exports)


def here(service: str, ns: str = "default") -> str:
    return f"{service}.{ns}.p1.dc1.internal-v1.{TD3}"


def test_as_consul_does_services_are_routed_whether_exported_or_not() -> None:
    table = plan(partitioned(), rules=AS_CONSUL)
    assert {route.sni for route in table} == {here("web"), here("v1.web"), here("web", "team")}
    assert table.unroutable == {}


def test_enforced_exports_route_what_is_open_to_a_partition_and_explain_the_rest() -> None:
    table = plan(partitioned(Export("Web", partitions=("p2",)), Export("web", "team", ("peer-a",))), rules=ENFORCED)
    assert {route.sni for route in table} == {here("web"), here("v1.web")}
    told = explain(table, here("web", "team"))
    assert told.decision == "refused"
    assert told.steps[-1].outcome == (
        "team/web is in no exported-services entry that opens it to another partition, and this gateway enforces "
        "exports"
    )


def test_enforced_exports_withhold_subsets_with_their_service() -> None:
    table = plan(partitioned(), rules=ENFORCED)
    assert list(table) == []
    assert set(table.unroutable) == {here("web"), here("v1.web"), here("web", "team")}


def test_a_service_that_is_not_open_may_still_be_what_an_export_leads_to() -> None:
    services = (Service("foo", FOO),)
    table = plan(mesh(tcp("foo", "peer-a"), services=services), rules=ENFORCED)
    assert [route.sni for route in table] == [external("foo", "peer-a")]


def test_an_instance_of_another_partition_is_dialled_at_its_wan_address() -> None:
    gateway = Instance("n1", "dc1", "g", "g", "10.0.0.1", 8443, "10.0.0.1", wan=WanAddress("198.18.0.1", 443))
    services = (Service("foo", (gateway,)),)
    (route,) = plan(Snapshot("dc1", TD3, "p1", services=services))
    assert [it.address for it in route.endpoints] == ["198.18.0.1"]
