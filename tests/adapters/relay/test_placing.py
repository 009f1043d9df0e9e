"""Which endpoint the next stream gets: each policy, and away from what fails."""

from collections import Counter
from dataclasses import replace

from meshgate.adapters.relay.placing import Placing
from meshgate.core.balance import Policy
from meshgate.core.routes import Route, RouteKind

from .streams import endpoint, table_of

ROUTE = Route("web", RouteKind.SERVICE, "web", (endpoint(1), endpoint(2, weight=3), endpoint(3, healthy=False)))


def with_policy(policy: Policy, choices: int = 2) -> Route:
    return replace(ROUTE, policy=policy, choices=choices)


def test_round_robin_gives_each_its_weight_and_goes_on_with_a_new_table() -> None:
    placing, met = Placing(), Counter[int | None]()
    for _ in range(4):
        met[placing.next(ROUTE, (), 0.0)] += 1
        placing.keep_only(table_of({"web": ROUTE.endpoints}))
    assert met == {0: 1, 1: 3}


def test_random_follows_the_weights_and_tries_none_twice() -> None:
    placing, route = Placing(), with_policy(Policy.RANDOM)
    met = Counter(placing.next(route, (), 0.0) for _ in range(4000))
    assert 0.15 < met[0] / 4000 < 0.35
    assert {placing.next(route, (0,), 0.0) for _ in range(20)} == {1}
    assert placing.next(route, (0, 1), 0.0) is None


def test_least_request_takes_the_one_with_fewer_streams_for_its_weight() -> None:
    placing, route = Placing(), with_policy(Policy.LEAST_REQUEST, choices=30)
    one, other = route.candidates
    for _ in range(4):
        position = placing.next(route, (), 0.0)
        assert position is not None
        placing.began(route, route.candidates[position])
    assert placing._loads == {("127.0.0.1", 1): 1, ("127.0.0.1", 2): 3}
    placing.ended(route, one)
    assert placing.next(route, (), 0.0) == 0
    for _ in range(3):
        placing.ended(route, other)
    assert placing._loads == {}
    assert placing.next(route, (0, 1), 0.0) is None


def test_failing_endpoint_comes_last_whatever_the_policy() -> None:
    for policy in Policy:
        placing, route = Placing(), with_policy(policy)
        placing.failed(route.candidates[1], 10.0)
        assert {placing.next(route, (), 10.1) for _ in range(30)} == {0}
        assert placing.next(route, (0,), 10.1) == 1
        placing.trying(route.candidates[1], 12.0)
        placing.began(route, route.candidates[1])
        assert 1 in {placing.next(route, (), 12.0) for _ in range(30)}


def test_endpoint_that_left_the_table_is_forgotten() -> None:
    placing = Placing()
    placing.failed(ROUTE.candidates[1], 10.0)
    placing.keep_only(table_of({"web": [endpoint(1)]}))
    assert len(placing._ejections) == 0
