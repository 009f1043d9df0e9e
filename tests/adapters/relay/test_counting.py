"""What the relay counts of streams that had a route: length, bytes and failures by destination, and how they ended."""

from collections.abc import Callable

import pytest
import trio

from meshgate.adapters.relay import STREAM_BUCKETS, Counters, Limits
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind

from .streams import WEB, backend, echo, endpoint, hello_for, receive_exactly, reset, running
from .test_pool import pool_of

HELLO = hello_for(WEB)
TO_WEB = (RouteKind.SERVICE, "web")


async def test_open_streams_count_for_their_destination_and_go_on_counting_when_they_ended() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await receive_exactly(client, len(HELLO))
            await gateway.until(lambda: gateway.counters().carried == {TO_WEB: (len(HELLO), len(HELLO))})
            assert gateway.counters().ends == {}
            assert gateway.counters().open == {TO_WEB: 1}
            assert sum(gateway.counters().stream_counts) == 0
        await gateway.until(lambda: gateway.active == 0)
        counters = gateway.counters()
        assert counters.carried == {TO_WEB: (len(HELLO), len(HELLO))}
        assert counters.ends == {StreamEnd.CLOSED: 1}
        assert counters.open == {}
        assert sum(counters.stream_counts) == 1
        assert counters.stream_sum > 0
        assert counters.failed == {}


@pytest.mark.parametrize(("end", "told"), [(reset, StreamEnd.CLIENT_RESET), (None, StreamEnd.IDLE)])
async def test_streams_that_do_not_end_in_order_are_told_apart(
    end: Callable[[trio.SocketStream], None] | None, told: StreamEnd
) -> None:
    limits = Limits(idle_timeout=3600.0 if end else 0.1)
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, limits=limits) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await receive_exactly(client, len(HELLO))
            if end:
                end(client)
            await gateway.until(lambda: gateway.active == 0)
        assert gateway.counters().ends == {told: 1}


async def test_a_stream_that_reaches_no_endpoint_is_its_destinations_failure_and_no_stream() -> None:
    async with running({WEB: [endpoint(1)], "x.td": []}) as gateway:
        for name in (WEB, "x.td", "unknown.td"):
            async with await gateway.dial() as client:
                await client.send_all(hello_for(name))
                with trio.fail_after(20):
                    while await client.receive_some():
                        pass
        await gateway.until(lambda: gateway.active == 0)
        counters = gateway.counters()
        assert {(name, reason): count for (_, name, reason), count in counters.failed.items()} == {
            ("web", Reason.CONNECT_FAILED): 1,
            ("x", Reason.NO_HEALTHY_ENDPOINT): 1,
        }
        assert counters.carried == {}
        assert counters.ends == {}


async def test_what_workers_count_comes_up_from_all_of_them_with_their_open_streams() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        clients = [await pool.call() for _ in range(8)]
        assert (await pool.relay.counters()).carried == {TO_WEB: (8 * len(HELLO), 8 * len(HELLO))}
        for client in clients[:3]:
            await client.aclose()
        with trio.fail_after(20):
            while (counters := await pool.relay.counters()).active > 5:
                await trio.sleep(0.02)
        assert counters.ends == {StreamEnd.CLOSED: 3}
        assert counters.open == {TO_WEB: 5}
        assert sum(counters.stream_counts) == 3
        assert counters.carried == {TO_WEB: (8 * len(HELLO), 8 * len(HELLO))}
        for client in clients:
            await client.aclose()


async def test_ended_streams_are_told_of_while_somebody_wants_to_know() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        for count, wanted in enumerate((False, True, False, True), 1):
            pool.watcher.wants_records = wanted
            pool.relay.want_records(wanted)
            await pool.until_workers(2)
            before = len(pool.watcher.ended)
            await (await pool.call()).aclose()
            with trio.fail_after(20):
                while sum((await pool.relay.counters()).ends.values()) < count:
                    await trio.sleep(0.02)
            assert len(pool.watcher.ended) - before == wanted


def test_what_came_since_and_what_was_before_make_the_whole() -> None:
    counters = Counters()
    counters.count_ended(TO_WEB, 2.0, (10, 20), StreamEnd.CLOSED)
    before = counters.copy()
    counters.count_ended(TO_WEB, 1e9, (1, 2), StreamEnd.IDLE)
    counters.count_ended((RouteKind.DATACENTER, "dc2"), 0.0, (3, 4), StreamEnd.CLOSED)
    counters.count_failed(TO_WEB, Reason.CONNECT_TIMEOUT)
    increments = counters.since(before)
    assert increments.carried == {TO_WEB: (1, 2), (RouteKind.DATACENTER, "dc2"): (3, 4)}
    assert increments.ends == {StreamEnd.IDLE: 1, StreamEnd.CLOSED: 1}
    assert increments.failed == {(*TO_WEB, Reason.CONNECT_TIMEOUT): 1}
    assert increments.stream_counts == [1, *[0] * (len(STREAM_BUCKETS) - 1), 1]
    before.add(increments)
    assert before == counters
    assert counters.since(counters.copy()) == Counters()
