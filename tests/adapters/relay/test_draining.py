"""A gateway that stops ends its streams between requests, not within them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from structlog.testing import capture_logs

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pump import DrainingPump
from meshgate.adapters.relay.stream import ALIKE_ANSWERS, Rhythm
from meshgate.app.gateway.draining import drain_relay
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable

from .streams import TRUST_DOMAIN, WEB, backend, echo, endpoint, hello_for, receive_all, receive_exactly, running
from .test_endpoints import INTERNAL_ERROR
from .test_pool import Pool, pool_of

HELLO = hello_for(WEB)
SERVERS = "server.dc1.consul"
QUESTION, ANSWER = b"question", b"the answer"


async def answering(stream: trio.SocketStream, seconds: float = 0.2) -> None:
    """Takes a hello, then answers each question after a while."""
    assert await receive_exactly(stream, len(HELLO)) == HELLO
    await stream.send_all(b"!")
    while await receive_exactly(stream, len(QUESTION)) == QUESTION:
        await trio.sleep(seconds)
        await stream.send_all(ANSWER)


async def begin(port: int) -> trio.SocketStream:
    client = await trio.open_tcp_stream("127.0.0.1", port)
    await client.send_all(HELLO)
    assert await receive_exactly(client, 1) == b"!"
    return client


@asynccontextmanager
async def draining(pool: Pool, seconds: float) -> AsyncIterator[trio.Event]:
    """Drains meanwhile; the event is set when that is over."""
    over = trio.Event()

    async def drain() -> None:
        await drain_relay(pool.relay, lambda: False, seconds)
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        yield over
        nursery.cancel_scope.cancel()


async def test_quiet_streams_are_ended_in_order_and_the_drain_is_over() -> None:
    async with backend(answering) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        clients = [await begin(pool.port) for _ in range(10)]
        async with draining(pool, 600.0) as over:
            with trio.fail_after(20):
                for client in clients:
                    assert await receive_all(client) == b""
                await over.wait()
        for client in clients:
            await client.aclose()
        assert {(record.reason, record.flags) for record in pool.watcher.ended} == {(None, "")}


async def test_a_stream_that_has_just_begun_is_counted_when_the_drain_begins() -> None:
    async with backend(answering) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        client = await begin(pool.port)
        with capture_logs() as logs:
            async with draining(pool, 600.0) as over, client:
                with trio.fail_after(20):
                    await over.wait()
        assert [entry["streams"] for entry in logs if entry["event"] == "draining"] == [1]


async def test_question_that_is_not_answered_yet_keeps_its_stream() -> None:
    answer = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        await stream.send_all(b"!")
        await receive_exactly(stream, len(QUESTION))
        await answer.wait()
        await stream.send_all(ANSWER)
        await echo(stream)

    async with backend(slow) as port, pool_of({WEB: [endpoint(port)]}, 1) as pool:
        asking, idle = await begin(pool.port), await begin(pool.port)
        await asking.send_all(QUESTION)
        with trio.fail_after(20):
            while (await pool.relay.counters()).bytes_received != 2 * len(HELLO) + len(QUESTION):
                await trio.sleep(0.01)
            async with draining(pool, 600.0) as over:
                assert await receive_all(idle) == b""
                await trio.sleep(1.0)
                assert pool.relay.active == 1
                answer.set()
                assert await receive_all(asking) == ANSWER
                await over.wait()
        for client in (asking, idle):
            await client.aclose()


async def test_no_request_is_lost_by_callers_that_ask_without_a_pause() -> None:
    """Pooled connections that are never quiet for long: each caller goes on at another gateway when one is closed."""
    lost: list[str] = []
    asked = 0
    stop = trio.Event()

    async def caller(first: int, second: int) -> None:
        nonlocal asked
        port, client = first, await begin(first)
        while not stop.is_set():
            try:
                await client.send_all(QUESTION)
                answer = await receive_exactly(client, len(ANSWER))
            except trio.BrokenResourceError as error:
                answer = repr(error).encode()
            asked += 1
            if answer != ANSWER:
                lost.append(f"{port}: {answer!r}")
            if answer != ANSWER or await is_closed(client):
                await client.aclose()
                port, client = second, await begin(second)
        await client.aclose()

    async with (
        backend(answering) as port,
        pool_of({WEB: [endpoint(port)]}) as old,
        pool_of({WEB: [endpoint(port)]}) as new,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(caller, old.port, new.port)
            with trio.fail_after(30):
                while (await old.relay.counters()).active < 12:
                    await trio.sleep(0.02)
                async with draining(old, 10.0) as over:
                    await over.wait()
            left = old.relay.active
            stop.set()
    assert lost == []
    assert left == 0
    assert asked > 100


async def test_callers_that_are_never_quiet_are_ended_together_with_an_answer() -> None:
    """Their answers come in one piece, so it is seen when one is whole."""
    asked = 0

    async def caller(port: int) -> None:
        nonlocal asked
        async with await begin(port) as client:
            while not await is_closed(client, 0.05):
                await client.send_all(QUESTION)
                assert await receive_exactly(client, len(ANSWER)) == ANSWER
                asked += 1

    async with (
        backend(partial(answering, seconds=0.05)) as port,
        running({WEB: [endpoint(port)]}) as it,
        trio.open_nursery() as nursery,
    ):
        # A drain in its second half; without the looks at streams that end them later and otherwise.
        it.relay.context.pump = pump = DrainingPump(it.relay.context.pump)
        pump.hurry = True
        with trio.fail_after(30):
            for _ in range(12):
                nursery.start_soon(caller, it.port)
            await it.until(lambda: asked > 0 and it.active == 0)
    assert asked >= 12 * ALIKE_ANSWERS


@pytest.mark.parametrize(
    ("told", "whole"),
    [
        ("?!" * 6, True),
        ("?!!" * 6, True),
        ("?!" * 5, False),
        ("?!!" * 5 + "?!", False),
        ("?!" * 3 + "?!!" + "?!" * 3, False),
        ("?!" * 8 + "??!", False),
        ("?" * 9, False),
        ("", False),
    ],
)
def test_an_answer_is_whole_where_those_before_it_had_as_many_pieces(told: str, whole: bool) -> None:
    rhythm = Rhythm()
    for each in told:
        if each == "?":
            rhythm.asked()
        else:
            rhythm.answered()
    assert rhythm.whole is whole


async def is_closed(client: trio.SocketStream, seconds: float = 0.1) -> bool:
    """Whether the other side has ended, as a pool finds out before it uses a connection again."""
    with trio.move_on_after(seconds):
        return await client.receive_some(1) == b""
    return False


@pytest.mark.parametrize("kind", [RouteKind.SERVER, RouteKind.PEER_SERVER])
async def test_streams_of_servers_are_left_alone_while_there_are_others_and_not_waited_for(kind: RouteKind) -> None:
    async with backend(echo) as port, pool_of({}, 1) as pool:
        routes = [
            Route(SERVERS, kind, "server", (endpoint(port),)),
            Route(WEB, RouteKind.SERVICE, "web", (endpoint(port),)),
        ]
        pool.relay.install(RouteTable.of("dc1", TRUST_DOMAIN, "default", iter(routes)))
        await pool.until_workers(1)
        hello = hello_for(SERVERS)
        server = await pool.dial()
        await server.send_all(hello)
        assert await receive_exactly(server, len(hello)) == hello
        web = await pool.call()
        async with draining(pool, 600.0) as over:
            with trio.fail_after(20):
                for _ in range(60):
                    await web.send_all(b"x")
                    assert await receive_exactly(web, 1) == b"x"
                    await trio.sleep(0.02)
                await server.send_all(b"gossip")
                assert await receive_exactly(server, 6) == b"gossip"
                assert not over.is_set()
                await web.aclose()
                await over.wait()
            assert (await pool.relay.counters()).of_servers == 1
            await server.send_all(b"to the last")
            assert await receive_exactly(server, 11) == b"to the last"
        await server.aclose()


async def test_a_stream_that_has_only_just_begun_is_not_taken_for_a_quiet_one() -> None:
    """Its client may be far away, and so its first question under way."""
    async with (
        backend(partial(answering, seconds=0.0)) as port,
        running({WEB: [endpoint(port)]}) as it,
        trio.open_nursery() as nursery,
    ):
        async with await begin(it.port) as client:
            nursery.start_soon(it.relay.drain, 0.05, 600.0)
            await trio.sleep(0.4)
            await client.send_all(QUESTION)
            with trio.fail_after(20):
                assert await receive_all(client) == ANSWER
        nursery.cancel_scope.cancel()


async def test_client_whose_hello_does_not_come_is_told_and_a_silent_one_is_let_go() -> None:
    async with running({}, Limits(hello_timeout=600.0)) as it, trio.open_nursery() as nursery:
        half, silent = await it.dial(), await it.dial()
        await half.send_all(HELLO[:50])
        await it.until(lambda: it.active == 2 and it.counters().bytes_received == 50)
        nursery.start_soon(it.relay.drain, 0.2, 600.0)
        with trio.fail_after(20):
            assert await receive_all(half) == INTERNAL_ERROR
            assert await receive_all(silent) == b""
        assert [refused.reason for refused in it.refused] == [Reason.DRAINING]
        for client in (half, silent):
            await client.aclose()
        nursery.cancel_scope.cancel()


async def test_bytes_that_are_held_for_a_slow_reader_are_no_silence() -> None:
    async def loud(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        await stream.send_all(bytes(8 << 20))
        await stream.send_eof()

    async with backend(loud) as port, running({WEB: [endpoint(port)]}) as it, trio.open_nursery() as nursery:
        async with await it.dial() as client:
            await client.send_all(HELLO)
            await it.until(lambda: it.counters().bytes_sent > 0)
            nursery.start_soon(it.relay.drain, 0.05, 600.0)
            await trio.sleep(0.5)
            with trio.fail_after(60):
                assert await receive_all(client) == bytes(8 << 20)
        nursery.cancel_scope.cancel()
