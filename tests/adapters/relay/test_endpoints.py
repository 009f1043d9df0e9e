"""Which endpoint a stream gets, and what happens when endpoints fail."""

import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.core.reasons import Reason

from .streams import WEB, backend, echo, endpoint, hello_for, named, receive_all, receive_exactly, running, table_of

HELLO = hello_for(WEB)
INTERNAL_ERROR = b"\x15\x03\x03\x00\x02\x02\x50"


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that nobody listens on and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose connections are neither accepted nor refused: its queue of waiting clients is full."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
            fillers.append(filler)
        try:
            yield sock.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


async def test_streams_are_spread_by_weight() -> None:
    async with backend(named(b"a")) as light, backend(named(b"b")) as heavy:
        routes = {WEB: [endpoint(light, weight=1), endpoint(heavy, weight=3)]}
        async with running(routes) as gateway:
            met: Counter[bytes] = Counter()
            for _ in range(16):
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    met[await receive_exactly(client, 1)] += 1
            assert met == {b"a": 4, b"b": 12}


async def test_unhealthy_endpoint_gets_nothing() -> None:
    async with backend(named(b"a")) as good, backend(named(b"b")) as bad:
        async with running({WEB: [endpoint(good), endpoint(bad, healthy=False)]}) as gateway:
            for _ in range(6):
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, 1) == b"a"


async def test_no_healthy_endpoint_is_refused_with_its_reason() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port, healthy=False)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == INTERNAL_ERROR
        assert [refusal.reason for refusal in gateway.refused] == [Reason.NO_HEALTHY_ENDPOINT]


async def test_endpoint_that_refuses_is_passed_over() -> None:
    with refusing_port() as dead:
        async with backend(named(b"a")) as good, running({WEB: [endpoint(dead), endpoint(good)]}) as gateway:
            for _ in range(4):
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, 1 + len(HELLO)) == b"a" + HELLO
            assert gateway.refused == []


async def test_endpoint_that_failed_is_not_tried_by_the_next_streams() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good:
            routes = {WEB: [endpoint(hole), endpoint(good)]}
            async with running(routes, Limits(connect_timeout=0.4)) as gateway:
                for _ in range(8):
                    async with await gateway.dial() as client:
                        await client.send_all(HELLO)
                        assert await receive_exactly(client, 1) == b"a"
                await gateway.until(lambda: len(gateway.ended) == 8)
                # One stream met the black hole; without ejection every other one would have.
                assert sorted(record.attempts for record in gateway.ended) == [1] * 7 + [2]


async def test_only_refusing_endpoints_end_in_an_alert() -> None:
    with refusing_port() as one, refusing_port() as two:
        async with running({WEB: [endpoint(one), endpoint(two)]}) as gateway:
            async with await gateway.dial() as client:
                await client.send_all(HELLO)
                assert await receive_all(client) == INTERNAL_ERROR
            assert [refusal.reason for refusal in gateway.refused] == [Reason.CONNECT_FAILED]
            assert gateway.refused[0].attempts == 2
            assert "connection refused" in gateway.refused[0].detail


async def test_black_hole_times_out_and_the_next_endpoint_is_tried() -> None:
    with black_hole() as hole:
        async with backend(named(b"a")) as good:
            routes = {WEB: [endpoint(hole), endpoint(good)]}
            async with running(routes, Limits(connect_timeout=0.3)) as gateway:
                for _ in range(2):
                    async with await gateway.dial() as client:
                        await client.send_all(HELLO)
                        with trio.fail_after(20):
                            assert await receive_exactly(client, 1) == b"a"


async def test_only_black_holes_end_in_connect_timeout() -> None:
    with black_hole() as hole:
        async with running({}, Limits(connect_timeout=600.0)) as gateway:
            gateway.relay.install(table_of({WEB: [endpoint(hole)]}, connect_timeout=0.2))
            async with await gateway.dial() as client:
                await client.send_all(HELLO)
                with trio.fail_after(20):
                    assert await receive_all(client) == INTERNAL_ERROR
            assert [refusal.reason for refusal in gateway.refused] == [Reason.CONNECT_TIMEOUT]


