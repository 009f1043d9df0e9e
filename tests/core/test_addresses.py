"""Endpoints that are the gateway itself: found where it is certain, never dialled, and said."""

import pytest

from meshgate.core.addresses import LEADS_BACK, OwnAddresses
from meshgate.core.catalog import RemoteDatacenter, Service, Snapshot, WanAddress
from meshgate.core.explain import explain
from meshgate.core.planner import Planner, plan
from meshgate.core.reasons import Reason

from .samples import TD3, instance

MACHINE = frozenset({"10.0.0.5", "fd00::5"})


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
    return Snapshot("dc1", TD3, services=(Service("web", instances),), remotes=(RemoteDatacenter("dc2", gateways),))


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
