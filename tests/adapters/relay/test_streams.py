"""A stream through the relay arrives whole, in order, and ends as its ends ended it."""

import hashlib
import random

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.core.reasons import StreamEnd

from .streams import (
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    named,
    receive_all,
    receive_exactly,
    reset,
    running,
    table_of,
)

HELLO = hello_for(WEB)


async def test_hello_and_what_follows_it_reach_the_endpoint_unchanged() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO + b"early data")
            assert await receive_exactly(client, len(HELLO) + 10) == HELLO + b"early data"
            await client.send_all(b"later data")
            assert await receive_exactly(client, 10) == b"later data"
        await gateway.until(lambda: gateway.active == 0)
        counters = gateway.counters()
        assert counters.bytes_received == counters.bytes_sent == len(HELLO) + 20
        assert counters.connections == {("service", "web"): 1}
        assert sum(counters.connect_counts) == 1
        assert gateway.refused == []


async def test_hello_that_comes_byte_by_byte_is_routed() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial() as client:
        for position in range(len(HELLO)):
            await client.send_all(HELLO[position : position + 1])
            await trio.lowlevel.checkpoint()
        assert await receive_exactly(client, len(HELLO)) == HELLO


async def test_each_name_reaches_its_own_service() -> None:
    api = WEB.replace("web", "api", 1)
    async with (
        backend(named(b"web")) as web,
        backend(named(b"api")) as other,
        running({WEB: [endpoint(web)], api: [endpoint(other)]}) as gateway,
    ):
        for name, greeting in ((WEB, b"web"), (api, b"api"), (WEB.upper(), b"web")):
            async with await gateway.dial() as client:
                await client.send_all(hello_for(name))
                assert await receive_exactly(client, 3) == greeting


@pytest.mark.parametrize("size", [1 << 16, 10 << 20])
async def test_bulk_both_ways_at_once_arrives_with_equal_hashes(size: int) -> None:
    up, down = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    arrived: list[bytes] = []

    async def exchange(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(down)
                await stream.send_eof()

            nursery.start_soon(send)
            arrived.append(hashlib.sha256(await receive_all(stream)).digest())

    async with backend(exchange) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial() as client:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send_all(HELLO + up)
                await client.send_eof()

            nursery.start_soon(send)
            received = await receive_all(client)
        assert hashlib.sha256(received).digest() == hashlib.sha256(down).digest()
        await gateway.until(lambda: bool(arrived))
        assert arrived == [hashlib.sha256(HELLO + up).digest()]
        await gateway.until(lambda: gateway.active == 0)


async def test_client_that_ends_its_side_still_gets_the_answer() -> None:
    async def answer_at_the_end(stream: trio.SocketStream) -> None:
        request = await receive_all(stream)
        await stream.send_all(b"got %d" % len(request))

    async with backend(answer_at_the_end) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await client.send_eof()
            assert await receive_all(client) == b"got %d" % len(HELLO)


async def test_endpoint_that_ends_its_side_still_gets_the_rest() -> None:
    arrived: list[bytes] = []

    async def end_first(stream: trio.SocketStream) -> None:
        await stream.send_eof()
        arrived.append(await receive_all(stream))

    async with backend(end_first) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == b""
            await client.send_all(b"the rest")
        await gateway.until(lambda: bool(arrived))
        assert arrived == [HELLO + b"the rest"]


async def test_reset_by_the_client_resets_the_endpoint() -> None:
    endings: list[BaseException | None] = []

    async def watch(stream: trio.SocketStream) -> None:
        try:
            await receive_all(stream)
            endings.append(None)
        except trio.BrokenResourceError as error:
            endings.append(error.__cause__)

    async with backend(watch) as port, running({WEB: [endpoint(port)]}) as gateway:
        client = await gateway.dial()
        await client.send_all(HELLO)
        await gateway.until(lambda: bool(gateway.counters().connections))
        reset(client)
        await gateway.until(lambda: bool(endings))
        assert isinstance(endings[0], ConnectionResetError)
        await gateway.until(lambda: gateway.active == 0)


async def test_reset_by_the_endpoint_resets_the_client_after_what_it_sent() -> None:
    async def send_and_reset(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        await stream.send_all(b"last words")
        reset(stream)

    async with backend(send_and_reset) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, 10) == b"last words"
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_reader_that_stalls_stops_the_sender_and_loses_nothing() -> None:
    wake = trio.Event()
    arrived: list[bytes] = []

    async def stall(stream: trio.SocketStream) -> None:
        await wake.wait()
        arrived.append(await receive_all(stream))

    data = random.Random(3).randbytes(64 << 20)
    async with backend(stall) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client, trio.open_nursery() as nursery:
            done = trio.Event()

            async def send() -> None:
                await client.send_all(HELLO + data)
                await client.send_eof()
                done.set()

            nursery.start_soon(send)
            taken = -1
            while taken != (taken := gateway.counters().bytes_received):
                await trio.sleep(0.1)
            # What the kernel's socket buffers and one pipe hold; not the 64 MiB that the sender has.
            assert taken < 32 << 20
            assert not done.is_set()
            wake.set()
            await done.wait()
        await gateway.until(lambda: bool(arrived), 20)
        assert hashlib.sha256(arrived[0]).digest() == hashlib.sha256(HELLO + data).digest()


async def test_idle_stream_is_closed_and_a_busy_one_is_not() -> None:
    limits = Limits(idle_timeout=1.5)
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, limits) as gateway:
        async with await gateway.dial() as busy, await gateway.dial() as idle:
            for client in (busy, idle):
                await client.send_all(HELLO)
                await receive_exactly(client, len(HELLO))
            for _ in range(8):
                await trio.sleep(0.3)
                await busy.send_all(b"x")
                assert await receive_exactly(busy, 1) == b"x"
            with trio.fail_after(20):
                assert await receive_all(idle) == b""
        assert gateway.counters().ends[StreamEnd.IDLE] == 1


