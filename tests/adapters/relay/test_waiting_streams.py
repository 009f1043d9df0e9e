"""How many streams may wait for a connection to one destination: more are refused, for all workers together."""

from dataclasses import replace

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pump import Leg
from meshgate.adapters.relay.relay import Relay
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable

from .streams import (
    TRUST_DOMAIN,
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    named,
    receive_exactly,
    reset,
    running,
)
from .test_endpoints import INTERNAL_ERROR, black_hole, refusing_port
from .test_pool import pool_of

API = f"api.default.dc1.internal.{TRUST_DOMAIN}"
HELLO = hello_for(WEB)
TWO = Limits(max_pending_per_destination=2, connect_timeout=60.0)


def waiting(relay: Relay) -> int:
    """Streams to WEB that are counted as waiting."""
    return relay.context.breakers.counts.keyed(f"waiting for {WEB}")


async def answer_to(client: trio.SocketStream) -> bytes:
    """What a stream to WEB gets that is refused."""
    await client.send_all(HELLO)
    with trio.fail_after(20):
        return await receive_exactly(client, len(INTERNAL_ERROR))


async def test_of_one_destination_so_many_streams_wait_and_others_have_their_own() -> None:
    # Two endpoints, so that it is not an endpoint's own limit.
    with black_hole() as one, black_hole() as other:
        async with backend(echo) as good:
            routes = {WEB: [endpoint(one), endpoint(other)], API: [endpoint(good)]}
            async with running(routes, TWO) as it:
                clients = [await it.dial() for _ in range(2)]
                for client in clients:
                    await client.send_all(HELLO)
                await it.until(lambda: waiting(it.relay) == 2)
                async with await it.dial() as late:
                    assert await answer_to(late) == INTERNAL_ERROR
                assert [(each.reason, each.detail, each.attempts) for each in it.refused] == [
                    (Reason.CONNECT_FAILED, "2 streams wait for a connection to web already", 0)
                ]
                assert it.counters().failed == {(RouteKind.SERVICE, "web", Reason.CONNECT_FAILED): 1}
                # It was no endpoint that failed: nothing is held against one.
                assert not it.relay.context.load_balancer.ejected

                async with await it.dial() as elsewhere:
                    hello = hello_for(API)
                    await elsewhere.send_all(hello)
                    assert await receive_exactly(elsewhere, len(hello)) == hello

                reset(clients.pop())
                await it.until(lambda: waiting(it.relay) == 1)
                async with await it.dial() as next_one:
                    await next_one.send_all(HELLO)
                    await it.until(lambda: waiting(it.relay) == 2)
                    assert len(it.refused) == 1
                    reset(next_one)
                reset(clients.pop())
                await it.until(lambda: it.active == 0)
                assert waiting(it.relay) == 0


async def test_limit_holds_for_all_workers_together() -> None:
    with black_hole() as hole:
        async with pool_of({WEB: [endpoint(hole)]}, workers=2, limits=TWO) as pool:
            for _ in range(2):
                clients = [await pool.dial() for _ in range(2)]
                for client in clients:
                    await client.send_all(HELLO)
                with trio.fail_after(20):
                    while [each.state for each in (await pool.relay.connections()).listed] != ["connecting"] * 2:
                        await trio.sleep(0.02)
                for _ in range(6):
                    async with await pool.dial() as late:
                        assert await answer_to(late) == INTERNAL_ERROR
                for client in clients:
                    reset(client)
                with trio.fail_after(20):
                    while (await pool.relay.counters()).active:
                        await trio.sleep(0.02)
            assert (await pool.relay.counters()).refused == {Reason.CONNECT_FAILED: 12}


