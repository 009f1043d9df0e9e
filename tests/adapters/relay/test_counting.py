"""What the relay counts of streams that had a route: length, bytes and failures by destination, and how they ended."""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import trio

from meshgate.adapters.relay import FIRST_BYTE_BUCKETS, STREAM_BUCKETS, Counters, Limits
from meshgate.adapters.relay.counters import EndpointCounts
from meshgate.adapters.relay.messages import TO_PARENT, Receiver, Setup, StatsReport, StatsRequest
from meshgate.adapters.relay.reactor import Reactor
from meshgate.adapters.relay.worker import Worker
from meshgate.core.hello import Offer, TlsVersion
from meshgate.core.reasons import Alert, Reason, StreamEnd
from meshgate.core.routes import RouteKind

from .streams import WEB, backend, echo, endpoint, hello_for, receive_exactly, reset, running
from .test_odd_hellos import of_any_version, tls_server
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


async def test_first_byte_of_an_endpoint_is_counted_once_and_its_time_is_that_of_the_endpoint() -> None:
    may_speak, spoken = trio.Event(), 0

    async def slow(stream: trio.SocketStream) -> None:
        nonlocal spoken
        await stream.receive_some()
        await may_speak.wait()
        for _ in range(3):
            await stream.send_all(b"\x16\3\3\0\1x")
            await stream.receive_some()
            spoken += 1

    async with backend(slow) as port, running({WEB: [endpoint(port)]}) as gateway:
        counters = gateway.relay.context.counters
        async with await gateway.dial() as client:
            before = trio.current_time()
            await client.send_all(HELLO)
            await gateway.until(lambda: counters.connections == {TO_WEB: 1})
            assert (counters.first_bytes, counters.unanswered, counters.endpoints) == ({}, {}, {})
            await trio.sleep(0.06)
            may_speak.set()
            for _ in range(3):
                await receive_exactly(client, 6)
                await client.send_all(b"more")
            took = trio.current_time() - before
            await gateway.until(lambda: spoken == 3)
        await gateway.until(lambda: gateway.active == 0)
        *counts, microseconds = counters.first_bytes[TO_WEB]
        assert sum(counts) == 1
        assert sum(counts[: FIRST_BYTE_BUCKETS.index(0.05) + 1]) == 0
        assert 0.05 < microseconds / 1e6 < took
        told = counters.endpoints["127.0.0.1", port]
        assert (told.answered, told.unanswered, told.failures) == (1, 0, 0)
        assert told.waited == pytest.approx(microseconds / 1e6, abs=1e-5)
        assert counters.unanswered == {}
        assert counters.hellos == {(*TO_WEB, "TLSv1.3", False): 1}


