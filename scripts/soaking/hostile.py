"""Clients that mean no good. None of them may get anything but an alert or the end of its connection."""

import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from typing import Final

import trio

from .ledger import Ledger

_ALERT: Final = 21
_CLIENTS: Final = 40
# The hello may take 15 s, and a gateway may pause meanwhile.
_PATIENCE: Final = 60.0


def _hello(name: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


async def attack(address: tuple[str, int], rng: Random, ledger: Ledger) -> None:
    """A wave of them against one gateway, until the last has been turned away."""
    async with trio.open_nursery() as nursery:
        for _ in range(_CLIENTS):
            nursery.start_soon(_client, address, Random(rng.random()), ledger)


async def _client(address: tuple[str, int], rng: Random, ledger: Ledger) -> None:
    kind = rng.choice(
        ("garbage", "half hello", "dripping hello", "nobody's name", "plain text", "huge hello", "silent")
    )
    ledger.hostile[kind] += 1
    answer = bytearray()
    with trio.move_on_after(_PATIENCE) as scope, suppress(OSError, trio.BrokenResourceError):
        async with await trio.open_tcp_stream(*address) as stream:
            with suppress(trio.BrokenResourceError):
                async for piece in _pieces(kind, rng):
                    await stream.send_all(piece)
                if rng.random() < 0.3:
                    await stream.send_eof()
            async for data in stream:
                answer += data
    if scope.cancelled_caught:
        ledger.violation(f"a hostile client ({kind}) was kept for {_PATIENCE:g} s")
    if answer and (answer[0] != _ALERT or len(answer) != 7):
        ledger.violation(f"a hostile client ({kind}) got an answer: {bytes(answer[:40]).hex()}")


async def _pieces(kind: str, rng: Random) -> AsyncIterator[bytes]:
    hello = _hello(f"nobody-{rng.randrange(1000)}.default.dc2.internal.nowhere.consul")
    match kind:
        case "garbage":
            yield rng.randbytes(rng.randint(1, 50_000))
        case "half hello":
            yield hello[: rng.randrange(1, len(hello))]
        case "dripping hello":
            for at in range(len(hello)):
                yield hello[at : at + 1]
                await trio.sleep(0.1)
        case "nobody's name":
            yield hello
        case "plain text":
            yield b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
        case "huge hello":
            yield b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + rng.randbytes(16_000)
        case _:
            return
