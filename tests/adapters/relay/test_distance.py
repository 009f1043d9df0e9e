"""Nearer endpoints get all streams that they can take; farther ones the rest."""

import pytest

from meshgate.adapters.relay.placing import Placing
from meshgate.core.balance import Policy
from meshgate.core.routes import Endpoint, Route, RouteKind

from .streams import WEB, backend, endpoint, hello_for, named, receive_exactly, running, table_of

HELLO = hello_for(WEB)


def at(port: int, distance: int) -> Endpoint:
    return Endpoint("127.0.0.1", port, True, 1, "n1", f"gw-{port}", distance=distance)


@pytest.mark.parametrize("policy", list(Policy))
def test_near_ones_take_turns_and_far_ones_are_tried_after_them(policy: Policy) -> None:
    route = Route(
        "dc2", RouteKind.DATACENTER, "dc2", (at(1, 2), at(2, 0), at(3, 1), at(4, 0)), policy=policy, choices=9
    )
    placing = Placing()
    # Without open streams the least loaded one is any of the nearest.
    assert {placing.next(route, (), 0.0) for _ in range(40)} <= {1, 3}
    assert {placing.next(route, (1,), 0.0) for _ in range(20)} == {3}
    assert {placing.next(route, (3,), 0.0) for _ in range(20)} == {1}
    assert {placing.next(route, (1, 3), 0.0) for _ in range(40)} <= {0, 2}
    assert placing.next(route, (0, 1, 2, 3), 0.0) is None


def test_near_one_that_fails_is_left_alone_for_a_far_one_that_does_not() -> None:
    route = Route("dc2", RouteKind.DATACENTER, "dc2", (at(1, 0), at(2, 1)))
    placing = Placing()
    placing.failed(route.candidates[0], 10.0)
    assert {placing.next(route, (), 10.1) for _ in range(20)} == {1}
    assert placing.next(route, (1,), 10.1) == 0
    assert {placing.next(route, (), 60.0) for _ in range(20)} == {0}


async def test_streams_go_to_the_near_one_and_to_the_far_one_when_that_refuses() -> None:
    async with backend(named(b"near")) as near, backend(named(b"far!")) as far, running({}) as it:
        it.relay.install(table_of({WEB: [at(far, 1), at(near, 0)]}))
        for _ in range(5):
            async with await it.dial() as client:
                await client.send_all(HELLO)
                assert await receive_exactly(client, 4) == b"near"
        it.relay.install(table_of({WEB: [at(far, 1), at(1, 0), endpoint(2, healthy=False)]}))
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, 4) == b"far!"
