"""Endpoints that are the gateway itself, or that no stream is to reach: found, never dialled, and said."""

from dataclasses import replace
from typing import Any

import pytest

from meshgate.core.addresses import (
    IS_ADMIN,
    LEADS_BACK,
    LOCAL_CLASSES,
    NOTHING_DENIED,
    DeniedAddresses,
    HostPort,
    OwnAddresses,
    host_of,
    plain_network,
)
from meshgate.core.catalog import (
    ImportedService,
    PeerServers,
    Remote,
    Service,
    Snapshot,
    WanAddress,
)
from meshgate.core.explain import explain
from meshgate.core.planner import Planner
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route

from .samples import TD1, TD3, instance, plan

MACHINE = frozenset({"10.0.0.5", "fd00::5"})


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (HostPort("10.0.0.5", 8443), "10.0.0.5:8443"),
        (HostPort("fd00::5", 443), "[fd00::5]:443"),
        (HostPort("", 1), ":1"),
    ],
)
def test_an_address_is_written_as_users_write_it(address: HostPort, text: str) -> None:
    assert str(address) == text
    assert host_of(text) == address.host


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        (("10.0.0.5", 8443), "10.0.0.5"),
        (("0.0.0.0", 8443), "10.0.0.5"),
        (("0.0.0.0", 8443), "127.0.0.1"),
        (("0.0.0.0", 8443), "127.9.9.9"),
        (("0.0.0.0", 8443), "0.0.0.0"),
        (("0.0.0.0", 8443), "::ffff:10.0.0.5"),
        (("127.0.0.1", 8443), "0.0.0.0"),
        (("::", 8443), "fd00::5"),
        (("::", 8443), "fd00:0:0::5"),
        (("::", 8443), "::1"),
        (("::", 8443), "10.0.0.5"),
        (("fd00::5", 8443), "fd00::5%eth0"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_a_listener_of_ours_receives_leads_back(listener: tuple[str, int], address: str, elsewhere: bool) -> None:
    own = OwnAddresses(frozenset({listener}), MACHINE)
    assert own.leads_back(address, 8443, elsewhere=elsewhere)


@pytest.mark.parametrize(
    ("listener", "address", "port"),
    [
        (("0.0.0.0", 8443), "10.0.0.5", 8444),  # another gateway of the same machine
        (("0.0.0.0", 8443), "10.0.0.6", 8443),  # another machine's
        (("0.0.0.0", 8443), "fd00::5", 8443),  # an IPv4 socket hears no IPv6
        (("10.0.0.5", 8443), "127.0.0.1", 8443),  # somebody else's on the same port
        (("10.0.0.5", 8443), "0.0.0.0", 8443),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_others_receive_does_not(listener: tuple[str, int], address: str, port: int, elsewhere: bool) -> None:
    own = OwnAddresses(frozenset({listener}), MACHINE)
    assert not own.leads_back(address, port, elsewhere=elsewhere)


def test_the_registered_address_proves_nothing_for_gateways_elsewhere() -> None:
    """A balancer there may send each datacenter's names to the gateways of that one."""
    own = OwnAddresses(registered=frozenset({("203.0.113.1", 443)}))
    assert own.leads_back("203.0.113.1", 443, elsewhere=False)
    assert not own.leads_back("203.0.113.1", 443, elsewhere=True)


def test_without_knowledge_nothing_leads_back() -> None:
    assert not OwnAddresses().leads_back("127.0.0.1", 8443, elsewhere=False)


OWN = OwnAddresses(frozenset({("0.0.0.0", 8443)}), MACHINE)
WEB = f"web.default.dc1.internal.{TD3}"
DC2 = f"web.default.dc2.internal.{TD3}"


def snapshot(*addresses: str) -> Snapshot:
    """A service with an instance at each address, and a datacenter whose gateways have the same ones; port 8443."""
    instances = tuple(instance(address, port=8443) for address in addresses)
    gateways = tuple(instance("10.9.9.9", datacenter="dc2", wan=WanAddress(address, 8443)) for address in addresses)
    return Snapshot("dc1", TD3, services=(Service("web", instances),), remotes=(Remote("dc2", gateways),))


@pytest.mark.parametrize("name", [WEB, DC2])
@pytest.mark.parametrize("panic_threshold", [0, 100])
def test_an_endpoint_that_leads_back_gets_nothing_in_panic_mode_neither(name: str, panic_threshold: int) -> None:
    route = plan(snapshot("10.0.0.5", "10.0.0.6"), own=OWN, panic_threshold=panic_threshold).find(name)
    assert route is not None
    assert [endpoint.address for endpoint in route.candidates] == ["10.0.0.6"]
    assert [(endpoint.address, endpoint.cause) for endpoint in route.endpoints if not endpoint.healthy] == [
        ("10.0.0.5", LEADS_BACK)
    ]


@pytest.mark.parametrize("name", [WEB, DC2])
def test_where_there_is_no_other_the_stream_is_refused_and_explained(name: str) -> None:
    explanation = explain(plan(snapshot("127.0.0.1"), own=OWN, panic_threshold=100), name)
    assert explanation.reason is Reason.NO_HEALTHY_ENDPOINT
    assert any(LEADS_BACK in step.outcome for step in explanation.steps)


def test_routes_that_are_kept_follow_what_is_known_of_own_addresses() -> None:
    planner, catalog = Planner(), snapshot("10.0.0.5")
    for own, healthy in ((OwnAddresses(), True), (OWN, False), (OwnAddresses(), True)):
        route = planner.plan(catalog, own=own).find(WEB)
        assert route is not None
        assert [endpoint.healthy for endpoint in route.endpoints] == [healthy]


# --- addresses that no endpoint may have ------------------------------------------------------------------------------

LOCAL = DeniedAddresses(frozenset(LOCAL_CLASSES))
ON_ONE_MACHINE = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "0:0:0:0:0:ffff:7f00:1": "loopback",
    "64:ff9b::7f00:1": "loopback",
    "169.254.169.254": "link-local",
    "64:ff9b::a9fe:a9fe": "link-local",
    "fe80::1%eth0": "link-local",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "::ffff:0.0.0.0": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
}


def planned(catalog: Snapshot, name: str, denied: DeniedAddresses = LOCAL, **told: Any) -> Route:
    route = plan(catalog, denied=denied, **told).find(name)
    assert route is not None
    return route


@pytest.mark.parametrize(("address", "what"), ON_ONE_MACHINE.items())
@pytest.mark.parametrize("name", [WEB, DC2])
@pytest.mark.parametrize("panic_threshold", [0, 100])
def test_what_means_another_machine_here_gets_no_stream(
    address: str, what: str, name: str, panic_threshold: int
) -> None:
    route = planned(snapshot(address), name, panic_threshold=panic_threshold)
    assert route.candidates == ()
    assert [endpoint.cause for endpoint in route.endpoints] == [
        f"a {what} address on another node, which MESHGATE_DENY_ENDPOINTS refuses"
    ]


@pytest.mark.parametrize("address", ON_ONE_MACHINE)
def test_an_instance_of_the_gateways_own_node_may_have_it(address: str) -> None:
    catalog = snapshot(address)
    own = catalog.services[0].instances[0].node
    assert planned(replace(catalog, node=own), WEB).candidates
    assert not planned(replace(catalog, node=own), DC2).candidates
    assert not planned(replace(catalog, node="another"), WEB).candidates


def test_a_node_of_that_name_elsewhere_is_not_the_gateways_own() -> None:
    """Other datacenters, partitions and peers name their nodes, and their datacenters, as they like."""
    named: dict[str, Any] = {"node": "here", "wan": WanAddress("127.0.0.1", 8443)}
    foreign = instance("127.0.0.1", datacenter="dc1", peer_sni=(f"web.default.p1.external.{TD1}",), **named)
    catalog = Snapshot(
        "dc1",
        TD3,
        node="here",
        remotes=(Remote("dc2", (instance(datacenter="dc2", **named),)),),
        partitions=(Remote("ap1", (instance(partition="ap1", **named),)),),
        imports=(ImportedService("web", "p1", (foreign,)),),
        peer_servers=(PeerServers("here", f"server.dc1.peering.{TD1}", (("127.0.0.1", 8502),)),),
        peer_through=True,
    )
    routes = list(plan(catalog, denied=LOCAL))
    assert {route.kind for route in routes} == {"datacenter", "partition", "peer-import", "peer-server"}
    assert [route.candidates for route in routes] == [()] * 4
    assert all(route.candidates for route in plan(catalog))


@pytest.mark.parametrize("address", ["172.16.1.3", "203.0.113.7", "fd00::7", "64:ff9b::cb00:7107", "::ffff:10.0.0.7"])
def test_other_addresses_get_streams_as_ever(address: str) -> None:
    assert planned(snapshot(address), WEB).candidates


@pytest.mark.parametrize("own", ["", "node-10.9.0.7"])
def test_a_block_that_is_denied_has_no_exception(own: str) -> None:
    denied = DeniedAddresses(networks=(plain_network("10.9.0.0/16"), plain_network("::ffff:192.0.2.0/120")))
    catalog = replace(snapshot("10.9.0.7", "10.8.0.7", "::ffff:10.9.0.8", "192.0.2.1", "127.0.0.1"), node=own)
    route = planned(catalog, WEB, denied)
    assert [endpoint.address for endpoint in route.candidates] == ["10.8.0.7", "127.0.0.1"]
    refused = "an address in 10.9.0.0/16, which MESHGATE_DENY_ENDPOINTS refuses"
    assert {endpoint.cause for endpoint in route.endpoints if not endpoint.healthy} == {
        refused,
        refused.replace("10.9.0.0/16", "192.0.2.0/24"),
    }


def test_what_a_host_name_stands_for_is_judged_each_time_it_changes() -> None:
    planner, catalog = Planner(), snapshot("rebound.example", "127.1")
    for numeric, healthy in (("203.0.113.7", True), ("127.0.0.1", False), ("169.254.169.254", False)):
        addresses = {"rebound.example": (numeric,), "127.1": ("127.0.0.1",)}
        route = planner.plan(catalog, addresses=addresses, denied=LOCAL).find(WEB)
        assert route is not None
        assert [endpoint.address for endpoint in route.candidates] == ([numeric] if healthy else [])


def test_the_admin_address_gets_no_stream_whosever_node_it_is() -> None:
    own = OwnAddresses(machine=MACHINE, admin=frozenset({("0.0.0.0", 8443)}))
    catalog = snapshot("127.0.0.1", "10.0.0.5", "10.0.0.6")
    for node in ("", "node-127.0.0.1", "node-10.0.0.5"):
        route = planned(replace(catalog, node=node), WEB, NOTHING_DENIED, own=own)
        assert [endpoint.address for endpoint in route.candidates] == ["10.0.0.6"]
        assert {endpoint.cause for endpoint in route.endpoints if not endpoint.healthy} == {IS_ADMIN}


def test_a_refused_stream_is_explained_with_the_setting() -> None:
    explanation = explain(plan(snapshot("127.0.0.1"), denied=LOCAL), WEB)
    assert explanation.reason is Reason.NO_HEALTHY_ENDPOINT
    assert any("MESHGATE_DENY_ENDPOINTS" in step.outcome for step in explanation.steps)


@pytest.mark.parametrize("address", ["localhost", "lb.example", ""])
@pytest.mark.parametrize("panic_threshold", [0, 100])
def test_what_has_no_known_address_is_not_dialled_in_panic_mode_neither(address: str, panic_threshold: int) -> None:
    """The worker that dialled it would resolve it, and be led wherever that leads."""
    catalog = replace(snapshot(address), services=(Service("web", (instance(address, node_address=""),)),))
    route = planned(catalog, WEB, panic_threshold=panic_threshold)
    assert route.candidates == ()
    assert "address" in route.endpoints[0].cause


@pytest.mark.parametrize("port", [1 << 64, -(1 << 64), 10**300])
def test_a_port_beyond_all_bounds_harms_no_message(port: int) -> None:
    catalog = Snapshot("dc1", TD3, services=(Service("web", (instance(port=port),)),))
    (endpoint,) = planned(catalog, WEB).endpoints
    assert not endpoint.healthy
    assert abs(endpoint.port) < 1 << 32