async def test_client_that_leaves_while_connecting_is_forgotten() -> None:
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}) as gateway:
            client = await gateway.dial()
            await client.send_all(HELLO)
            await gateway.until(lambda: gateway.counters().bytes_received > 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await client.aclose()
            await gateway.until(lambda: gateway.active == 0)
            assert gateway.refused == []


async def test_event_of_another_stream_ends_no_stream_that_is_connecting() -> None:
    """Descriptors are used again at once: an event may reach a stream that was meant for the one before it."""
    with black_hole() as hole:
        async with running({WEB: [endpoint(hole)]}) as gateway, await gateway.dial() as client:
            await client.send_all(HELLO)
            await gateway.until(lambda: [each.state for each in gateway.relay.connections()] == ["connecting"])
            for watched in list(gateway.relay.context.reactor._watched.values()):
                watched.on_event(select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP)
            assert [each.state for each in gateway.relay.connections()] == ["connecting"]


async def test_what_the_client_sends_while_connecting_follows_the_hello() -> None:
    with black_hole() as hole:
        async with backend(echo) as good:
            routes = {WEB: [endpoint(hole), endpoint(good)]}
            async with running(routes, Limits(connect_timeout=0.3)) as gateway:
                for _ in range(2):  # One of the two begins at the black hole.
                    async with await gateway.dial() as client:
                        await client.send_all(HELLO)
                        await trio.sleep(0.1)
                        await client.send_all(b"more")
                        await client.send_eof()
                        with trio.fail_after(20):
                            assert await receive_all(client) == HELLO + b"more"


async def test_name_in_place_of_an_address_is_never_looked_up() -> None:
    async with running({WEB: [endpoint(443, address="localhost")]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == INTERNAL_ERROR
        assert gateway.refused[0].reason is Reason.CONNECT_FAILED
        assert "not a numeric address" in gateway.refused[0].detail


@pytest.mark.parametrize("address", ["fe80::1%no-such-interface", "localhost"])
async def test_address_that_cannot_be_dialled_is_passed_over(address: str) -> None:
    async with backend(named(b"a")) as good:
        async with running({WEB: [endpoint(443, address=address), endpoint(good)]}) as gateway:
            for _ in range(4):
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, 1) == b"a"
            assert gateway.refused == []


async def test_port_that_the_kernel_does_not_take_costs_one_stream_and_no_process() -> None:
    async with running({WEB: [endpoint(70000)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == INTERNAL_ERROR
        assert gateway.counters().internal_errors == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::1%lo"])
async def test_endpoints_of_both_families_are_reached(address: str) -> None:
    async def serve(*, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        await trio.serve_tcp(echo, 0, host=address.partition("%")[0], task_status=task_status)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        async with running({WEB: [endpoint(port, address=address)]}) as gateway, await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            # In order, so that the end of the relay has nothing to reset.
            await client.send_eof()
            assert await receive_all(client) == b""
        nursery.cancel_scope.cancel()


async def test_what_an_endpoint_says_before_its_connection_was_noticed_is_delivered() -> None:
    """One event tells of both, and no other comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.settimeout(20)
        address = listener.getsockname()
        with socket.create_connection(address, 20):  # The queue of waiting clients is full.
            async with running({WEB: [endpoint(address[1])]}) as gateway, await gateway.dial() as client:
                await client.send_all(HELLO)
                await gateway.until(lambda: gateway.relay.context.breakers.pending == 1, 20)
                # The relay gets no turn before all of this has happened.
                listener.accept()[0].close()
                server, _ = listener.accept()
                with server:
                    server.sendall(b"who is there?")
                    with trio.fail_after(20):
                        assert await receive_exactly(client, 13) == b"who is there?"
                        server.settimeout(20)
                        assert server.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
