"""The driver of streams of all shapes: it finds each fault of a gateway, and none in one that works."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from meshgate.adapters.relay import Limits
from tests.harness.shapes import REPEATED, BrokenStreamsError, Endpoints, Names, Shape, driving, endpoints

from .streams import TRUST_DOMAIN, WEB, endpoint, reset, running

SLOW = f"slow.default.dc1.internal.{TRUST_DOMAIN}"
# What happens to a chunk, and to what comes behind it.
Fault = Callable[[bytes], list[bytes]]


@asynccontextmanager
async def faulty_relay(port: int, fault: Callable[[int, bytes], bytes | None], ending: str) -> AsyncIterator[int]:
    """What forwards to `port` and does `fault` to the bytes at a place of a stream: None ends it by `ending`."""

    async def forward(source: trio.SocketStream, destination: trio.SocketStream) -> None:
        place = 0
        async for data in source:
            changed = fault(place, bytes(data))
            place += len(data)
            if changed is None:
                if ending == "reset":
                    reset(destination)
                else:
                    await destination.aclose()
                return
            await destination.send_all(changed)
        await destination.send_eof()

    async def serve(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", port) as upstream:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(forward, client, upstream)
                    nursery.start_soon(forward, upstream, client)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def driven(servers: Endpoints, port: int, names: Names, **options: object) -> None:
    options = {"patience": 1.0, "pace": 0.1, **options}
    async with driving(servers, ("127.0.0.1", port), names, **options) as driver:  # type: ignore[arg-type]
        # What is quiet finds out at the end only.
        with trio.move_on_after(0.5 if options.get("only") == [Shape.QUIET] else 10):
            while not driver.faults:
                await trio.sleep(0.01)


def once(change: Callable[[bytes], bytes | None]) -> Callable[[int, bytes], bytes | None]:
    """One fault, to the first stream that has come so far behind its opening."""
    due = [True]

    def fault(place: int, data: bytes) -> bytes | None:
        if due and place > 5000 and len(data) > 2000:
            due.clear()
            return change(data)
        return data

    return fault


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:100] + data[107:], "7 bytes are lost before byte 100"),
        (lambda data: data[1000:], "1000 bytes are lost before byte 0"),
        (lambda data: data[:1000] + data[500:], "500 bytes came twice before byte 1000"),
        (lambda data: data + data, "bytes came twice before byte"),
        (lambda data: data[:700] + b"x" + data[700:], "byte 700"),
        (lambda data: data[:700] + bytes((data[700] ^ 1,)) + data[701:], "byte 700 of"),
        (lambda data: None, "ended after"),
    ],
)
async def test_a_single_fault_among_all_bytes_is_found(change: Callable[[bytes], bytes | None], told: str) -> None:
    async with endpoints() as servers, faulty_relay(servers.port, once(change), "close") as port:
        with pytest.raises(BrokenStreamsError, match=told):
            await driven(servers, port, Names(WEB), only=[Shape.PING_PONG], streams=20)


@pytest.mark.parametrize(
    ("shape", "ending"),
    [
        *((shape, "close") for shape in Shape if shape not in (Shape.WAITING, Shape.DIALLING)),
        (Shape.SHORT, "reset"),
        (Shape.PING_PONG, "reset"),
        (Shape.BULK_BOTH, "reset"),
    ],
)
async def test_an_end_in_the_midst_of_any_shape_is_found(shape: Shape, ending: str) -> None:
    seen = [0]

    def fault(place: int, data: bytes) -> bytes | None:
        # Later than the hello, so that it is an end of a stream; of a half-closed one its only direction.
        seen[0] += place > 0
        return None if place > 100 and seen[0] > 3 else data

    async with endpoints() as servers, faulty_relay(servers.port, fault, ending) as port:
        with pytest.raises(BrokenStreamsError, match=str(shape)):
            await driven(servers, port, Names(WEB), only=[shape], streams=20, short=2)


async def test_a_connection_that_is_refused_is_found() -> None:
    async with endpoints() as servers:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        with pytest.raises(BrokenStreamsError, match="all attempts to connect"):
            await driven(servers, port, Names(WEB), streams=20)


async def test_a_stream_that_is_forgotten_is_found() -> None:
    def forget(place: int, data: bytes) -> bytes:
        return b"" if place > 3000 else data

    async with endpoints() as servers, faulty_relay(servers.port, forget, "close") as port:
        with pytest.raises(BrokenStreamsError, match="ping-pong"):
            async with driving(servers, ("127.0.0.1", port), Names(WEB), only=[Shape.PING_PONG], pace=0.1, patience=1):
                await trio.sleep(0.5)


async def test_a_relay_carries_all_shapes() -> None:
    async with (
        endpoints() as servers,
        running({WEB: [endpoint(servers.port)], SLOW: [endpoint(servers.slow_port)]}, Limits()) as gateway,
    ):
        async with driving(servers, ("127.0.0.1", gateway.port), Names(WEB, SLOW), streams=60, pace=0.3) as driver:
            await driver.moved()
        await gateway.until(lambda: gateway.active == 0)
        assert len(gateway.ended) == len(driver.lives) == driver.in_order.total()
        assert {*driver.in_order} == {*Shape} - {Shape.WAITING}
        assert all(driver.in_order[shape] >= 2 for shape in REPEATED - {Shape.WAITING})
