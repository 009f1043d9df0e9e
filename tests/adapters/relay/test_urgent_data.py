"""Urgent data (tcp(7), MSG_OOB): every ordinary byte arrives, in order, however urgent marks lie among them.

The yardstick is a receiver that never asks for urgent data, as Envoy is none either: it gets all bytes but the urgent
one, which is out of band. One whose mark was moved on by a later one before it was read is an ordinary byte again.
"""

import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgate.adapters.relay.pump import LARGE_READS_TO_SPLICE, READ_BYTES, TURN_BYTES

from .streams import WEB, Running, backend, endpoint, hello_for, receive_all, receive_exactly, running

HELLO = hello_for(WEB)
URGENT = b"!"
HEAVY = b"h" * READ_BYTES * 4 * LARGE_READS_TO_SPLICE
STREAMS = 24

Transport = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[bytes]]


async def send_urgent(stream: trio.SocketStream) -> None:
    assert await stream.socket.send(URGENT, socket.MSG_OOB) == 1


async def seen_behind_a_plain_connection(send: Callable[[trio.SocketStream], Awaitable[None]]) -> bytes:
    seen: list[bytes] = []

    async def receive(stream: trio.SocketStream) -> None:
        seen.append(await receive_all(stream))

    async with backend(receive) as port, await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(HELLO)
        await send(client)
        await client.send_eof()
        with trio.fail_after(20):
            while not seen:
                await trio.sleep(0.005)
    return seen[0]


async def seen_behind_the_relay(send: Callable[[trio.SocketStream], Awaitable[None]]) -> bytes:
    seen: list[bytes] = []

    async def receive(stream: trio.SocketStream) -> None:
        seen.append(await receive_all(stream))

    async with backend(receive) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial() as client:
        await client.send_all(HELLO)
        await send(client)
        await client.send_eof()
        await gateway.until(lambda: bool(seen))
    return seen[0]


@pytest.mark.parametrize("seen", [seen_behind_a_plain_connection, seen_behind_the_relay])
@pytest.mark.parametrize(
    ("before", "behind"), [(b"A" * 100, b"B" * 100), (HEAVY, b"B" * 20_000), (HEAVY + b"A" * 300, b""), (b"", b"B")]
)
async def test_all_bytes_around_an_urgent_one_arrive_as_over_a_plain_connection(
    seen: Transport, before: bytes, behind: bytes
) -> None:
    async def send(client: trio.SocketStream) -> None:
        await client.send_all(before)
        await send_urgent(client)
        if behind:
            await client.send_all(behind)

    for _ in range(10):
        assert await seen(send) == HELLO + before + behind


@pytest.mark.parametrize("before", [b"A" * 100, HEAVY])
async def test_bytes_behind_an_urgent_one_wait_for_nothing(before: bytes) -> None:
    """The client says nothing more: without the relay's looking again they would stay in its kernel."""
    got = trio.Event()

    async def receive(stream: trio.SocketStream) -> None:
        assert await receive_exactly(stream, len(HELLO + before) + 100) == HELLO + before + b"B" * 100
        got.set()
        await trio.sleep_forever()

    async with backend(receive) as port, running({WEB: [endpoint(port)]}) as gateway:
        for _ in range(10):
            async with await gateway.dial() as client:
                await client.send_all(HELLO + before)
                await send_urgent(client)
                await client.send_all(b"B" * 100)
                await gateway.until(got.is_set)
            got = trio.Event()


@pytest.mark.parametrize("cut", [1, 5, 100, len(HELLO) - 1, len(HELLO)])
async def test_hello_with_an_urgent_byte_inside_is_routed(cut: int) -> None:
    async def receive(stream: trio.SocketStream) -> None:
        assert await receive_exactly(stream, len(HELLO)) == HELLO
        await stream.send_all(b"got it")

    async with backend(receive) as port, running({WEB: [endpoint(port)]}) as gateway:
        for _ in range(10):
            async with await gateway.dial() as client:
                await client.send_all(HELLO[:cut])
                await send_urgent(client)
                await client.send_all(HELLO[cut:])
                with trio.fail_after(20):
                    assert await receive_exactly(client, 6) == b"got it"


@dataclass
class Side:
    """What one end sends, and what it got."""

    plan: random.Random
    sent: bytearray = field(default_factory=bytearray)
    got: bytes | None = None

    async def run(self, stream: trio.SocketStream, prefix: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, prefix)
            self.got = await receive_all(stream)

    async def _send(self, stream: trio.SocketStream, prefix: bytes) -> None:
        plan = self.plan
        early = bool(prefix) and plan.random() < 0.3  # Then none later, whose mark could make this one ordinary.
        cut = plan.randrange(len(prefix) + 1)
        await stream.send_all(prefix[:cut])
        if early:
            await send_urgent(stream)
        await stream.send_all(prefix[cut:])
        if plan.random() < 0.5:
            await self._more(stream, len(HEAVY))
        for _ in range(plan.randrange(8)):
            await self._more(stream, plan.choice((1, 100, 5_000, READ_BYTES, TURN_BYTES + 1)))
            if not early and plan.random() < 0.6:
                await send_urgent(stream)
            if plan.random() < 0.3:
                await trio.sleep(plan.random() * 0.01)
        await stream.send_eof()

    async def _more(self, stream: trio.SocketStream, count: int) -> None:
        chunk = self.plan.randbytes(count).translate(None, URGENT)
        self.sent += chunk
        await stream.send_all(chunk)


async def exchange(seed: int) -> None:
    plan = random.Random(seed)
    clients = [Side(random.Random(plan.random())) for _ in range(STREAMS)]
    servers = [Side(random.Random(plan.random())) for _ in range(STREAMS)]

    async def serve(stream: trio.SocketStream) -> None:
        assert await receive_exactly(stream, len(HELLO)) == HELLO
        await servers[(await receive_exactly(stream, 1))[0]].run(stream, b"")

    async with backend(serve) as port, running({WEB: [endpoint(port)]}) as gateway:

        async def call(gateway: Running, number: int) -> None:
            async with await gateway.dial() as stream:
                await clients[number].run(stream, HELLO + bytes([number]))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(call, gateway, number)
        await gateway.until(lambda: gateway.active == 0 and all(server.got is not None for server in servers))
        assert gateway.refused == []
        assert gateway.counters().internal_errors == 0
    for number, client in enumerate(clients):
        server = servers[number]
        assert client.got is not None
        assert server.got is not None
        assert client.got.translate(None, URGENT) == server.sent
        assert server.got.translate(None, URGENT) == client.sent


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_streams_with_urgent_marks_anywhere_lose_nothing(seed: int) -> None:
    trio.run(exchange, seed)
