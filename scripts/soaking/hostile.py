"""Clients that mean no good, and what wears a gateway out from other sides.

None of the strangers may get anything but an alert or the end of its connection, and no stream of the others may break
or be refused for what they do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random
from signal import SIGCONT, SIGHUP
from typing import Final

import httpx
import msgspec
import trio

from . import kernel
from .ledger import Ledger
from .messages import PLAIN, PlainStream, Sender, hello_for
from .stage import Stage
from .traffic import shut_hard

_ALERT: Final = 21
_CLIENTS: Final = 40
# The hello may take 15 s, and a gateway may pause meanwhile.
_PATIENCE: Final = 60.0


# Of the floods: tasks at once, and the seconds of one.
_AT_ONCE: Final = 16
_FLOOD_SECONDS: Final = 4.0
# A hundred messages each: far more than a parent takes from an honest worker.
_FLOOD: Final = 1000
_HELD: Final = 150
_PAGES: Final = (
    "/routes",
    "/metrics",
    "/connections",
    "/clusters",
    "/config_dump",
    "/dashboard/state",
    "/explain?sni=x",
)
_Client = Callable[[trio.SocketStream], Awaitable[None]]


async def strangers(stage: Stage, datacenter: str) -> None:
    """Garbage, half hellos, dripping hellos, names of nobody: a wave of them, until the last has been turned away."""
    address, rng = stage.gateway(datacenter).address, stage.rng
    async with trio.open_nursery() as nursery:
        for _ in range(_CLIENTS):
            nursery.start_soon(_client, address, Random(rng.random()), stage.ledger)


async def worker_taken_over(stage: Stage, datacenter: str) -> None:
    """A worker says what no honest one says: it is replaced, its streams end, and nothing else comes of it."""
    gateway = stage.gateway(datacenter)
    pid = stage.rng.choice(gateway.workers)
    if not await kernel.stop(pid):
        return
    # It stays stopped, so that what it carries at its end is what it carries now.
    channel = kernel.channel_of(pid, gateway.child.pid)
    if channel is None:
        kernel.send(pid, SIGCONT)
        return
    kind = stage.rng.choice(list(_SAID_BY_A_ROGUE))
    stage.ledger.death("worker taken over", kernel.legs_of_stopped([pid]))
    stage.ledger.note(f"worker {pid} of {gateway.instance} is taken over, and says: {kind}")
    stage.ledger.shock("worker taken over", f"behind {datacenter}")
    stage.ledger.hostile[f"rogue worker: {kind}"] += 1
    said = trio.SocketStream(trio.socket.from_stdlib_socket(channel))
    with trio.move_on_after(_FLOOD_SECONDS), suppress(trio.BrokenResourceError):
        for _ in range(_FLOOD if kind == "flood" else 1):
            await said.send_all(_SAID_BY_A_ROGUE[kind])
    await said.aclose()
    await gateway.until_workers(_PATIENCE, without=pid)
    if not gateway.child.running:
        stage.ledger.violation(f"the parent of {gateway.instance} ended with a rogue worker ({kind})")


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(4) + message


def _said(message: object) -> bytes:
    return _framed(msgspec.msgpack.encode(message))


# Built as the messages of `adapters/relay/messages.py` are, with what its decoder has to refuse.
_SAID_BY_A_ROGUE: Final = {
    "noise": _framed(bytes(range(256)) * 4),
    "4 GiB": b"\xff" * 4 + bytes(1 << 16),
    "nested": _framed(b"\x82\xa4type\xa7LogLine\xa1x" + b"\x91" * 200_000),
    "unknown message": _said({"type": "Reboot"}),
    "not a number": _said(
        {"type": "StatsReport", "counters": {"active": float("nan")}, "refused": [], "ended": [], "dropped": 0}
    ),
    "below nothing": _said(
        {"type": "StatsReport", "counters": {"active": -(1 << 62)}, "refused": [], "ended": [], "dropped": 0}
    ),
    "flood": _said({"type": "Lookup", "name": "x" * 250, "client": "::1"}) * 100,
}


async def urgent_data(stage: Stage, _datacenter: str) -> None:
    """For a while the quick streams have urgent data between their bytes."""
    assert stage.traffic is not None
    stage.traffic.urgent = True
    await trio.sleep(_FLOOD_SECONDS)
    stage.traffic.urgent = False


async def hello_flood(stage: Stage, datacenter: str) -> None:
    """Whole hellos of strangers, as many as can be sent."""
    hello = hello_for("web.default.dc1.internal.nowhere.consul")

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(hello)
        await stream.receive_some()

    await _flood(stage, datacenter, "flood of hellos", client)


async def unknown_names(stage: Stage, datacenter: str) -> None:
    """Names that might be services of this datacenter, each another one: a gateway would ask Consul for them."""
    domain = stage.federation.trust_domain
    hello, number = hello_for(f"x0000000.default.{datacenter}.internal.{domain}"), 0

    async def client(stream: trio.SocketStream) -> None:
        nonlocal number
        number += 1
        await stream.send_all(hello.replace(b"x0000000", b"x%07d" % number))
        with trio.move_on_after(1):
            await stream.receive_some()

    await _flood(stage, datacenter, "flood of unknown names", client)


async def resets(stage: Stage, datacenter: str) -> None:
    """Clients that reset right behind a good hello, again and again."""
    hello = hello_for(_name(stage, datacenter))

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(hello)
        await trio.sleep(stage.rng.choice((0, 0, 0.01)))
        shut_hard(stream)

    await _flood(stage, datacenter, "resets behind a hello", client)


async def first_flights_held(stage: Stage, datacenter: str) -> None:
    """Clients that send a good hello, read the answer, and say nothing more."""
    hello = hello_for(_name(stage, datacenter))

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(hello)
        while await stream.receive_some():
            pass

    await _hold(stage, datacenter, "first flight held", client)


async def half_closed(stage: Stage, datacenter: str) -> None:
    """Clients that close their side behind a good hello, and stay."""
    hello = hello_for(_name(stage, datacenter))

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(hello)
        await stream.send_eof()
        while await stream.receive_some():
            pass
        await trio.sleep_forever()

    await _hold(stage, datacenter, "half-closed", client)


async def stalled_readers(stage: Stage, datacenter: str) -> None:
    """Clients that ask for much and read nothing."""
    service = _service(stage, datacenter)
    hello = hello_for(_name(stage, datacenter, service), PLAIN.decode())
    plan = b'{"seed": 1, "down": [' + b", ".join([b"[60000, 0]"] * 40) + b"]}"

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(hello)
        await Sender(PlainStream(stream), service).send(plan)
        await trio.sleep_forever()

    await _hold(stage, datacenter, "stalled reader", client)


async def dear_pages(stage: Stage, datacenter: str) -> None:
    """Those who look at a gateway ask for its dearest pages without a pause."""
    gateway = stage.gateway(datacenter)

    async def look(page: str) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await gateway.page(page)
            stage.ledger.hostile["dear page"] += 1

    with trio.move_on_after(_FLOOD_SECONDS):
        async with trio.open_nursery() as nursery:
            for page in _PAGES:
                nursery.start_soon(look, page)


async def hangups(stage: Stage, datacenter: str) -> None:
    """SIGHUP again and again: settings, log files, token and certificates are read anew, and nothing else happens."""
    gateway = stage.gateway(datacenter)
    for _ in range(30):
        gateway.child.signal(SIGHUP)
        await trio.sleep(stage.rng.uniform(0, 0.1))


async def resolvers_written(stage: Stage, datacenter: str) -> None:
    """A service-resolver with a subset is written and deleted again and again: tables change, and no stream ends."""
    service = _service(stage, datacenter)
    consul = stage.federation.dc1
    for number in range(6):
        subsets = {"v1": {"Filter": f"Service.ID != {number}"}}
        entry = {"Kind": "service-resolver", "Name": service, "ConnectTimeout": "5s", "Subsets": subsets}
        await consul.put("/v1/config", entry)
        await trio.sleep(stage.rng.uniform(0.1, 0.5))
        await consul.delete(f"/v1/config/service-resolver/{service}")


def _service(stage: Stage, datacenter: str) -> str:
    return stage.instance(datacenter).service


def _name(stage: Stage, datacenter: str, service: str = "") -> str:
    service = service or _service(stage, datacenter)
    return f"{service}.default.{datacenter}.internal.{stage.federation.trust_domain}"


async def _flood(stage: Stage, datacenter: str, what: str, client: _Client) -> None:
    """One client after another in each of several tasks."""
    address = stage.gateway(datacenter).address

    async def again_and_again() -> None:
        while True:
            await _visit(address, client)
            stage.ledger.hostile[what] += 1

    with trio.move_on_after(_FLOOD_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(again_and_again)


async def _hold(stage: Stage, datacenter: str, what: str, client: _Client) -> None:
    """Many at once, which stay for a while and then are gone without a word."""
    address = stage.gateway(datacenter).address
    stage.ledger.hostile[what] += _HELD
    with trio.move_on_after(stage.rng.uniform(2, 12)):
        async with trio.open_nursery() as nursery:
            for _ in range(_HELD):
                nursery.start_soon(_visit, address, client)


async def _visit(address: tuple[str, int], client: _Client) -> None:
    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        async with await trio.open_tcp_stream(*address) as stream:
            await client(stream)


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
    hello = hello_for(f"nobody-{rng.randrange(1000)}.default.dc2.internal.nowhere.consul")
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
