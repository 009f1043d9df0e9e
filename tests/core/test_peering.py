"""Routes to peered clusters and other partitions: Consul's golden variants, and what lies between them."""

from typing import Any

import pytest

from meshgate.core.catalog import (
    Check,
    ImportedService,
    Instance,
    PeerServers,
    Remote,
    Service,
    Snapshot,
    WanAddress,
)
from meshgate.core.explain import Step, explain
from meshgate.core.routes import RouteKind, RouteTable

from .samples import TD1, TD3, host_names, instance, plan

DOWN = (Check("up", "critical"),)
ALPHA = "22222222-3333-4444-5555-666666666666.consul"


def shape(table: RouteTable) -> dict[str, list[str]]:
    return {
        route.sni: [f"{'' if it.healthy else '!'}{it.address}:{it.port}" for it in route.endpoints] for route in table
    }


# --- imports ----------------------------------------------------------------------------------------------------------


def imported(service: str, address: str, *names: str, **fields: Any) -> Instance:
    """What stands for a gateway of the peer, whose datacenter may well be called as ours."""
    wan = WanAddress(address, 443)
    ordinary: dict[str, Any] = {"service": f"{service}-sidecar-proxy", "peer_sni": names, "wan": wan}
    return instance("10.40.1.1", **(ordinary | fields))


DB = f"db.default.default.peer-a.external.{ALPHA}"
ALT = f"alt.default.default.peer-b.external.{TD1}"


def test_golden_variant_with_imported_peered_services() -> None:
    imports = (
        ImportedService("db", "peer-a", (imported("db", "198.18.1.1", DB), imported("db", "198.18.1.2", DB))),
        ImportedService("alt", "peer-b", (imported("alt", "198.18.2.1", ALT, checks=DOWN),)),
    )
    table = plan(Snapshot("dc1", TD3, imports=imports))
    assert shape(table) == {DB: ["198.18.1.1:443", "198.18.1.2:443"], ALT: ["!198.18.2.1:443"]}
    assert {route.kind for route in table} == {RouteKind.PEER_IMPORT}
    assert {route.destination for route in table} == {"db of peer peer-a", "alt of peer peer-b"}


def test_a_gateway_of_any_partition_routes_imports() -> None:
    imports = (ImportedService("db", "peer-a", (imported("db", "198.18.1.1", DB),), "team"),)
    (route,) = plan(Snapshot("dc1", TD3, "p1", imports=imports))
    assert route.destination == "team/db of peer peer-a"


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        pytest.param({}, "198.18.1.1:443", id="wan tag"),
        pytest.param({"wan": WanAddress("198.18.1.1", 0)}, "198.18.1.1:8080", id="wan tag without a port"),
        pytest.param({"wan": None}, "10.40.1.1:8080", id="no wan tag"),
        pytest.param({"wan": WanAddress("", 1), "node_wan": "198.18.9.9"}, "198.18.9.9:1", id="the node's wan tag"),
        pytest.param({"wan": WanAddress("", 1), "node_address": "10.9.9.9"}, "10.9.9.9:1", id="the node"),
    ],
)
def test_an_import_is_dialled_at_its_wan_address_also_if_its_datacenter_is_called_like_ours(
    fields: dict[str, Any], address: str
) -> None:
    imports = (ImportedService("db", "peer-a", (imported("db", "198.18.1.1", DB, **fields),)),)
    assert shape(plan(Snapshot("dc1", TD3, imports=imports))) == {DB: [address]}


def test_an_import_has_a_route_for_each_name_that_its_exporter_gave_it() -> None:
    old, new = DB, DB.replace(ALPHA, TD1)
    imports = (
        ImportedService("db", "peer-a", (imported("db", "198.18.1.1", old), imported("db", "198.18.1.2", new.upper()))),
    )
    assert shape(plan(Snapshot("dc1", TD3, imports=imports))) == {old: ["198.18.1.1:443"], new: ["198.18.1.2:443"]}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f"web.default.dc2.internal.{TD3}", id="service of this mesh"),
        pytest.param(f"web.default.default.eu.external.{TD3.upper()}", id="export of this cluster"),
        pytest.param("node1.server.dc2.consul", id="server"),
        pytest.param("server.dc2.consul", id="servers"),
        pytest.param(f"web.default.dc2.internal.{TD1}", id="form of a service in the mesh"),
        pytest.param("www.example.com", id="any name"),
        pytest.param("external", id="one label"),
        pytest.param("", id="empty"),
    ],
)
def test_a_peer_cannot_claim_a_name_that_is_not_its_own(name: str) -> None:
    gateways = Remote("p1", ())
    imports = (ImportedService("web", "peer-a", (imported("web", "198.18.1.1", name),)),)
    assert shape(plan(Snapshot("dc1", TD3, imports=imports, partitions=(gateways,)))) == {}