async def test_stream_that_ends_before_the_endpoints_first_byte_is_unanswered() -> None:
    async def mute(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with backend(mute) as port, running({WEB: [endpoint(1), endpoint(port)]}) as gateway:
        counters = gateway.relay.context.counters
        for count in (1, 2, 3):
            async with await gateway.dial() as client:
                await client.send_all(HELLO)
                await gateway.until(lambda count=count: counters.connections == {TO_WEB: count})  # type: ignore[misc]
        await gateway.until(lambda: gateway.active == 0)
        assert (counters.unanswered, counters.first_bytes) == ({TO_WEB: 3}, {})
        assert counters.endpoints["127.0.0.1", port] == EndpointCounts(unanswered=3)
        failed = counters.endpoints["127.0.0.1", 1]
        assert failed.failures == counters.connect_failures[TO_WEB] > 0
        assert failed.answered == failed.unanswered == 0


FLIGHT = b"\x16\3\3\0\4abcd"  # Handshake messages in the clear.
NO_ALERT = b"\x15\3\3\0\x1a" + bytes(26)  # An encrypted one.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # Who speaks, and what: the endpoint refuses the hello; the client the certificate; the endpoint that of the
        # client, after a second flight.
        ([(1, b"\x15\3\1\0\2\2\x28")], ("endpoint", Alert.HANDSHAKE_FAILURE)),
        ([(1, FLIGHT), (0, b"\x15\3\3\0\2\2\x2d")], ("client", Alert.CERTIFICATE_EXPIRED)),
        ([(1, FLIGHT), (0, FLIGHT), (1, b"\x15\3\3\0\2\2\x30")], ("endpoint", Alert.UNKNOWN_CA)),
        ([(1, FLIGHT), (1, FLIGHT), (1, b"\x15\3\3\0\2\2\x63")], ("endpoint", Alert.OTHER)),
        ([(1, b"\x15\3\3\0\2\2\x28" + FLIGHT)], ("endpoint", Alert.HANDSHAKE_FAILURE)),
        ([(1, FLIGHT), (0, FLIGHT), (1, b"\x14\3\3\0\1\1"), (1, b"\x15\3\3\0\2\2\x30")], None),
        ([(1, FLIGHT), (0, b"\x17\3\3\0\1a"), (0, b"\x15\3\3\0\2\2\x30")], None),
        ([(1, FLIGHT), (0, NO_ALERT)], None),
        ([(1, b"\x15\3\3\0\2\2")], None),
        ([(1, b"\x15\2\3\0\2\2\x28")], None),
    ],
)
async def test_alerts_in_the_clear_are_counted_by_who_sent_them(
    words: list[tuple[int, bytes]], told: tuple[str, Alert] | None
) -> None:
    ends: list[trio.SocketStream] = []
    finished = trio.Event()

    async def there(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        ends.append(stream)
        await finished.wait()

    async with backend(there) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await gateway.until(lambda: bool(ends))
            both = client, ends[0]
            for speaker, word in words:
                await both[speaker].send_all(word)
                assert await receive_exactly(both[not speaker], len(word)) == word
            finished.set()
        await gateway.until(lambda: gateway.active == 0)
        expected = {} if told is None else {(*TO_WEB, *told): 1}
        assert gateway.relay.context.counters.alerts == expected


async def test_alert_of_an_endpoint_that_resets_right_behind_it_is_counted() -> None:
    async def refusing(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x15\3\3\0\2\2\x2a")
        reset(stream)

    async with backend(refusing) as port, running({WEB: [endpoint(port)]}) as gateway:
        counters = gateway.relay.context.counters
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await gateway.until(lambda: sum(counters.ends.values()) == 1)
        answered = sum(counters.first_bytes.get(TO_WEB, [0, 0])[:-1])
        # The kernel may throw away what came before a reset.
        assert counters.alerts == ({(*TO_WEB, "endpoint", Alert.BAD_CERTIFICATE): 1} if answered else {})
        assert answered + counters.unanswered.get(TO_WEB, 0) == 1


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


async def test_worker_tells_bytes_once_whether_their_stream_is_open_or_has_ended() -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    reactor, row = Reactor(), os.memfd_create("row")
    os.ftruncate(row, 1 << 21)
    setup = Setup(0, 0, Limits(), [], [row], bytes(16), drain_seconds=5.0, drain_quiet=0.2, records=False)
    worker, receiver, heard = Worker(reactor, setup, theirs), Receiver(ours, TO_PARENT), Counters()
    context = worker._relay.context

    async def told(*, asked: bool) -> tuple[int, int, object, object]:
        await worker._tell(StatsRequest(1, streams=False) if asked else None)
        report = await receiver.next()
        assert isinstance(report, StatsReport)
        heard.add(report.counters)
        return heard.bytes_received, heard.bytes_sent, heard.carried.get(TO_WEB), report.counters.open.get(TO_WEB)

    def end(stream: Mock, received: int, sent: int) -> None:
        context.streams.discard(stream)
        context.counters.bytes_received += received
        context.counters.bytes_sent += sent
        context.counters.count_ended(TO_WEB, 1.0, (received, sent), StreamEnd.CLOSED)

    one, other = (
        Mock(carried=carried, relaying=True, hosts=Mock(destination=TO_WEB)) for carried in ((100, 10), (7, 8))
    )
    async with ours, theirs:
        context.streams |= {one, other}
        assert await told(asked=False) == (0, 0, None, None)
        assert await told(asked=True) == (107, 18, (107, 18), 2)
        end(one, 150, 11)
        assert await told(asked=False) == (150, 18, (150, 18), None)
        assert await told(asked=True) == (157, 19, (157, 19), 1)
        end(other, 7, 9)
        assert await told(asked=False) == (157, 20, (157, 20), None)
        # Of one that comes from another worker that one has told what it had moved.
        taken = Mock(carried=(1000, 5), relaying=True, hosts=Mock(destination=TO_WEB))
        context.streams.add(taken)
        context.counters.bytes_received -= 1000
        context.counters.count_carried(TO_WEB, -1000, 0)
        assert await told(asked=False) == (157, 20, (157, 20), None)
        end(taken, 1001, 5)
        assert await told(asked=False) == (158, 25, (158, 25), None)
        context.streams.clear()
    reactor.close()


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
    counters.count_first_byte(TO_WEB, ("10.0.0.7", 1), 0.002)
    before = counters.copy()
    counters.endpoints = {}
    counters.count_ended(TO_WEB, 1e9, (1, 2), StreamEnd.IDLE)
    counters.count_ended((RouteKind.DATACENTER, "dc2"), 0.0, (3, 4), StreamEnd.CLOSED)
    counters.count_failed(TO_WEB, Reason.CONNECT_TIMEOUT)
    counters.count_first_byte(TO_WEB, ("10.0.0.7", 1), 0.5)
    counters.count_hello(TO_WEB, Offer("TLSv1.3", resumption=True))
    counters.count_alert(TO_WEB, "client", Alert.UNKNOWN_CA)
    increments = counters.since(before)
    assert increments.carried == {TO_WEB: (1, 2), (RouteKind.DATACENTER, "dc2"): (3, 4)}
    assert increments.ends == {StreamEnd.IDLE: 1, StreamEnd.CLOSED: 1}
    assert increments.failed == {(*TO_WEB, Reason.CONNECT_TIMEOUT): 1}
    assert increments.stream_counts == [1, *[0] * (len(STREAM_BUCKETS) - 1), 1]
    assert increments.first_bytes == {TO_WEB: [*[0] * FIRST_BYTE_BUCKETS.index(1.0), 1, 0, 0, 500_000]}
    assert increments.endpoints == {("10.0.0.7", 1): EndpointCounts(answered=1, waited=0.5)}
    before.add(increments)
    counters.endpoints, before.endpoints = {}, {}
    assert before == counters
    assert counters.since(counters.copy()) == Counters()


@pytest.mark.parametrize(
    ("newest", "offered"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
async def test_certificate_that_openssl_rejects_is_an_alert_of_the_client(
    newest: ssl.TLSVersion, offered: TlsVersion
) -> None:
    """With TLS 1.3, too: OpenSSL's client says so before it encrypts anything."""
    distrusting = ssl.create_default_context()
    distrusting.check_hostname = False
    distrusting.minimum_version = distrusting.maximum_version = newest
    async with backend(tls_server) as port, running({WEB: [endpoint(port)]}) as gateway:
        counters = gateway.relay.context.counters
        async with await gateway.dial() as client:
            tls = trio.SSLStream(client, distrusting, server_hostname=WEB)
            with pytest.raises(trio.BrokenResourceError):
                await tls.do_handshake()
            # What trio leaves unsent when a handshake fails is the alert.
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send_all(tls._outgoing.read())
        await gateway.until(lambda: gateway.active == 0)
        assert counters.hellos == {(*TO_WEB, offered, False): 1}
        assert counters.alerts == {(*TO_WEB, "client", Alert.UNKNOWN_CA): 1}
        assert counters.unanswered == {}


async def test_version_that_openssl_does_not_speak_is_an_alert_of_the_endpoint() -> None:
    old = ssl.create_default_context()
    of_any_version(old, newest=ssl.TLSVersion.TLSv1_1)
    modern = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    modern.minimum_version = ssl.TLSVersion.TLSv1_2

    async def refusing(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            server = trio.SSLStream(stream, modern, server_side=True)
            try:
                await server.do_handshake()
            finally:
                await stream.send_all(server._outgoing.read())

    async with backend(refusing) as port, running({WEB: [endpoint(port)]}) as gateway:
        counters = gateway.relay.context.counters
        async with await gateway.dial() as client:
            with pytest.raises(trio.BrokenResourceError):
                await trio.SSLStream(client, old, server_hostname=WEB).do_handshake()
        await gateway.until(lambda: gateway.active == 0)
        assert counters.hellos == {(*TO_WEB, "TLSv1.1", False): 1}
        assert counters.alerts == {(*TO_WEB, "endpoint", Alert.PROTOCOL_VERSION): 1}
