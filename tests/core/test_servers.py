"""Names of Consul's own servers, for WAN federation through gateways: whom they lead to, and who has none of them.

The fixtures hold the facts of Consul's golden file `mesh-gateway-using-federation-control-plane`: two servers in dc1,
and gateways of dc2, of which some are registered for servers.
"""

from dataclasses import replace
from typing import Any

import pytest

from meshgate.core.catalog import Check, Instance, Remote, Service, Snapshot, WanAddress
from meshgate.core.explain import explain
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable

from .samples import TD3, host_names, instance, plan

CRITICAL = (Check("serfHealth", "critical"),)
EXPOSED = (("consul-wan-federation", "1"),)


def server(node: str, address: str = "", **fields: Any) -> Instance:
    """A server on a node whose LAN address is 127.0.0.1, and whose WAN address must never be dialled from here."""
    ordinary: dict[str, Any] = {
        "node": node,
        "id": "consul",
        "service": "consul",
        "port": 8300,
        "node_address": "127.0.0.1",
        "node_wan": "198.51.100.1",
    }
    return instance(address, **(ordinary | fields))


def gateway(datacenter: str, wan: str, **fields: Any) -> Instance:
    ordinary: dict[str, Any] = {"kind": "mesh-gateway", "meta": EXPOSED, "wan": WanAddress(wan, 443)}
    return instance("10.0.1.1", datacenter=datacenter, **(ordinary | fields))


DC2 = Remote("dc2", (gateway("dc2", "198.18.1.1"), gateway("dc2", "198.18.1.2")))


def federation(**fields: Any) -> Snapshot:
    ordinary: dict[str, Any] = {
        "services": (Service("foo", (instance(),)),),
        "remotes": (DC2,),
        "servers": (server("node1"), server("node2", "10.0.0.2")),
        "expose_servers": True,
    }
    return Snapshot("dc1", TD3, **(ordinary | fields))


def shape(table: RouteTable) -> dict[str, list[str]]:
    """The names of servers with the endpoints that get traffic."""
    return {
        route.sni: [f"{endpoint.address}:{endpoint.port}" for endpoint in route.candidates]
        for route in table
        if route.kind is RouteKind.SERVER
    }


def found(table: RouteTable, name: str) -> Route:
    route = table.find(name)
    assert route is not None
    return route


def dc2_of(*gateways: Instance, **fields: Any) -> Snapshot:
    return federation(remotes=(Remote("dc2", gateways),), **fields)


def test_golden_variant_using_federation_control_plane() -> None:
    assert shape(plan(federation())) == {
        "node1.server.dc1.consul": ["127.0.0.1:8300"],
        "node2.server.dc1.consul": ["10.0.0.2:8300"],
        "server.dc1.consul": ["10.0.0.2:8300", "127.0.0.1:8300"],
        "*.server.dc2.consul": ["198.18.1.1:443", "198.18.1.2:443"],
        "server.dc2.consul": ["198.18.1.1:443", "198.18.1.2:443"],
    }


def test_services_and_datacenters_are_routed_all_the_same() -> None:
    with_servers, without = plan(federation()), plan(federation(expose_servers=False))
    assert [route for route in with_servers if route.kind is not RouteKind.SERVER] == list(without)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"expose_servers": False}, id="not registered for servers"),
        pytest.param({"partition": "p1"}, id="partition other than the default one"),
        pytest.param({"servers": (), "remotes": ()}, id="nothing known"),
    ],
)
def test_a_gateway_has_no_names_of_servers(fields: dict[str, Any]) -> None:
    assert shape(plan(federation(**fields))) == {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("node3.server.dc1.consul", id="unknown node"),
        pytest.param("a.node1.server.dc1.consul", id="a label too many"),
        pytest.param("node1.server.dc3.consul", id="unknown datacenter"),
        pytest.param("server.dc3.consul", id="any server of an unknown datacenter"),
        pytest.param("node1.server.dc1.example.com", id="another domain"),
        pytest.param(f"node1.server.dc1.internal.{TD3}", id="trust domain"),
    ],
)
def test_no_other_name_of_a_server_has_a_route(name: str) -> None:
    assert plan(federation()).find(name) is None


def test_names_end_in_the_agents_domain_whatever_the_trust_domain_is() -> None:
    for domain in ("Fed.example", "fed.example."):
        assert set(shape(plan(federation(domain=domain)))) == {
            "node1.server.dc1.fed.example",
            "node2.server.dc1.fed.example",
            "server.dc1.fed.example",
            "*.server.dc2.fed.example",
            "server.dc2.fed.example",
        }


def test_names_are_compared_without_regard_to_case() -> None:
    snapshot = replace(federation(servers=(server("Node1"),)), datacenter="DC1")
    assert found(plan(snapshot), "NODE1.server.dc1.consul").destination == "Node1.server.DC1"