@pytest.mark.parametrize(
    "name", [f"web.default.dc2.internal.{TD3}", f"server.dc1.peering.{TD3}", "node1.server.dc2.consul"]
)
def test_servers_of_a_peer_cannot_claim_a_name_that_is_not_their_own(name: str) -> None:
    assert shape(plan(control(peers=(peer("peer-a", name, "1.2.3.4"),)))) == {}


def test_imports_panic_as_remote_datacenters_do() -> None:
    imports = (ImportedService("db", "peer-a", (imported("db", "198.18.1.1", DB, checks=DOWN),)),)
    (route,) = plan(Snapshot("dc1", TD3, imports=imports), panic_threshold=50)
    assert len(route.candidates) == 1


def test_host_names_of_a_peers_gateways_are_looked_up() -> None:
    imports = (ImportedService("db", "peer-a", (imported("db", "lb.example", DB),)),)
    assert host_names(Snapshot("dc1", TD3, imports=imports)) == {"lb.example"}


# --- the control plane ------------------------------------------------------------------------------------------------


def server(node: str, port: str = "8503", **fields: Any) -> Instance:
    meta = (("grpc_tls_port", port),) if port else ()
    ordinary: dict[str, Any] = {"node": node, "id": "consul", "meta": meta, "wan": WanAddress("198.18.9.9", 1)}
    return instance(f"127.0.0.{node[-1]}", **(ordinary | fields))


CONTROL = f"server.dc1.peering.{TD3}"


def control(*servers: Instance, peers: tuple[PeerServers, ...] = (), **fields: Any) -> Snapshot:
    ordinary: dict[str, Any] = {"servers": servers, "peer_servers": peers, "peer_through": True}
    return Snapshot("dc1", TD3, **(ordinary | fields))


@pytest.mark.parametrize(
    ("servers", "endpoints"),
    [
        pytest.param((server("node1"), server("node2")), ["127.0.0.1:8503", "127.0.0.2:8503"], id="two servers"),
        pytest.param(
            (server("node1"), server("node3", meta=(("grpc_tls_port", "8503"), ("read_replica", "true")))),
            ["127.0.0.1:8503"],
            id="replica is skipped",
        ),
        pytest.param((server("node1"), server("node4", "")), ["127.0.0.1:8503"], id="no port is skipped"),
        pytest.param((server("node1"), server("node5", "bad")), ["127.0.0.1:8503"], id="no number is skipped"),
        pytest.param((server("node1"), server("node5", "-1")), ["127.0.0.1:8503"], id="switched off is skipped"),
        pytest.param((server("node1"), server("node5", "70000")), ["127.0.0.1:8503"], id="too large is skipped"),
        pytest.param((server("node1"), server("node5", "9" * 5000)), ["127.0.0.1:8503"], id="endless is skipped"),
        pytest.param((server("node1", checks=DOWN, weight_passing=0),), ["127.0.0.1:8503"], id="health is ignored"),
        pytest.param((server("node1", meta=(("read_replica", "true"),)),), None, id="replicas only"),
        pytest.param((), None, id="none"),
    ],
)
def test_golden_variant_peering_control_plane(servers: tuple[Instance, ...], endpoints: list[str] | None) -> None:
    assert shape(plan(control(*servers))) == ({CONTROL: endpoints} if endpoints else {})


def peer(name: str, server_name: str, *hosts: str, modify_index: int = 1) -> PeerServers:
    return PeerServers(name, server_name, tuple((host, 8503) for host in hosts), modify_index)


@pytest.mark.parametrize(
    ("peers", "routes"),
    [
        pytest.param(
            (
                peer("peer-a", "connect-tls.one.example", "1.2.3.4", "2.3.4.5"),
                peer("peer-b", "connect-tls.two.example", "mygateway.example", "3.4.5.6"),
                peer("peer-c", "", "4.5.6.7"),
                peer("peer-d", "connect-tls.three.example"),
            ),
            {
                "connect-tls.one.example": ["1.2.3.4:8503", "2.3.4.5:8503"],
                "connect-tls.two.example": ["!mygateway.example:8503"],
            },
            id="with-peer-through-mesh-gateway-enabled",
        ),
        pytest.param(
            (
                peer("peer-a", "Dup.example", "1.2.3.4", modify_index=9),
                peer("peer-b", "dup.example", "2.3.4.5", modify_index=8),
            ),
            {"dup.example": ["1.2.3.4:8503"]},
            id="two of one name: the newest",
        ),
        pytest.param((peer("peer-a", "v6.example", "2001:db8::1"),), {"v6.example": ["2001:db8::1:8503"]}, id="IPv6"),
    ],
)
def test_servers_of_peers_have_exact_names(peers: tuple[PeerServers, ...], routes: dict[str, list[str]]) -> None:
    table = plan(control(peers=peers))
    assert shape(table) == routes
    assert all(not route.suffix and route.kind is RouteKind.PEER_SERVER for route in table)


