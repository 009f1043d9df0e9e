"""Which endpoint the next stream gets: each policy, near before far, and away from what fails."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from meshgate.core.load_balancer import HostSet, LoadBalancer
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import Endpoint, Policy, Route, RouteKind, RouteTable


def endpoint(port: int, *, healthy: bool = True, weight: int = 1, distance: int = 0) -> Endpoint:
    return Endpoint("127.0.0.1", port, healthy, weight, "n1", f"i-{port}", distance=distance)


ROUTE = Route("web", RouteKind.SERVICE, "web", (endpoint(1), endpoint(2, weight=3), endpoint(3, healthy=False)))


def with_policy(policy: Policy, choice_count: int = 2) -> Route:
    return replace(ROUTE, policy=policy, choice_count=choice_count)


def balancer(loads: dict[Address, int] | None = None) -> LoadBalancer:
    return LoadBalancer({} if loads is None else loads, random.Random(4).random)


def table_of(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", "", "default", iter(routes))


def picks(route: Route, balancing: LoadBalancer, *tried: int, times: int = 40) -> set[int | None]:
    hosts = balancing.hosts(route)
    return {balancing.next(hosts, tried) for _ in range(times)}


def test_round_robin_gives_each_its_weight_and_goes_on_with_a_new_table() -> None:
    balancing, met = balancer(), Counter[int | None]()
    for _ in range(4):
        route = replace(ROUTE)
        met[balancing.next(balancing.hosts(route), ())] += 1
        balancing.keep_only(table_of(route))
    assert met == {0: 1, 1: 3}


def test_what_is_derived_of_a_route_is_derived_once_and_goes_with_it() -> None:
    balancing = balancer()
    hosts = balancing.hosts(ROUTE)
    balancing.keep_only(table_of(ROUTE))
    assert balancing.hosts(ROUTE) is hosts
    balancing.keep_only(table_of(replace(ROUTE)))
    assert balancing._hosts == {}


def test_random_follows_the_weights_and_tries_none_twice() -> None:
    balancing, route = balancer(), with_policy(Policy.RANDOM)
    met = Counter(balancing.next(balancing.hosts(route), ()) for _ in range(4000))
    assert 0.15 < met[0] / 4000 < 0.35
    assert picks(route, balancing, 0) == {1}
    assert picks(route, balancing, 0, 1) == {None}


def test_least_request_takes_the_one_with_fewer_streams_for_its_weight() -> None:
    loads = {("127.0.0.1", 1): 1, ("127.0.0.1", 2): 4}
    balancing, route = balancer(loads), with_policy(Policy.LEAST_REQUEST, choice_count=30)
    assert picks(route, balancing) == {0}
    loads["127.0.0.1", 2] = 2
    assert picks(route, balancing) == {1}
    assert picks(route, balancing, 0, 1) == {None}


@pytest.mark.parametrize("policy", list(Policy))
def test_ejected_endpoint_comes_last_until_a_connection_to_it_stands(policy: Policy) -> None:
    balancing, route = balancer(), with_policy(policy)
    hosts = balancing.hosts(route)
    balancing.failed(hosts.address_of[1])
    assert picks(route, balancing) == {0}
    assert picks(route, balancing, 0) == {1}
    assert not balancing.has_another(hosts, (0,))
    assert balancing.succeeded(hosts, 1)
    assert not balancing.succeeded(hosts, 1)
    assert 1 in picks(route, balancing)
    assert balancing.has_another(hosts, (0,))
    assert not balancing.has_another(hosts, (0, 1))


@pytest.mark.parametrize("policy", list(Policy))
def test_near_ones_take_turns_and_far_ones_are_tried_after_them(policy: Policy) -> None:
    endpoints = tuple(endpoint(port, distance=distance) for port, distance in ((1, 2), (2, 0), (3, 1), (4, 0)))
    route = replace(ROUTE, endpoints=endpoints, policy=policy, choice_count=9)
    # Without open streams the least loaded one is any of the nearest.
    assert picks(route, balancer()) <= {1, 3}
    assert picks(route, balancer(), 1) == {3}
    assert picks(route, balancer(), 3) == {1}
    assert picks(route, balancer(), 1, 3) <= {0, 2}
    assert picks(route, balancer(), 0, 1, 2, 3) == {None}


def test_near_one_that_fails_is_left_alone_for_a_far_one_that_does_not() -> None:
    balancing, route = balancer(), replace(ROUTE, endpoints=(endpoint(1), endpoint(2, distance=1)))
    balancing.failed(("127.0.0.1", 1))
    assert picks(route, balancing) == {1}
    assert picks(route, balancing, 1) == {0}


def test_endpoint_that_left_the_table_is_forgotten() -> None:
    balancing = balancer()
    balancing.failed(("127.0.0.1", 2))
    balancing.failed(("127.0.0.1", 1))
    balancing.keep_only(table_of(replace(ROUTE, endpoints=(endpoint(1), endpoint(2, healthy=False)))))
    assert balancing.ejected == {("127.0.0.1", 1): 1}


@given(st.lists(st.integers(1, 4)), st.integers(1, 4))
def test_somebody_is_always_left(failures: list[int], count: int) -> None:
    balancing = balancer()
    for port in failures:
        balancing.failed(("127.0.0.1", port))
    hosts = HostSet(replace(ROUTE, endpoints=tuple(endpoint(port) for port in range(1, count + 1))))
    shunned = balancing._shunned(hosts)
    assert len(shunned) <= max(count // 2, count > 1)
    assert len(shunned) < count
    failed = [balancing.ejected.get(("127.0.0.1", each + 1), 0) for each in range(count)]
    others = [times for position, times in enumerate(failed) if position not in shunned]
    assert all(failed[position] >= times for position in shunned for times in others)


# --- host names with addresses of both families ----------------------------------------------------------------------

NAME = "gw.example"


def named(*addresses: str, name: str = NAME) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(address, 443, True, 1, "n1", "gw", host_name=name) for address in addresses)


BOTH = replace(ROUTE, endpoints=named("192.0.2.1", "192.0.2.2", "2001:db8::1"))


def test_of_a_name_the_family_that_worked_last_comes_first_and_the_other_one_after_it() -> None:
    balancing = balancer()
    hosts = balancing.hosts(BOTH)
    assert picks(BOTH, balancing) == {2}
    assert picks(BOTH, balancing, 2) == {0, 1}
    assert not balancing.succeeded(hosts, 1)
    assert picks(BOTH, balancing) == {0, 1}
    assert picks(BOTH, balancing, 0, 1) == {2}
    balancing.keep_only(table_of(BOTH))
    assert picks(BOTH, balancing) == {0, 1}
    balancing.keep_only(table_of(ROUTE))
    assert picks(BOTH, balancing) == {2}


def test_rival_is_an_address_of_the_same_name_and_the_other_family() -> None:
    balancing = balancer()
    hosts = balancing.hosts(BOTH)
    assert balancing.rival(hosts, 2, (2,)) == 0
    assert balancing.rival(hosts, 2, (2, 0)) == 1
    assert balancing.rival(hosts, 0, (0,)) == 2
    assert balancing.rival(hosts, 0, (0, 2)) is None
    balancing.failed(("2001:db8::1", 443))
    assert balancing.rival(hosts, 0, (0,)) is None


@pytest.mark.parametrize(
    "endpoints", [(endpoint(1), endpoint(2)), named("192.0.2.1", "192.0.2.2"), named("2001:db8::1", "2001:db8::2")]
)
def test_what_has_one_family_has_no_rival(endpoints: tuple[Endpoint, ...]) -> None:
    balancing, hosts = balancer(), HostSet(replace(ROUTE, endpoints=endpoints))
    assert balancing.rival(hosts, 0, (0,)) is None
    assert not balancing.succeeded(hosts, 0)
    assert balancing._prefers_v4 == {}


def test_name_of_one_family_beside_one_of_both_keeps_its_turn() -> None:
    balancing = balancer()
    route = replace(ROUTE, endpoints=(*BOTH.endpoints, *named("192.0.2.9", name="other.example"), endpoint(1)))
    assert picks(route, balancing) == {2, 3, 4}
    assert not balancing.succeeded(balancing.hosts(route), 3)
    assert picks(route, balancing) == {2, 3, 4}
