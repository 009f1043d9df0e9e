"""Real sockets around a relay: ClientHellos of a real TLS stack, backends, clients, and the relay itself."""

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from meshgate.adapters.relay import Counters, Limits, Refused, StreamRecord, sockets
from meshgate.adapters.relay.on_demand import OnDemand
from meshgate.adapters.relay.reactor import TICK, Reactor
from meshgate.adapters.relay.relay import Relay
from meshgate.adapters.relay.stream import Stream
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

Handler = Callable[[trio.SocketStream], Awaitable[None]]
TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
WEB = f"web.default.dc1.internal.{TRUST_DOMAIN}"


def hello_for(name: str | None) -> bytes:
    """A ClientHello as OpenSSL makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def endpoint(port: int, *, address: str = "127.0.0.1", healthy: bool = True, weight: int = 1) -> Endpoint:
    return Endpoint(address, port, healthy, weight, "node1", f"instance-{port}")


def table_of(
    routes: Mapping[str, Sequence[Endpoint]], connect_timeout: float | None = None, stale: Collection[str] = ()
) -> RouteTable:
    return RouteTable.of(
        "dc1",
        TRUST_DOMAIN,
        "default",
        (
            Route(
                name,
                RouteKind.SERVICE,
                name.partition(".")[0],
                tuple(endpoints),
                connect_timeout=connect_timeout,
                stale=name in stale,
            )
            for name, endpoints in routes.items()
        ),
    )


class Watcher:
    """Notes what happens to streams."""

    wants_records = True

    def __init__(self) -> None:
        self.refused: list[Refused] = []
        self.settled: list[StreamRecord] = []
        self.ended: list[StreamRecord] = []

    def on_refused(self, refused: Refused) -> None:
        self.refused.append(refused)

    def on_settled(self, record: StreamRecord) -> None:
        self.settled.append(record)

    def on_ended(self, record: StreamRecord) -> None:
        self.ended.append(record)


@dataclass
class Running:
    """A relay that listens, and what it refused."""

    relay: Relay
    port: int
    refused: list[Refused] = field(default_factory=list)
    ended: list[StreamRecord] = field(default_factory=list)

    @property
    def active(self) -> int:
        return self.relay.context.counters.active

    def counters(self) -> Counters:
        """The totals, with what is open in them, as the pool tells them."""
        counters = self.relay.context.counters.copy()
        self.relay.count_open(counters)
        return counters

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.005)


async def serve_beside_trio(reactor: Reactor) -> None:
    """Serve step by step in a task beside a test. In a worker the reactor is the loop around trio."""
    try:
        while True:
            busy = reactor._turns or reactor._late or reactor._calls
            # A deadline that is set meanwhile may be earlier than those that this wait knows of.
            with trio.move_on_after(0 if busy else max(0.0, min(TICK, reactor._alarm - reactor.clock()))):
                await trio.lowlevel.wait_readable(reactor._epoll.fileno())
            await trio.lowlevel.checkpoint()  # A relay that is cancelled at this moment goes first.
            reactor.call_soon(reactor.stop)
            reactor.serve()
    finally:
        reactor.close()


@asynccontextmanager
async def running(
    routes: Mapping[str, Sequence[Endpoint]],
    limits: Limits | None = None,
    ask: Callable[[str], None] | None = None,
    *,
    patience: float = 60.0,
) -> AsyncIterator[Running]:
    """A relay of its own; a stream that waits for its name does so until a test does something, or for `patience`."""
    watcher = Watcher()
    on_demand = OnDemand[Stream](
        None if ask is None else lambda name, _client: ask(name), patience=patience, again=60.0
    )
    reactor = Reactor()
    limits = limits or Limits()
    relay = Relay(reactor, table_of(routes), limits, watcher, on_demand=on_demand)
    sock = sockets.bind("127.0.0.1", 0, limits.keepalive, limits.user_timeout)
    sock.listen(sockets.BACKLOG)
    relay.adopt("default", sock, listening=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_beside_trio, reactor)
        # As in a worker, the relay ends before its loop does.
        async with trio.open_nursery() as inner:
            inner.start_soon(relay.run)
            yield Running(relay, sock.getsockname()[1], watcher.refused, watcher.ended)
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[int]:
    """A TCP server on a free port; errors of a broken connection are the handler's own business."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and end when the client does."""
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


def named(name: bytes) -> Handler:
    """A backend that says who it is before it echoes."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(name)
        await echo(stream)

    return handler


async def receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            break
        received += chunk
    return bytes(received)


async def receive_all(stream: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


def reset(stream: trio.SocketStream) -> None:
    """Close with RST."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
