"""Hundreds of streams with random data, chunks, pauses and endings: every byte arrives, nothing stays behind."""

import gc
import hashlib
import random
from dataclasses import dataclass, field

import trio
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgate.adapters.relay.pump import HEAVY_READ_BYTES

from .streams import WEB, backend, endpoint, hello_for, open_descriptors, reset, resident_bytes, running

HELLO = hello_for(WEB)
STREAMS = 60


@dataclass
class Side:
    """What one end of a stream sends, how it ends, and what it got."""

    plan: random.Random
    size: int
    ending: str  # "eof": end the sending side, read on; "reset": RST after the last byte
    sent: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    got: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    got_bytes: int = 0
    saw_end: str = ""

    async def run(self, stream: trio.SocketStream, prefix: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, prefix)
            await self._receive(stream)

    async def _send(self, stream: trio.SocketStream, prefix: bytes) -> None:
        try:
            await stream.send_all(prefix)
            left = self.size
            while left:
                chunk = self.plan.randbytes(min(left, self.plan.choice((1, 100, 5_000, HEAVY_READ_BYTES, 300_000))))
                await stream.send_all(chunk)
                self.sent.update(chunk)
                left -= len(chunk)
                if self.plan.random() < 0.2:
                    await trio.sleep(self.plan.random() * 0.01)
            if self.ending == "eof":
                await stream.send_eof()
            else:
                reset(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The other side has reset the stream.

    async def _receive(self, stream: trio.SocketStream) -> None:
        try:
            while chunk := await stream.receive_some(self.plan.choice((100, 5_000, HEAVY_READ_BYTES))):
                self.got.update(chunk)
                self.got_bytes += len(chunk)
                if self.plan.random() < 0.1:
                    await trio.sleep(self.plan.random() * 0.005)
            self.saw_end = "eof"
        except trio.BrokenResourceError:
            self.saw_end = "reset"
        except trio.ClosedResourceError:
            self.saw_end = "own reset"


async def exchange(seed: int) -> None:
    """Run STREAMS streams through one relay; each end checks what the other one sent."""
    plan = random.Random(seed)
    clients: list[Side] = []
    servers: dict[int, Side] = {}

    def side() -> Side:
        size = plan.choice((0, 1, 1_000, 50_000, 400_000, 2_000_000))
        return Side(random.Random(plan.random()), size, "reset" if plan.random() < 0.15 else "eof")

    async def serve(stream: trio.SocketStream) -> None:
        start = b""
        while len(start) < len(HELLO) + 2:
            chunk = await stream.receive_some(len(HELLO) + 2 - len(start))
            assert chunk, "the hello was cut"
            start += chunk
        assert start[: len(HELLO)] == HELLO
        await servers[int.from_bytes(start[-2:], "big")].run(stream, b"")

    async with backend(serve) as port, running({WEB: [endpoint(port)]}) as gateway:

        async def call(number: int) -> None:
            stream = await gateway.dial()
            async with stream:
                await clients[number].run(stream, HELLO + number.to_bytes(2, "big"))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    clients.append(side())
                    servers[number] = side()
                    nursery.start_soon(call, number)
        await gateway.until(lambda: all(server.saw_end for server in servers.values()), 20)
        await gateway.until(lambda: gateway.active == 0)
        assert gateway.refused == []
        assert gateway.counters().internal_errors == 0
    for number, client in enumerate(clients):
        check(client, servers[number])
        check(servers[number], client)


def check(sender: Side, receiver: Side) -> None:
    if sender.ending == receiver.ending == "eof":
        assert receiver.saw_end == "eof"
        assert receiver.got_bytes == sender.size
        assert receiver.got.digest() == sender.sent.digest()
    else:
        # A reset cuts a stream anywhere; it may not add or alter a byte, and the other end must learn of the end.
        assert receiver.got_bytes <= sender.size
        assert receiver.saw_end


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_random_streams_lose_nothing(seed: int) -> None:
    gc.collect()
    descriptors = open_descriptors()
    trio.run(exchange, seed)
    gc.collect()
    assert open_descriptors() == descriptors


def test_memory_returns_to_where_it_was() -> None:
    trio.run(exchange, 1)
    gc.collect()
    before = resident_bytes()
    for seed in (2, 3, 4):
        trio.run(exchange, seed)
    gc.collect()
    assert resident_bytes() - before < 24 << 20
