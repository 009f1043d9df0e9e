"""An endpoint that swallows or refuses connections: all workers know at once, no stream tries it again."""

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import structlog.testing
import trio

from meshgate.adapters.relay import Limits, StreamRecord
from meshgate.adapters.relay.counters import EndpointCounts, EndpointHistory, EndpointRecord
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .streams import TRUST_DOMAIN, WEB, backend, endpoint, hello_for, named, receive_exactly, table_of
from .test_endpoints import black_hole, refusing_port
from .test_pool import Pool, pool_of

HELLO = hello_for(WEB)
ELSEWHERE = f"web.default.dc2.internal.{TRUST_DOMAIN}"


def to_dc2(*endpoints: Endpoint) -> RouteTable:
    route = Route(f"dc2.internal.{TRUST_DOMAIN}", RouteKind.DATACENTER, "dc2", endpoints, suffix=True)
    return RouteTable.of("dc1", TRUST_DOMAIN, "default", iter([route]))


async def call(pool: Pool, hello: bytes = HELLO) -> bytes:
    """What an impatient caller gets, as an Envoy with its five seconds is."""
    with trio.fail_after(5):
        async with await pool.dial() as client:
            await client.send_all(hello)
            return await receive_exactly(client, 1)


async def install(pool: Pool, table: RouteTable) -> None:
    pool.relay.install(table)
    await pool.until_workers(len(pool.relay.workers))


async def records(pool: Pool, count: int, since: float = 0.0) -> list[StreamRecord]:
    """Those of so many streams that began after a moment (Unix time), once they have ended and are told of."""
    with trio.fail_after(20):
        while len(found := [each for each in pool.watcher.ended if each.started >= since]) < count:
            await trio.sleep(0.02)
    return found


async def until_ejected(pool: Pool, *ports: int) -> None:
    """Wait until the parent knows, and so has told the others."""
    with trio.fail_after(20):
        while pool.relay.ejected.keys() != {("127.0.0.1", port) for port in ports}:
            await trio.sleep(0.01)
    await pool.until_workers(len(pool.relay.workers))


@pytest.mark.parametrize("kind", ["service", "gateways"])
@pytest.mark.parametrize("workers", [1, 4])
async def test_no_call_is_lost_to_an_endpoint_that_swallows_and_only_the_first_ones_wait(
    kind: str, workers: int
) -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good, pool_of({}, workers) as pool:
            both = endpoint(hole), endpoint(good)
            await install(pool, table_of({WEB: both}) if kind == "service" else to_dc2(*both))
            hello = HELLO if kind == "service" else hello_for(ELSEWHERE)
            while not pool.relay.ejected:
                assert await call(pool, hello) == b"a"
            await until_ejected(pool, hole)
            since = time.time()
            answers = [await call(pool, hello) for _ in range(30)]
            assert answers == [b"a"] * 30
            assert {record.attempts for record in await records(pool, 30, since)} == {1}
            assert pool.watcher.refused == []


async def test_all_streams_that_come_together_reach_the_other_endpoint() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good, pool_of({WEB: [endpoint(hole), endpoint(good)]}, 2) as pool:
            answers: list[bytes] = []

            async def one() -> None:
                answers.append(await call(pool))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(one)
            assert answers == [b"a"] * 20
            assert pool.watcher.refused == []


@asynccontextmanager
async def late_server(port: int) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
    """Begins to listen where nobody did. Gives the first bytes of each connection, b"" for one that closed without."""
    send, receive = trio.open_memory_channel[bytes](100)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                first = await stream.receive_some(1)
                send.send_nowait(first)
                if first:
                    await stream.send_all(b"b")

    listener = trio.socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    await listener.bind(("127.0.0.1", port))
    listener.listen(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
        yield receive
        nursery.cancel_scope.cancel()


async def test_ejected_endpoint_is_tried_by_the_gateways_own_connection_and_then_gets_streams_again() -> None:
    with structlog.testing.capture_logs() as logs, refusing_port() as port:
        async with backend(named(b"a")) as good, pool_of({WEB: [endpoint(port), endpoint(good)]}, 2) as pool:
            while not pool.relay.ejected:
                assert await call(pool) == b"a"
            await until_ejected(pool, port)
            since = time.time()
            async with late_server(port) as connections:
                with trio.fail_after(20):
                    assert await connections.receive() == b""  # Nobody's stream: opened and closed.
                await until_ejected(pool)
                assert {await call(pool) for _ in range(10)} == {b"a", b"b"}
            assert {record.attempts for record in await records(pool, 10, since)} == {1}
    told = [entry for entry in logs if "eject" in entry["event"]]
    assert [(entry["event"].split()[0], entry["endpoint"]) for entry in told] == [
        ("endpoint", f"127.0.0.1:{port}"),
        ("ejected", f"127.0.0.1:{port}"),
    ]


async def test_parent_knows_what_became_of_the_streams_of_each_endpoint_and_why_one_is_ejected() -> None:
    began = time.time()
    with refusing_port() as port:
        async with backend(named(b"a")) as good, pool_of({WEB: [endpoint(port), endpoint(good)]}, 2) as pool:
            calls = 0
            while not pool.relay.ejected:
                assert await call(pool) == b"a"
                calls += 1
            well, bad = ("127.0.0.1", good), ("127.0.0.1", port)
            with trio.fail_after(20):
                while (record := pool.relay.endpoints.of(well)) is None or record.streams < calls:
                    await trio.sleep(0.02)
                while (failed := pool.relay.endpoints.of(bad)) is None or not failed.failures:
                    await trio.sleep(0.02)
            assert (record.unanswered, record.failures, record.last_error) == (0, 0, "")
            assert record.last_success is not None
            assert began <= record.last_success <= time.time()
            assert record.first_byte is not None
            assert 0 < record.first_byte < 5
            assert (failed.streams, failed.last_success, failed.last_error) == (0, None, "connection refused")
            out = pool.relay.ejection(bad)
            assert out is not None
            assert out.why == "connection refused"
            assert began <= out.since <= time.time()
            assert pool.relay.ejection(well) is None


def test_history_of_endpoints_is_bounded_and_forgets_whom_it_heard_of_longest_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EndpointHistory, "MOST", 2)
    history = EndpointHistory()
    a, b, c = (("10.0.0.7", number) for number in range(3))
    history.add({a: EndpointCounts(answered=1, waited=0.2), b: EndpointCounts(unanswered=1)}, 1.0)
    history.note_failure(a, "timed out", 2.0)
    history.add({c: EndpointCounts(failures=1)}, 3.0)
    assert history.of(b) is None
    assert history.of(a) == EndpointRecord(1, 0, 0, 0.2, 1.0, 2.0, "timed out")
    assert history.of(c) == EndpointRecord(failures=1)


