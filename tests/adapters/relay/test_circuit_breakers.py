"""Limits that Consul sets for destinations: connections at once, and keepalive towards other gateways."""

import socket
from contextlib import closing

import pytest
import trio

from meshgate.adapters.relay import Limits, sockets, stream
from meshgate.core.proxy_config import KEEPALIVE_UNSET, Keepalive
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable

from .streams import (
    TRUST_DOMAIN,
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    receive_all,
    receive_exactly,
    running,
)
from .test_endpoints import INTERNAL_ERROR
from .test_pool import pool_of

HELLO = hello_for(WEB)
API = f"api.default.dc1.internal.{TRUST_DOMAIN}"
TWO = Limits(max_connections_per_destination=2)


async def test_destination_takes_so_many_streams_and_others_are_not_charged_for_them() -> None:
    async with backend(echo) as port:
        async with running({WEB: [endpoint(port)], API: [endpoint(port)]}, TWO) as it:

            async def call(name: str) -> tuple[trio.SocketStream, bytes]:
                client, hello = await it.dial(), hello_for(name)
                await client.send_all(hello)
                return client, await receive_exactly(client, len(hello))

            open_streams = [(await call(WEB))[0] for _ in range(2)]
            refused, said = await call(WEB)
            assert said == INTERNAL_ERROR
            assert [(each.reason, each.detail) for each in it.refused] == [
                (Reason.MAX_CONNECTIONS, "web has its 2 connections")
            ]
            other, echoed = await call(API)
            assert echoed
            await open_streams.pop().aclose()
            await it.until(lambda: len(it.ended) >= 1)
            again, echoed = await call(WEB)
            assert echoed
            for client in (*open_streams, refused, other, again):
                await client.aclose()


async def test_limit_holds_for_all_workers_together_and_ends_with_its_streams() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=2, limits=TWO) as pool:
        for _ in range(3):
            clients = [await pool.call(), await pool.call()]
            for _ in range(5):
                async with await pool.dial() as late:
                    await late.send_all(HELLO)
                    assert await receive_all(late) == INTERNAL_ERROR
            for client in clients:
                await client.aclose()
            with trio.fail_after(20):
                while (await pool.relay.counters()).active:
                    await trio.sleep(0.02)


async def test_limit_that_is_taken_back_lets_everybody_in() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, limits=TWO) as pool:
        clients = [await pool.call(), await pool.call()]
        pool.relay.limit(Limits())
        await pool.until_workers(2)
        clients += [await pool.call() for _ in range(5)]
        for client in clients:
            await client.aclose()


@pytest.mark.parametrize("kind", [RouteKind.PEER_EXPORT, RouteKind.PEER_SERVER])
async def test_what_peers_export_is_not_limited_as_in_consul(kind: RouteKind) -> None:
    async with backend(echo) as port, running({}, TWO) as it:
        it.relay.install(table(Route(WEB, kind, "web", (endpoint(port),))))
        clients = [await it.dial() for _ in range(4)]
        for client in clients:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
        for client in clients:
            await client.aclose()


def table(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", TRUST_DOMAIN, "default", iter(routes))


OPTIONS = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)


@pytest.mark.parametrize(
    ("own", "chosen", "found"),
    [
        (60.0, KEEPALIVE_UNSET, (60, 15, 4)),
        (60.0, Keepalive(33, 7, 3), (33, 7, 3)),
        (60.0, Keepalive(probes=2), (60, 15, 2)),
        (60.0, Keepalive(time=20), (20, 5, 4)),
        (0.0, Keepalive(time=20), (20, 5, 4)),
    ],
)
async def test_keepalive_that_consul_sets_counts_before_the_gateways_own(
    own: float, chosen: Keepalive, found: tuple[int, int, int]
) -> None:
    async with backend(echo) as port:
        sock, _ = sockets.dial("127.0.0.1", port)
        with closing(sock):
            sockets.keep_alive(sock, own, 0.0, chosen)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert tuple(sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS) == found


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        (RouteKind.DATACENTER, True),
        (RouteKind.PARTITION, True),
        (RouteKind.PEER_IMPORT, True),
        (RouteKind.SERVICE, False),
        (RouteKind.SUBSET, False),
    ],
)
async def test_keepalive_of_consul_is_for_connections_to_other_gateways(
    kind: RouteKind, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SETTLED_SECONDS", 0.1)
    consuls = Keepalive(33, 7, 3)
    async with backend(echo) as port, running({}, Limits(remote_keepalive=consuls)) as it:
        it.relay.install(table(Route(WEB, kind, "web", (endpoint(port),))))
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            (open_one,) = it.relay.context.streams
            assert isinstance(open_one, stream.Stream)
            assert open_one.upstream is not None
            sock = open_one.upstream.sock
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            await it.until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1)
            dialled = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]
    assert dialled == ([33, 7, 3] if chosen else [60, 15, 4])
