"""Who may hold a slot, and how long: hellos with nothing behind them, dead peers, half-closed streams, one client."""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from meshgate.adapters.relay import Limits, sockets
from meshgate.adapters.relay.circuit_breakers import CircuitBreakers, Ticket
from meshgate.adapters.relay.shared_counts import CountRows, SharedCounts
from meshgate.core.proxy_config import KEEPALIVE_UNSET, Keepalive
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable
from tests.adapters.mesh_ca import mesh_root
from tests.harness.tls import mesh_context

from .streams import (
    TRUST_DOMAIN,
    WEB,
    Running,
    backend,
    echo,
    endpoint,
    hello_for,
    receive_all,
    receive_exactly,
    running,
    table_of,
)

HELLO = hello_for(WEB)
ATTACKER = "127.0.0.7"


async def dial(gateway: Running, source: str) -> trio.SocketStream:
    sock = trio.socket.socket()
    await sock.bind((source, 0))
    await sock.connect(("127.0.0.1", gateway.port))
    return trio.SocketStream(sock)


@asynccontextmanager
async def sidecar(folder: Path) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """An endpoint as a mesh has it, which wants a certificate and echoes: its port, and what its callers use."""
    root = mesh_root()
    leaf = root.leaf("spiffe://td.consul/ns/default/dc/dc1/svc/web")
    json = {"CertPEM": leaf.pem, "PrivateKeyPEM": leaf.key_pem}, {"Roots": [{"RootCert": root.pem}]}
    serving = mesh_context(*json, folder, server=True)

    async def serve(stream: trio.SocketStream) -> None:
        await echo_tls(trio.SSLStream(stream, serving, server_side=True, https_compatible=True))

    async with backend(serve) as port:
        yield port, mesh_context(*json, folder)


async def echo_tls(tls: "trio.SSLStream[trio.SocketStream]") -> None:
    async for chunk in tls:
        await tls.send_all(chunk)


async def call(gateway: Running, context: ssl.SSLContext) -> "trio.SSLStream[trio.SocketStream]":
    """A stream with its handshake done, and an answer."""
    stream = await gateway.dial()
    tls = trio.SSLStream(stream, context, server_hostname=WEB, https_compatible=True)
    try:
        await tls.send_all(b"hello")
        assert await tls.receive_some() == b"hello"
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def owe(gateway: Running) -> int:
    """How many streams' clients have owed a byte for so long that they may go."""
    context = gateway.relay.context
    since = [stream.silent_since for stream in context.streams]
    return sum(each is not None and each <= context.reactor.clock() for each in since)