def test_first_byte_of_an_endpoint_is_that_of_its_last_streams() -> None:
    history, address = EndpointHistory(), ("10.0.0.7", 1)
    history.add({address: EndpointCounts(answered=100, waited=1.0)}, 1.0)
    history.add({address: EndpointCounts(answered=1, waited=1.01)}, 1.0)
    record = history.of(address)
    assert record is not None
    assert record.first_byte == pytest.approx(0.11)
    history.add({address: EndpointCounts(answered=10, waited=5.0)}, 1.0)
    assert record.first_byte == pytest.approx(0.5)


async def test_stream_that_reaches_an_ejected_endpoint_ends_its_ejection_for_all() -> None:
    """The only endpoint is tried whatever is held against it."""
    with refusing_port() as port:
        async with pool_of({WEB: [endpoint(port)]}, 2, Limits(per_try_timeout=600.0)) as pool:
            await call(pool)
            await until_ejected(pool, port)
            async with late_server(port):
                assert await call(pool) == b"b"
                await until_ejected(pool)


async def test_new_worker_knows_what_is_ejected() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good, pool_of({WEB: [endpoint(hole), endpoint(good)]}, 1) as pool:
            while not pool.relay.ejected:
                assert await call(pool) == b"a"
            (process,) = pool.relay._workers
            words = [word for word in pool.relay.first_words(process) if type(word).__name__ == "EndpointState"]
            assert [(word.address, word.port) for word in words] == [("127.0.0.1", hole)]  # type: ignore[union-attr]


async def test_endpoint_that_leaves_the_table_is_probed_no_more() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good, pool_of({WEB: [endpoint(hole), endpoint(good)]}, 1) as pool:
            while not pool.relay.ejected:
                assert await call(pool) == b"a"
            pool.relay.install(table_of({WEB: [endpoint(hole, healthy=False), endpoint(good)]}))
            assert pool.relay.ejected == {}


@contextmanager
def same_port() -> Iterator[tuple[int, socket.socket]]:
    """A port with a server on IPv4; on IPv6 it swallows."""
    with socket.socket(socket.AF_INET6) as hole, socket.socket() as server:
        hole.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        hole.bind(("::1", 0))
        port = hole.getsockname()[1]
        server.bind(("127.0.0.1", port))
        server.listen(50)
        hole.listen(0)
        fillers = [socket.socket(socket.AF_INET6) for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("::1", port))
        try:
            yield port, server
        finally:
            for filler in fillers:
                filler.close()


async def test_of_a_host_name_the_family_that_answers_is_used_and_first_from_then_on() -> None:
    with same_port() as (port, server):

        def of_name(address: str) -> Endpoint:
            return Endpoint(address, port, True, 1, "n1", "gw", host_name="gw.example")

        async def serve(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await named(b"a")(stream)

        async with trio.open_nursery() as nursery:
            listening = trio.SocketListener(trio.socket.from_stdlib_socket(server.dup()))
            nursery.start_soon(trio.serve_listeners, serve, [listening])
            async with pool_of({}, 1, Limits(per_try_timeout=600.0, connect_timeout=600.0)) as pool:
                await install(pool, to_dc2(of_name("127.0.0.1"), of_name("::1")))
                for _ in range(10):
                    assert await call(pool, hello_for(ELSEWHERE)) == b"a"
                assert [record.attempts for record in await records(pool, 10)] == [2] + [1] * 9
                # It was slower, it did not fail.
                assert pool.relay.ejected == {}
            nursery.cancel_scope.cancel()
