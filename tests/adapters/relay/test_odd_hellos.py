"""Odd hellos over a real socket: with the relay between them a real TLS client and server fare as they do without it.

The client is OpenSSL; its ClientHello is rewritten on the wire into other records, or into another legal or illegal
message. A hello rewritten as a message fails the handshake in the end, because both sides hash what they saw; so there
the first record that the server answers with is what is compared.
"""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from meshgate.adapters.relay import Limits
from tests.core.hellos import (
    client_context,
    extension,
    key_share,
    numbers,
    openssl_hello,
    record,
    records,
    server_name,
    vector,
)
from tests.core.test_hello_against_openssl import self_signed

from .streams import WEB, backend, endpoint, running

ALERT, HANDSHAKE = 21, 22


def of_any_version(context: ssl.SSLContext, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> None:
    """Let a context speak TLS 1.0, too, with the signatures that has."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest


@cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_any_version(context)
    with TemporaryDirectory() as folder:
        context.load_cert_chain(self_signed(Path(folder)))
    return context


async def tls_server(stream: trio.SocketStream) -> None:
    """Shakes hands, echoes one message; a hello that it does not like gets OpenSSL's alert."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server_context().wrap_bio(incoming, outgoing, server_side=True)

    async def step(operation: Callable[[], object]) -> object:
        while True:
            wanted: ssl.SSLError | None = None
            result: object = None
            try:
                result = operation()
            except ssl.SSLError as error:
                wanted = error
            if outgoing.pending:
                await stream.send_all(outgoing.read())
            if wanted is None:
                return result
            if not isinstance(wanted, ssl.SSLWantReadError):
                raise wanted
            data = await stream.receive_some()
            if not data:
                raise trio.BrokenResourceError
            incoming.write(data)

    with contextlib.suppress(ssl.SSLError, trio.BrokenResourceError):
        await step(tls.do_handshake)
        message = await step(lambda: tls.read(100))
        await step(lambda: tls.write(b"echo " + message))  # type: ignore[operator]
    # The alert must not be lost to a reset.
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_eof()
        with trio.move_on_after(1):
            while await stream.receive_some():
                pass


async def with_records(port: int, sizes: Iterable[int], context: ssl.SSLContext | None = None) -> bytes:
    """A whole conversation of OpenSSL whose ClientHello travels in records of these sizes; the echo."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = (context or client_context()).wrap_bio(incoming, outgoing, server_hostname=WEB)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = records(outgoing.read()[5:], sizes)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(hello)
        await shake(tls, stream, incoming, outgoing)
        tls.write(b"hello")
        await stream.send_all(outgoing.read())
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return tls.read(100)
            data = await stream.receive_some()
            if not data:
                raise trio.BrokenResourceError
            incoming.write(data)


async def shake(
    tls: ssl.SSLObject, stream: trio.SocketStream, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await stream.send_all(outgoing.read())
            data = await stream.receive_some()
            if not data:
                raise trio.BrokenResourceError from None
            incoming.write(data)
        else:
            await stream.send_all(outgoing.read())
            return


async def outcome(port: int, wire: bytes, piece: int = 1 << 20) -> str:
    """What the first record of the answer is: `alert`, `handshake`, or `nothing` where there is none."""
    answer = b""
    with trio.move_on_after(5):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(trio.BrokenResourceError):
                for at in range(0, len(wire), piece):
                    await stream.send_all(wire[at : at + piece])
                    if piece < len(wire):
                        await trio.lowlevel.checkpoint()
                await stream.send_eof()
                while len(answer) < 5 and (data := await stream.receive_some()):
                    answer += data
    return {ALERT: "alert", HANDSHAKE: "handshake"}.get(answer[0], "?") if answer else "nothing"


def odd_server() -> contextlib.AbstractAsyncContextManager[int]:
    return backend(tls_server)


# --- messages ----------------------------------------------------------------------------------------------------


def parts_of(stream: bytes) -> tuple[bytes, list[bytes]]:
    """A hello in one record: its fields up to the extensions, and the extensions."""
    message = stream[9:]
    at = 34
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2])
    at += 1 + message[at]
    rest, found = message[at + 2 :], list[bytes]()
    while rest:
        length = 4 + int.from_bytes(rest[2:4])
        found.append(rest[:length])
        rest = rest[length:]
    return message[:at], found


def rebuilt(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """OpenSSL's hello for WEB with other extensions, in records as large as allowed."""
    fields, found = parts_of(openssl_hello(WEB))
    body = fields + vector(2, b"".join(change(found)))
    return records(b"\x01" + vector(3, body), [1 << 14])


def without(kind: int, found: list[bytes]) -> list[bytes]:
    return [each for each in found if each[:2] != numbers(kind)]


# pre_shared_key must be last and is not here, so whatever comes at the end is in its place.
MESSAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "as it is": lambda found: found,
    "in reverse": lambda found: found[::-1],
    "padded by 1": lambda found: [*found, extension(21, bytes(1))],
    "padded by 9000": lambda found: [*found, extension(21, bytes(9000))],
    "padded by 40000": lambda found: [*found, extension(21, bytes(40000))],
    "padded in front": lambda found: [extension(21, bytes(500)), *found],
    "padding that is not zero": lambda found: [*found, extension(21, b"\xff" * 100)],
    "padded twice": lambda found: [*found, extension(21, bytes(10)), extension(21, bytes(10))],
    "two names": lambda found: [*found, server_name(WEB.encode())],
    "two different names": lambda found: [server_name(b"other.example"), *found],
    "every extension twice": lambda found: [*found, *found],
    "many unknown extensions": lambda found: [*found, *(extension(0x4000 + n, b"x" * 20) for n in range(200))],
    "grease": lambda found: [extension(0x0A0A), *found, extension(0x7A7A, b"\0")],
    "empty key share": lambda found: [*without(51, found), key_share()],
    "no versions": lambda found: without(43, found),
    "no groups": lambda found: without(10, found),
    "no signature algorithms": lambda found: without(13, found),
    "cut extension": lambda found: [*found[:-1], found[-1][:-1]],
    "trailing byte": lambda found: [*found, b"\0"],
    "two names in one extension": lambda found: [
        *without(0, found),
        extension(0, vector(2, 2 * (b"\0" + vector(2, WEB.encode())))),
    ],
    "name with a null": lambda found: [*without(0, found), server_name(WEB.encode() + b"\0x")],
    "empty name": lambda found: [*without(0, found), server_name(b"")],
    "empty list of names": lambda found: [*without(0, found), extension(0, vector(2, b""))],
    "name of another type first": lambda found: [
        *without(0, found),
        extension(0, vector(2, b"\x01" + vector(2, b"x") + b"\0" + vector(2, WEB.encode()))),
    ],
}

