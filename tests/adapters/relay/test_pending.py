"""How many connections to one endpoint may be under way at once: more go elsewhere, or are refused."""

import trio

from meshgate.adapters.relay import Limits
from meshgate.core.reasons import Reason

from .streams import WEB, backend, endpoint, hello_for, named, receive_all, receive_exactly, reset, running
from .test_endpoints import INTERNAL_ERROR, black_hole, refusing_port

HELLO = hello_for(WEB)
LIMITS = Limits(max_pending_per_endpoint=2, connect_timeout=60.0)


async def test_streams_beyond_the_limit_go_to_another_endpoint() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good, running({WEB: [endpoint(hole), endpoint(good)]}, LIMITS) as gateway:
            answers: list[bytes] = []
            clients = [await gateway.dial() for _ in range(10)]

            async def ask(client: trio.SocketStream) -> None:
                await client.send_all(HELLO)
                answers.append(await receive_exactly(client, 1))

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(ask, client)
                await gateway.until(lambda: answers == [b"a"] * 8, 20)
                states = sorted(stream.state for stream in gateway.relay.connections())
                assert states == ["connecting"] * 2 + ["relaying"] * 8
                nursery.cancel_scope.cancel()
            for client in clients:
                await client.aclose()


async def test_without_another_endpoint_they_are_refused_until_one_is_done() -> None:
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}, LIMITS) as gateway:
            waiting = [await gateway.dial() for _ in range(2)]
            for client in waiting:
                await client.send_all(HELLO)
            await gateway.until(lambda: gateway.relay.context.breakers.pending == 2, 20)
            async with await gateway.dial() as late:
                await late.send_all(HELLO)
                assert await receive_all(late) == INTERNAL_ERROR
            assert [refusal.reason for refusal in gateway.refused] == [Reason.CONNECT_FAILED]
            assert gateway.refused[0].attempts == 0
            assert "2 connections" in gateway.refused[0].detail
            # It was not the endpoint that failed: nothing is held against it.
            assert not gateway.relay.context.load_balancer.ejected

            reset(waiting.pop())
            await gateway.until(lambda: gateway.relay.context.breakers.pending == 1, 20)
            async with await gateway.dial() as next_one:
                await next_one.send_all(HELLO)
                await gateway.until(lambda: gateway.relay.context.breakers.pending == 2, 20)
                assert len(gateway.refused) == 1
                reset(waiting.pop())
                reset(next_one)
            await gateway.until(lambda: gateway.active == 0, 20)
            assert gateway.relay.context.breakers.pending == 0


async def test_every_end_of_a_dial_gives_its_place_back() -> None:
    """Established, refused, timed out, cut: the limit must not fill up with connections that are none any more."""
    limits = Limits(max_pending_per_endpoint=1, per_try_timeout=0.2)
    with black_hole() as hole, refusing_port() as dead:
        async with backend(named(b"a")) as good:
            routes = {WEB: [endpoint(hole), endpoint(dead), endpoint(good)]}
            async with running(routes, limits) as gateway:
                for _ in range(12):
                    async with await gateway.dial() as client:
                        await client.send_all(HELLO)
                        with trio.fail_after(20):
                            assert await receive_exactly(client, 1) == b"a"
                await gateway.until(lambda: gateway.active == 0, 20)
                assert gateway.refused == []
                assert gateway.relay.context.breakers.pending == 0
                assert gateway.relay.context.breakers._pending == {}


async def test_zero_is_no_limit() -> None:
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}, Limits(max_pending_per_endpoint=0)) as gateway:
            clients = [await gateway.dial() for _ in range(20)]
            for client in clients:
                await client.send_all(HELLO)
            await gateway.until(lambda: gateway.relay.context.breakers.pending == 20, 20)
            assert gateway.refused == []
            for client in clients:
                reset(client)
            await gateway.until(lambda: gateway.active == 0, 20)