async def test_stream_that_got_its_connection_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Leg.send
    blocked: list[int] = []

    def send_later(leg: Leg, data: bytes | bytearray) -> int:
        """As towards an endpoint far away: the first try finds no connection yet."""
        if len(blocked) == len(counted):
            blocked.append(leg.descriptor)
            raise BlockingIOError
        if len(counted) < len(blocked):
            counted.append(waiting(it.relay))
        return send(leg, data)

    counted: list[int] = []
    monkeypatch.setattr(Leg, "send", send_later)
    one = Limits(max_pending_per_destination=1)
    async with backend(echo) as good, running({WEB: [endpoint(good)]}, one) as it:
        clients = []
        for number in range(3):
            client = await it.dial()
            await client.send_all(HELLO)
            with trio.fail_after(20):
                assert await receive_exactly(client, len(HELLO)) == HELLO
            clients.append(client)
            assert len(blocked) == number + 1
        assert counted == [1, 1, 1]
        assert waiting(it.relay) == 0
        for client in clients:
            await client.aclose()


async def test_stream_that_is_tried_elsewhere_waits_only_once() -> None:
    limits = Limits(max_pending_per_destination=1, connect_timeout=60.0, per_try_timeout=0.2)
    with black_hole() as hole, refusing_port() as dead:
        async with backend(named(b"a")) as good:
            routes = {WEB: [endpoint(hole), endpoint(dead), endpoint(good)]}
            async with running(routes, limits) as it:
                for _ in range(12):
                    async with await it.dial() as client:
                        await client.send_all(HELLO)
                        with trio.fail_after(20):
                            assert await receive_exactly(client, 1) == b"a"
                        assert waiting(it.relay) == 0
                assert it.refused == []
        async with running({WEB: [endpoint(hole)]}, replace(limits, connect_timeout=0.2)) as it:
            for count in range(1, 4):
                async with await it.dial() as client:
                    assert await answer_to(client) == INTERNAL_ERROR
                assert waiting(it.relay) == 0
                assert [each.reason for each in it.refused] == [Reason.CONNECT_TIMEOUT] * count


async def test_limit_that_is_set_and_taken_back_while_streams_wait_counts_each_once() -> None:
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}, Limits(connect_timeout=60.0)) as it:

            async def one_more() -> trio.SocketStream:
                before, client = it.relay.context.breakers.pending, await it.dial()
                await client.send_all(HELLO)
                await it.until(lambda: it.relay.context.breakers.pending == before + 1)
                return client

            uncounted = [await one_more() for _ in range(3)]
            assert waiting(it.relay) == 0
            it.relay.context.limits = TWO
            counted = [await one_more() for _ in range(2)]
            assert waiting(it.relay) == 2
            for client in uncounted:
                reset(client)
            await it.until(lambda: it.active == 2)
            assert waiting(it.relay) == 2
            it.relay.context.limits = Limits()
            free = await one_more()
            for client in (*counted, free):
                reset(client)
            await it.until(lambda: it.active == 0)
            assert waiting(it.relay) == 0
            assert it.refused == []


async def test_who_is_refused_for_that_takes_none_of_the_destinations_connections() -> None:
    limits = Limits(max_connections_per_destination=3, max_pending_per_destination=1, connect_timeout=60.0)
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}, limits) as it:
            first = await it.dial()
            await first.send_all(HELLO)
            await it.until(lambda: waiting(it.relay) == 1)
            lingering = [await it.dial() for _ in range(4)]
            for client in lingering:
                assert await answer_to(client) == INTERNAL_ERROR
            assert {each.reason for each in it.refused} == {Reason.CONNECT_FAILED}
            for client in (first, *lingering):
                reset(client)
            await it.until(lambda: it.active == 0)


@pytest.mark.parametrize("kind", [RouteKind.PEER_EXPORT, RouteKind.PEER_SERVER])
async def test_what_peers_export_is_not_limited_as_in_consul(kind: RouteKind) -> None:
    with black_hole() as hole:
        async with running({}, TWO) as it:
            it.relay.install(
                RouteTable.of("dc1", TRUST_DOMAIN, "default", iter([Route(WEB, kind, "web", (endpoint(hole),))]))
            )
            clients = [await it.dial() for _ in range(4)]
            for client in clients:
                await client.send_all(HELLO)
            await it.until(lambda: it.relay.context.breakers.pending == 4)
            assert (waiting(it.relay), it.refused) == (0, [])
            for client in clients:
                reset(client)
            await it.until(lambda: it.active == 0)