# OpenSSL serves whoever asks for no name; a relay knows no way for such a stream.
NAMELESS = ("empty name",)

LIMITS = Limits(max_hello_bytes=1 << 17)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("piece", [1 << 20, 7])
async def test_an_odd_message_fares_as_without_the_relay(name: str, piece: int) -> None:
    wire = rebuilt(MESSAGES[name])
    async with odd_server() as direct, running({WEB: [endpoint(direct)]}, LIMITS) as relay:
        with_relay, alone = await outcome(relay.port, wire, max(piece, len(wire) // 200)), await outcome(direct, wire)
        assert with_relay == ("alert" if name in NAMELESS else alone)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9, 10, 16, 50, 100, 255, 256, 300, 16384])
async def test_a_hello_in_records_of_any_size_shakes_hands_through_the_relay(size: int) -> None:
    async with odd_server() as direct, running({WEB: [endpoint(direct)]}, LIMITS) as relay:
        results = []
        for port in (direct, relay.port):
            try:
                results.append(await with_records(port, [size]))
            except (ssl.SSLError, trio.BrokenResourceError):
                results.append(b"refused")
    alone, with_relay = results
    if len(openssl_hello(WEB)) - 5 > 256 * size:
        assert with_relay == b"refused"  # As many records as no client makes of a hello.
    else:
        assert alone == with_relay == b"echo hello"


async def test_records_of_mixed_sizes_shake_hands_through_the_relay() -> None:
    async with odd_server() as direct, running({WEB: [endpoint(direct)]}, LIMITS) as relay:
        assert await with_records(relay.port, [1, 4, 2, 100, 3]) == b"echo hello"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_old_versions_are_passed_on(version: ssl.TLSVersion) -> None:
    context = client_context()
    of_any_version(context, version)
    async with odd_server() as direct, running({WEB: [endpoint(direct)]}, LIMITS) as relay:
        assert await with_records(relay.port, [1 << 14], context) == b"echo hello"


WIRES: dict[str, Callable[[bytes], bytes]] = {
    "an empty record first": lambda hello: record(b"") + hello,
    "an empty record inside": lambda hello: record(hello[5:40]) + record(b"") + record(hello[40:]),
    "an alert inside": lambda hello: record(hello[5:40]) + b"\x15\x03\x01\x00\x02\x01\x00" + record(hello[40:]),
    "another type inside": lambda hello: record(hello[5:40]) + record(hello[40:], kind=23),
    "a record too long": lambda hello: record(hello[5:] + bytes(17000)),
    "version 3.0 in the record": lambda hello: record(hello[5:], version=0x0300),
    "version 3.4 in the record": lambda hello: record(hello[5:], version=0x0304),
    "version 2.0 in the record": lambda hello: record(hello[5:], version=0x0200),
    "a byte behind the hello": lambda hello: record(hello[5:] + b"\0"),
    "two hellos in one record": lambda hello: record(hello[5:] * 2),
    "a ServerHello": lambda hello: record(b"\x02" + hello[6:]),
    "half of it": lambda hello: hello[: len(hello) // 2],
    "plain text": lambda _hello: b"GET / HTTP/1.0\r\n\r\n",
}

# No client sends them, and no record without content is let through wherever it stands: see `core.hello`.
STRICTER = ("an empty record first", "an empty record inside")


@pytest.mark.parametrize("name", WIRES)
async def test_odd_records_never_fare_better_with_the_relay(name: str) -> None:
    wire = WIRES[name](openssl_hello(WEB))
    async with odd_server() as direct, running({WEB: [endpoint(direct)]}, LIMITS) as relay:
        with_relay, alone = await outcome(relay.port, wire), await outcome(direct, wire)
        refused = {"alert", "nothing"}
        assert (with_relay == alone) or with_relay in refused
        assert alone in refused or with_relay == ("alert" if name in STRICTER else alone)