@pytest.mark.parametrize("fields", [{"peer_through": False}, {"partition": "p1"}])
def test_a_gateway_has_no_control_plane(fields: dict[str, Any]) -> None:
    peers = (peer("peer-a", "server.us.peering.x", "1.2.3.4"),)
    assert shape(plan(control(server("node1"), peers=peers, **fields))) == {}


def test_the_control_plane_opens_no_names_of_wan_federation() -> None:
    assert set(shape(plan(control(server("node1"))))) == {CONTROL}


# --- partitions -------------------------------------------------------------------------------------------------------


def partition(name: str, wan: str, **fields: Any) -> Remote:
    ordinary: dict[str, Any] = {"partition": name, "kind": "mesh-gateway", "wan": WanAddress(wan, 443)}
    return Remote(name, (instance("10.0.0.1", **(ordinary | fields)),))


PARTITIONS = (partition("default", "198.18.0.0"), partition("p1", "198.18.0.1"), partition("p2", "198.18.0.2"))
TO_DEFAULT, TO_P1, TO_P2 = f"*.dc1.internal.{TD3}", f"*.p1.dc1.internal-v1.{TD3}", f"*.p2.dc1.internal-v1.{TD3}"


@pytest.mark.parametrize(
    ("own", "routes"),
    [
        ("default", {TO_P1: ["198.18.0.1:443"], TO_P2: ["198.18.0.2:443"]}),
        ("p1", {TO_DEFAULT: ["198.18.0.0:443"], TO_P2: ["198.18.0.2:443"]}),
        ("P2", {TO_DEFAULT: ["198.18.0.0:443"], TO_P1: ["198.18.0.1:443"]}),
    ],
)
def test_every_partition_but_the_own_one_has_a_suffix_at_its_gateways_wan_addresses(
    own: str, routes: dict[str, list[str]]
) -> None:
    table = plan(Snapshot("dc1", TD3, own, partitions=PARTITIONS))
    assert shape(table) == routes
    assert {route.kind for route in table} == {RouteKind.PARTITION}


def test_a_name_in_another_partition_goes_there_and_one_in_the_own_partition_never_leaves_it() -> None:
    services = (Service("web", (instance(partition="p1"),)),)
    table = plan(Snapshot("dc1", TD3, "p1", services=services, partitions=PARTITIONS))
    for name, route in {
        f"web.default.p1.dc1.internal-v1.{TD3}": f"web.default.p1.dc1.internal-v1.{TD3}",
        f"v1.web.default.p2.dc1.internal-v1.{TD3}": TO_P2,
        f"web.default.dc1.internal.{TD3}": TO_DEFAULT,
    }.items():
        found = table.find(name)
        assert found is not None
        assert found.sni == route
    for name in (f"api.default.p1.dc1.internal-v1.{TD3}", f"web.default.p3.dc1.internal-v1.{TD3}", TO_P2[2:]):
        assert table.find(name) is None


def test_a_partition_without_gateways_has_no_route() -> None:
    assert shape(plan(Snapshot("dc1", TD3, partitions=(Remote("p1", ()),)))) == {}


def test_partitions_panic_as_remote_datacenters_do() -> None:
    (route,) = plan(Snapshot("dc1", TD3, partitions=(partition("p1", "198.18.0.1", checks=DOWN),)), panic_threshold=50)
    assert len(route.candidates) == 1


# --- what is told of them ---------------------------------------------------------------------------------------------


def test_a_partition_that_is_unknown_is_told_with_those_that_are_known() -> None:
    table = plan(Snapshot("dc1", TD3, "p1", partitions=PARTITIONS))
    told = explain(table, f"web.default.p3.dc1.internal-v1.{TD3}").steps[-1]
    assert told == Step("partition", "no gateway of partition p3 is known; known are p1 (this gateway's), default, p2")


def test_a_datacenter_is_told_to_be_for_gateways_of_the_default_partition() -> None:
    table = plan(Snapshot("dc1", TD3, "p1", partitions=PARTITIONS))
    told = explain(table, f"web.default.dc2.internal.{TD3}").steps[-1].outcome
    assert told == (
        "no gateway of datacenter dc2 is known; known are dc1 (this one); only gateways of partition default know "
        "other datacenters"
    )


def test_a_peered_name_that_is_unknown_is_told_with_those_that_are_known() -> None:
    imports = (ImportedService("db", "peer-a", (imported("db", "198.18.1.1", DB),)),)
    told = explain(plan(Snapshot("dc1", TD3, imports=imports)), DB.replace("db", "dbs")).steps[-1].outcome
    assert told == (
        "no service that is exported to a peer or imported from one has this name; known are peer-import db of peer "
        "peer-a"
    )


def test_routes_of_namespaces_are_named_with_them_for_metrics() -> None:
    services = (Service("web", (instance(),), namespace="team"), Service("web", (instance(),)))
    table = plan(Snapshot("dc1", TD3, services=services))
    assert sorted(route.destination for route in table) == ["team/web", "web"]