async def test_new_table_leaves_open_streams_where_they_are() -> None:
    async with (
        backend(named(b"old")) as old,
        backend(named(b"new")) as new,
        running({WEB: [endpoint(old)]}) as gateway,
    ):
        async with await gateway.dial() as first:
            await first.send_all(HELLO)
            assert await receive_exactly(first, 3 + len(HELLO)) == b"old" + HELLO
            gateway.relay.install(table_of({WEB: [endpoint(new)]}))
            async with await gateway.dial() as second:
                await second.send_all(HELLO)
                assert await receive_exactly(second, 3) == b"new"
            gateway.relay.install(table_of({}))
            await first.send_all(b"still here")
            assert await receive_exactly(first, 10) == b"still here"


async def test_other_tasks_get_their_turn_beside_an_endless_stream() -> None:
    async def flood(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(bytes(1 << 20))

    async with backend(flood) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client, trio.open_nursery() as nursery:
            await client.send_all(HELLO)

            async def swallow() -> None:
                while await client.receive_some(1 << 20):
                    pass

            nursery.start_soon(swallow)
            with trio.fail_after(20):
                for _ in range(50):
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_reset_behind_an_end_reaches_the_other_side() -> None:
    """A process that has answered and died: its caller, who has only got the end, must not keep a dead stream."""

    async def end_and_die(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        await stream.send_eof()
        await receive_exactly(stream, 1)
        reset(stream)

    async with backend(end_and_die) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == b""
            await client.send_all(b"x")
            await gateway.until(lambda: gateway.active == 0)
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(1000):
                    await client.send_all(b"x")
                    await trio.sleep(0.005)


async def test_stream_that_times_out_while_bytes_wait_for_a_stalled_reader_is_reset() -> None:
    """An end in order would hide that they are lost."""

    async def flood(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        while True:
            await stream.send_all(bytes(100_000))

    limits = Limits(idle_timeout=0.3, handshake_timeout=0.0)
    async with backend(flood) as port, running({WEB: [endpoint(port)]}, limits) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await gateway.until(lambda: bool(gateway.ended))
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(client)
    assert gateway.ended[0].flags == "SI"