def test_servers_here_are_dialled_whatever_their_checks_and_weights_say() -> None:
    sick = server("node1", checks=CRITICAL, weight_passing=0, weight_warning=0)
    table = plan(federation(servers=(sick, server("node2", "10.0.0.2"))))
    assert shape(table)["node1.server.dc1.consul"] == ["127.0.0.1:8300"]
    assert shape(table)["server.dc1.consul"] == ["10.0.0.2:8300", "127.0.0.1:8300"]
    assert {endpoint.weight for endpoint in found(table, "server.dc1.consul").endpoints} == {1}


def test_gateways_there_that_are_not_registered_for_servers_get_none_of_their_traffic() -> None:
    others = (gateway("dc2", "198.18.1.2", meta=()), gateway("dc2", "198.18.1.3", meta=((EXPOSED[0][0], "true"),)))
    table = plan(dc2_of(gateway("dc2", "198.18.1.1"), *others))
    assert shape(table)["*.server.dc2.consul"] == shape(table)["server.dc2.consul"] == ["198.18.1.1:443"]
    assert len(found(table, f"web.default.dc2.internal.{TD3}").candidates) == 3
    assert "*.server.dc2.consul" not in shape(plan(dc2_of(*others)))


@pytest.mark.parametrize("threshold", [0, 50])
def test_a_critical_gateway_there_is_avoided_while_there_is_a_healthy_one(threshold: int) -> None:
    sick, well = gateway("dc2", "198.18.1.1", checks=CRITICAL), gateway("dc2", "198.18.1.2")
    table = plan(dc2_of(sick, well), panic_threshold=threshold)
    assert shape(table)["*.server.dc2.consul"] == shape(table)["server.dc2.consul"] == ["198.18.1.2:443"]
    assert len(found(table, "server.dc2.consul").endpoints) == 2


def test_where_no_gateway_there_is_healthy_servers_try_them_all_and_services_none() -> None:
    sick = [gateway("dc2", f"198.18.1.{number}", checks=CRITICAL) for number in (1, 2)]
    table = plan(dc2_of(*sick))
    assert shape(table)["*.server.dc2.consul"] == ["198.18.1.1:443", "198.18.1.2:443"]
    assert found(table, f"web.default.dc2.internal.{TD3}").candidates == ()


def test_the_own_datacenter_is_none_of_the_remote_ones() -> None:
    snapshot = federation(remotes=(Remote("DC1", (gateway("DC1", "198.18.1.1"),)), DC2))
    assert shape(plan(snapshot)) == shape(plan(federation()))


def test_a_server_or_a_gateway_may_be_known_by_a_host_name() -> None:
    snapshot = dc2_of(gateway("dc2", "gw.example"), servers=(server("node1", "consul.example"),))
    assert host_names(snapshot) == {"consul.example", "gw.example"}
    table = plan(snapshot, addresses={"consul.example": ("10.9.9.9",), "gw.example": ("198.18.9.9",)})
    assert shape(table)["node1.server.dc1.consul"] == ["10.9.9.9:8300"]
    assert shape(table)["server.dc2.consul"] == ["198.18.9.9:443"]


def test_each_name_is_a_destination_of_its_own_and_none_of_a_strangers_text() -> None:
    table = plan(federation())
    assert sorted(route.destination for route in table if route.kind is RouteKind.SERVER) == [
        "*.server.dc2",
        "node1.server.dc1",
        "node2.server.dc1",
        "server.dc1",
        "server.dc2",
    ]
    assert found(table, "stranger.server.dc2.consul").destination == "*.server.dc2"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        (
            "node3.server.dc1.consul",
            "no such Consul server is known in this datacenter; known are node1, node2",
        ),
        (
            "node1.server.dc3.consul",
            "no gateway of datacenter dc3 that exposes Consul servers is known; known are dc1 (this one), dc2",
        ),
    ],
)
def test_an_unknown_server_is_explained_by_those_that_are_known(name: str, outcome: str) -> None:
    explanation = explain(plan(federation()), name)
    assert explanation.reason is Reason.UNKNOWN_SNI
    assert (explanation.steps[-1].rule, explanation.steps[-1].outcome) == ("servers", outcome)


def test_where_no_server_here_is_known_that_is_said() -> None:
    outcome = explain(plan(federation(servers=())), "server.dc1.consul").steps[-1].outcome
    assert outcome == "no such Consul server is known in this datacenter; known are none"


def test_a_routed_name_of_a_server_is_explained_as_such() -> None:
    steps = {step.rule: step.outcome for step in explain(plan(federation()), "node7.server.dc2.consul").steps}
    assert steps["form"] == "Consul server node7, datacenter dc2"
    assert steps["longest suffix match"] == "yes, *.server.dc2.consul: server *.server.dc2"