# --- hellos with nothing behind them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("from_", [0, 20], ids=["no-limit-per-client", "a-quarter-each"])
async def test_hellos_with_nothing_behind_them_keep_no_one_from_being_served(tmp_path: Path, from_: int) -> None:
    slots = 40
    limits = Limits(max_connections=slots, max_connections_per_client=from_ and slots // 4, crowded_from=from_)
    async with sidecar(tmp_path) as (port, context), running({WEB: [endpoint(port)]}, limits) as gateway:
        attackers = []
        for _ in range(slots + 2):
            attackers.append(await dial(gateway, ATTACKER))
            with contextlib.suppress(trio.BrokenResourceError):
                await attackers[-1].send_all(HELLO)
        await gateway.until(lambda: gateway.active >= (from_ or slots - 2))
        if not from_:
            # The endpoint has answered all of them, and for a while it has been their clients' turn.
            await gateway.until(lambda: owe(gateway) >= slots - 2)
        else:
            assert {refused.reason for refused in gateway.refused} == {Reason.MAX_CONNECTIONS_PER_CLIENT}
            assert gateway.active == from_
        for _ in range(20):
            await (await call(gateway, context)).aclose()
        if not from_:
            assert {record.flags for record in gateway.ended if record.reason is None} == {"", "OM"}
        for attacker in attackers:
            await attacker.aclose()
        await gateway.until(lambda: gateway.active == 0)
        assert gateway.counters().internal_errors == 0


async def test_client_without_a_second_flight_is_cut_at_the_latest_after_the_handshake_timeout(tmp_path: Path) -> None:
    limits = Limits(handshake_timeout=0.5)
    async with sidecar(tmp_path) as (port, context), running({WEB: [endpoint(port)]}, limits) as gateway:
        honest = await call(gateway, context)
        async with await gateway.dial() as attacker:
            await attacker.send_all(HELLO)
            with trio.fail_after(20):
                assert (await receive_all(attacker))[0] == 22, "the endpoint's first flight"
        # It has lived longer, and has been as quiet; but its handshake is done.
        await honest.send_all(b"still here")
        assert await honest.receive_some() == b"still here"
        assert [(record.flags, record.bytes_received) for record in gateway.ended] == [("SI", len(HELLO))]
        await honest.aclose()


async def test_while_the_endpoint_has_not_answered_it_is_not_the_clients_turn() -> None:
    asked, answer = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        hello = await receive_exactly(stream, len(HELLO))
        if asked.is_set():
            await stream.send_all(hello)
            await trio.sleep_forever()
        asked.set()
        await answer.wait()
        await stream.send_all(hello)
        await echo(stream)

    limits = Limits(handshake_timeout=1.0)
    async with backend(slow) as port, running({WEB: [endpoint(port)]}, limits) as gateway:
        async with await gateway.dial() as patient, await gateway.dial() as attacker:
            await patient.send_all(HELLO)
            await asked.wait()
            await attacker.send_all(HELLO)
            with trio.fail_after(20):
                assert await receive_all(attacker) == HELLO
            answer.set()
            assert await receive_exactly(patient, len(HELLO)) == HELLO
            await patient.send_all(b"finished")
            assert await receive_exactly(patient, 8) == b"finished"


async def test_endpoint_that_never_answers_is_not_waited_for_until_the_idle_timeout() -> None:
    async def never(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    limits = Limits(handshake_timeout=0.1)
    async with backend(never) as port, running({WEB: [endpoint(port)]}, limits) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            with trio.fail_after(20):
                assert await receive_all(client) == b""


# --- half-closed streams and dead peers ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "endpoint"])
async def test_half_closed_stream_has_a_timeout_of_its_own(side: str) -> None:
    async def stay(stream: trio.SocketStream) -> None:
        await stream.send_all(await receive_exactly(stream, len(HELLO) + 1))
        if side == "endpoint":
            await stream.send_eof()
        await trio.sleep_forever()

    limits = Limits(half_close_timeout=0.3, handshake_timeout=0.0)
    async with backend(stay) as port, running({WEB: [endpoint(port)]}, limits) as gateway:
        async with await gateway.dial() as open_, await gateway.dial() as client:
            for each in (client, open_) if side == "client" else (client,):
                await each.send_all(HELLO + b"x")
                assert await receive_exactly(each, len(HELLO) + 1) == HELLO + b"x"
            if side == "client":
                await client.send_eof()
            with trio.fail_after(20):
                assert await receive_all(client) == b""
                await gateway.until(lambda: len(gateway.ended) == 1)
            assert gateway.ended[0].flags == "SI"
            assert gateway.active == 1
        await gateway.until(lambda: gateway.active == 0)


async def test_clients_sockets_inherit_all_that_notices_a_dead_peer() -> None:
    async with running({}, Limits(keepalive=20.0, user_timeout=40.0)) as gateway, await gateway.dial():
        await gateway.until(lambda: gateway.active == 1)
        (stream,) = gateway.relay.context.streams
        sock = stream.client.sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000


@pytest.mark.parametrize(
    ("keepalive", "user_timeout", "chosen", "found"),
    [
        (60.0, 0.0, KEEPALIVE_UNSET, 0),
        (60.0, 300.0, KEEPALIVE_UNSET, 300_000),
        (60.0, 300.0, Keepalive(33, 7, 3), 300_000),
        (0.0, 30.0, KEEPALIVE_UNSET, 30_000),
    ],
)
def test_peer_that_owes_acknowledgments_has_the_user_timeout(
    keepalive: float, user_timeout: float, chosen: Keepalive, found: int
) -> None:
    with closing(socket.socket()) as sock:
        sockets.keep_alive(sock, keepalive, user_timeout, chosen)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == found


async def test_client_that_takes_nothing_any_more_is_ended_by_the_user_timeout() -> None:
    async def pour(stream: trio.SocketStream) -> None:
        await receive_exactly(stream, len(HELLO))
        while True:
            await stream.send_all(bytes(1 << 16))

    async with backend(pour) as port, running({WEB: [endpoint(port)]}, Limits(user_timeout=1.0)) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            await gateway.until(lambda: len(gateway.ended) == 1, 60)
            assert gateway.ended[0].flags == "DC"


# --- one client ------------------------------------------------------------------------------------------------------


async def test_share_of_a_client_holds_while_many_slots_are_in_use() -> None:
    limits = Limits(max_connections=100, max_connections_per_client=2, crowded_from=4)
    async with running({}, limits) as gateway:
        mine = [await dial(gateway, ATTACKER) for _ in range(4)]
        await gateway.until(lambda: gateway.active == 4)
        async with await dial(gateway, ATTACKER) as over, await gateway.dial():
            assert await receive_all(over) == b""
            await gateway.until(lambda: gateway.active == 5)
        assert [(refused.client, refused.reason) for refused in gateway.refused] == [
            (ATTACKER, Reason.MAX_CONNECTIONS_PER_CLIENT)
        ]
        for client in mine:
            await client.aclose()


@pytest.mark.parametrize("kind", [RouteKind.DATACENTER, RouteKind.PARTITION, RouteKind.PEER_IMPORT])
async def test_gateways_elsewhere_have_no_limit_as_soon_as_the_table_has_them(kind: RouteKind) -> None:
    limits = Limits(max_connections_per_client=1, max_connection_rate_per_client=1)
    name = f"dc2.internal.{TRUST_DOMAIN}"
    endpoints = (endpoint(443, address="no:address"), endpoint(443, address=ATTACKER))
    route = Route(name, kind, "dc2", endpoints, suffix=kind is not RouteKind.PEER_IMPORT)
    async with running({}, limits) as gateway, await dial(gateway, ATTACKER):
        await gateway.until(lambda: gateway.active == 1)
        async with await dial(gateway, ATTACKER) as over:
            assert await receive_all(over) == b""
        gateway.relay.install(RouteTable.of("dc1", TRUST_DOMAIN, "default", iter((route,))))
        async with await dial(gateway, ATTACKER), await dial(gateway, ATTACKER):
            await gateway.until(lambda: gateway.active == 3)
        await gateway.until(lambda: gateway.active == 1)
        gateway.relay.install(RouteTable.of("dc1", TRUST_DOMAIN, "default", iter(())))
        async with await dial(gateway, ATTACKER) as over:
            assert await receive_all(over) == b""


async def test_load_balancers_that_are_named_have_no_limit() -> None:
    networks = ("127.0.0.4/30", "2001:db8::/32")
    limits = Limits(max_connections_per_client=1, max_connection_rate_per_client=1, exempt_clients=networks)
    async with running({}, limits) as gateway, await gateway.dial():
        async with await dial(gateway, ATTACKER), await dial(gateway, ATTACKER):
            await gateway.until(lambda: gateway.active == 3)
        async with await gateway.dial() as over:
            assert await receive_all(over) == b""


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.7", True), ("::ffff:127.0.0.7", True), ("127.0.0.8", False), ("2001:db8::1%eth0", True), ("::1", False)],
)
def test_address_is_in_a_network_however_it_is_written(host: str, named: bool) -> None:
    assert sockets.in_networks(host, ("127.0.0.4/30", "2001:db8::/32")) is named
    assert not sockets.in_networks(host, ())


def test_rate_of_new_streams_of_a_client_is_limited_for_all_workers_together() -> None:
    with closing(CountRows()) as rows:
        taken = [rows.take() for _ in range(2)]
        counts = [SharedCounts(rows.seen_by(row), row, rows.key) for row in taken]
    one, other = (CircuitBreakers(each, lambda: table_of({})) for each in counts)
    limits = Limits(max_connection_rate_per_client=3)

    def admitted(breakers: CircuitBreakers, host: str, now: float) -> bool:
        ticket = breakers.admit(host, limits, lambda _: False, now)
        if isinstance(ticket, Ticket):
            ticket.release()  # It is the beginning of a stream that counts.
            return True
        assert ticket[0] is Reason.MAX_CONNECTIONS_PER_CLIENT
        return False

    assert [admitted(one, ATTACKER, 10.0), admitted(other, ATTACKER, 10.2), admitted(one, ATTACKER, 10.4)] == [True] * 3
    assert not admitted(one, ATTACKER, 10.9)
    assert not admitted(other, ATTACKER, 10.9)
    assert admitted(other, "127.0.0.8", 10.9)
    assert admitted(one, ATTACKER, 11.0)
    assert not admitted(one, ATTACKER, 11.1)
    other.forget_old(11.3)
    assert admitted(one, ATTACKER, 11.3)
    for breakers in (one, other):
        breakers.forget_old(100.0)
    assert one.counts.keyed(f"lately from {ATTACKER}") == 0
