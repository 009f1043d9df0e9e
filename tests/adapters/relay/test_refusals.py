"""What a client sees that is not carried: an alert where it spoke TLS, a close, and never a byte of another route."""

import socket

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.core.reasons import Reason, StreamEnd, alert_record

from .streams import WEB, Running, backend, echo, endpoint, hello_for, named, receive_all, receive_exactly, running

UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"
INTERNAL_ERROR = b"\x15\x03\x03\x00\x02\x02\x50"


async def refused_answer(gateway: Running, data: bytes) -> bytes:
    """Send bytes, and return everything that comes back until the gateway closes."""
    async with await gateway.dial() as client:
        await client.send_all(data)
        with trio.fail_after(10):
            return await receive_all(client)


@pytest.mark.parametrize(
    ("data", "answer", "reason"),
    [
        (hello_for("db.default.dc1.internal.elsewhere.consul"), UNRECOGNIZED_NAME, Reason.UNKNOWN_SNI),
        (hello_for(None), UNRECOGNIZED_NAME, Reason.NO_SNI),
        (hello_for(WEB)[:5] + b"\x01\x00\x00\x02\x03\x03" + bytes(600), DECODE_ERROR, Reason.HELLO_MALFORMED),
        (b"\x16\x03\x01\x40\x00\x01\x00\xff\xff", DECODE_ERROR, Reason.HELLO_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: web\r\n\r\n", b"", Reason.NOT_TLS),
        (b"\x80\x2e\x01\x00\x02" + bytes(43), b"", Reason.NOT_TLS),
    ],
    ids=["unknown", "no-name", "malformed", "too-large", "plain-text", "sslv2"],
)
async def test_bad_start_is_answered_and_closed(data: bytes, answer: bytes, reason: Reason) -> None:
    async with backend(named(b"secret")) as port, running({WEB: [endpoint(port)]}) as gateway:
        assert await refused_answer(gateway, data) == answer
        assert [refusal.reason for refusal in gateway.refused] == [reason]
        assert gateway.counters().refused == {reason: 1}
        assert gateway.counters().connections == {}
        await gateway.until(lambda: gateway.active == 0)


async def test_alert_arrives_although_the_client_goes_on_sending() -> None:
    async with running({}) as gateway, await gateway.dial() as client:
        await client.send_all(hello_for(WEB) + bytes(30_000))
        await client.send_all(bytes(30_000))
        assert await receive_exactly(client, 7) == UNRECOGNIZED_NAME


async def test_refused_client_that_never_closes_is_closed_after_the_linger_time() -> None:
    async with running({}) as gateway, await gateway.dial() as client:
        await client.send_all(hello_for(WEB))
        assert await receive_all(client) == UNRECOGNIZED_NAME
        await gateway.until(lambda: gateway.active == 0)


async def test_half_a_hello_times_out_with_an_alertless_close() -> None:
    async with running({}, Limits(hello_timeout=0.2)) as gateway:
        assert await refused_answer(gateway, hello_for(WEB)[:100]) == b""
        assert [refusal.reason for refusal in gateway.refused] == [Reason.HELLO_TIMEOUT]


async def test_slow_hello_is_not_prolonged_by_each_byte() -> None:
    async with running({}, Limits(hello_timeout=0.3)) as gateway, await gateway.dial() as client:
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            for position in range(100):
                await client.send_all(hello_for(WEB)[position : position + 1])
                await trio.sleep(0.03)
        assert [refusal.reason for refusal in gateway.refused] == [Reason.HELLO_TIMEOUT]


async def test_client_that_closes_inside_its_hello_is_refused() -> None:
    async with running({}) as gateway, await gateway.dial() as client:
        await client.send_all(hello_for(WEB)[:50])
        await client.send_eof()
        assert await receive_all(client) == DECODE_ERROR
        assert [refusal.reason for refusal in gateway.refused] == [Reason.HELLO_MALFORMED]


async def test_health_check_that_connects_and_closes_is_no_refusal() -> None:
    async with running({}) as gateway:
        await (await gateway.dial()).aclose()
        await gateway.until(lambda: gateway.counters().accepted == 1 and gateway.active == 0)
        assert gateway.refused == []


async def test_limit_of_connections_sheds_and_recovers() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, Limits(max_connections=2)) as gateway:
        async with await gateway.dial() as first, await gateway.dial() as second:
            for client in (first, second):
                await client.send_all(hello_for(WEB))
                await receive_exactly(client, 100)
            await gateway.until(lambda: gateway.active == 2)
            async with await gateway.dial() as third:
                assert await receive_all(third) == b""
            assert [refusal.reason for refusal in gateway.refused] == [Reason.MAX_CONNECTIONS]
        await gateway.until(lambda: gateway.active == 0)
        async with await gateway.dial() as client:
            await client.send_all(hello_for(WEB))
            assert len(await receive_exactly(client, 100)) == 100


async def test_limit_per_client_counts_clients_apart() -> None:
    async with running({}, Limits(max_connections_per_client=1)) as gateway, await gateway.dial():
        await gateway.until(lambda: gateway.active == 1)
        async with await gateway.dial() as second:
            assert await receive_all(second) == b""
        assert [refusal.reason for refusal in gateway.refused] == [Reason.MAX_CONNECTIONS_PER_CLIENT]
        # A client that gets no slot has its line in the access log, too.
        assert [(record.reason, record.end, record.bytes_received) for record in gateway.ended] == [
            ("max_connections_per_client", StreamEnd.REFUSED, 0)
        ]
        with trio.socket.socket() as other:
            await other.bind(("127.0.0.2", 0))
            await other.connect(("127.0.0.1", gateway.port))
            await gateway.until(lambda: gateway.active == 2)
        await gateway.until(lambda: gateway.active == 1)


async def test_client_that_resets_during_its_hello_leaves_nothing_behind() -> None:
    async with running({}) as gateway:
        client = await gateway.dial()
        await client.send_all(b"\x16\x03\x01")
        await gateway.until(lambda: gateway.active == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await client.aclose()
        await gateway.until(lambda: gateway.active == 0)
        assert gateway.refused == []


def test_every_reason_has_the_alert_of_the_contract() -> None:
    unrecognized = {Reason.NO_SNI, Reason.UNKNOWN_SNI}
    assert {reason for reason in Reason if alert_record(reason) == UNRECOGNIZED_NAME} == unrecognized
    for reason in (Reason.NO_HEALTHY_ENDPOINT, Reason.CONNECT_FAILED, Reason.CONNECT_TIMEOUT):
        assert alert_record(reason) == INTERNAL_ERROR
