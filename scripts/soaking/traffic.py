"""Callers that open streams of random size and length through random gateways, and judge each of them."""

import json
import socket
import ssl
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Final

import trio
from tests.harness.tls import TlsStream, shake_hands

from meshgate.adapters.mesh_tls import RefusedError, WrongPeerError, peer_of

from .fleet import Fleet
from .ledger import Ledger, Route
from .messages import (
    BROKEN,
    MOST,
    PLAIN,
    DamagedError,
    Duplex,
    OverError,
    PlainStream,
    Receiver,
    Sender,
    hello_for,
    noise,
    spot,
)

# More than the longest pause takes, and the repetitions of what was lost meanwhile.
OPEN_SECONDS: Final = 90.0
_SLACK_SECONDS: Final = 150.0
_QUICK_CALLERS: Final = 48
_RESET: Final = b"\x01\0\0\0\0\0\0\0"
_Plan = list[tuple[int, float]]


def shut_hard(transport: trio.SocketStream) -> None:
    """Close with a reset, as the kernel does for a process that died with unread bytes."""
    with suppress(OSError, trio.ClosedResourceError):
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.socket.close()


class CorruptError(Exception):
    """TLS says that bytes were changed on the way."""


class Traffic:
    """`callers` tasks, each with one stream at a time, and quick streams at a rate of their own.

    `contexts` are the callers' identities by datacenter, `services` the datacenter of each service,
    `pace` what the pauses in streams are multiplied by. While `urgent`, quick streams hold urgent data.
    """

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        contexts: dict[str, ssl.SSLContext],
        services: dict[str, str],
        trust_domain: str,
        seed: int,
        pace: float = 1.0,
    ) -> None:
        self.stopping = False
        self.urgent = False
        self.active: Counter[str] = Counter()
        self._fleet = fleet
        self._ledger = ledger
        self._contexts = contexts
        self._services = services
        self._trust_domain = trust_domain
        self._seed = seed
        self._pace = pace
        self._hellos = {service: hello_for(self.sni(service), PLAIN.decode()) for service in services}
        self._next_quick = 0.0

    async def run(self, callers: int, quick: float) -> None:
        """Opens streams until told to stop, then waits for those that are open. `quick` are begun in a second."""
        self._next_quick = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(callers):
                nursery.start_soon(self._call_on_and_on, Random(f"{self._seed} caller {number}"))
            # Many wait for a gateway that is paused; the others are to go on.
            for number in range(_QUICK_CALLERS if quick else 0):
                nursery.start_soon(self._call_quickly, Random(f"{self._seed} quick {number}"), 1 / quick)

    async def _call_on_and_on(self, rng: Random) -> None:
        await trio.sleep(rng.uniform(0, 2))
        while not self.stopping:
            await self._call(rng)
            await trio.sleep(rng.expovariate(1 / 0.4))

    async def _call_quickly(self, rng: Random, apart: float) -> None:
        while not self.stopping:
            # Nothing is made up for: a machine that is slow gets fewer.
            self._next_quick = max(self._next_quick + apart, trio.current_time())
            await trio.sleep_until(self._next_quick)
            await self._call(rng, quick=True)

    async def _call(self, rng: Random, *, quick: bool = False) -> None:
        service = rng.choice(list(self._services))
        theirs = self._services[service]
        mode = rng.choice(("local", "remote"))
        ours = next(name for name in self._contexts if name != theirs)
        near = self._fleet.taking(ours if mode == "local" else theirs)
        if near:
            gateway = rng.choice(near)
            home = gateway.consul.datacenter
            route = Route(service, mode, gateway.instance, home, theirs if mode == "local" else None)
            self.active[service] += 1
            await self._stream(rng, route, gateway.address, None if quick else self._contexts[ours])
            self.active[service] -= 1

    def sni(self, service: str) -> str:
        """The name that a stream to a service carries."""
        return f"{service}.default.{self._services[service]}.internal.{self._trust_domain}"

    async def _stream(
        self, rng: Random, route: Route, address: tuple[str, int], context: ssl.SSLContext | None
    ) -> None:
        ledger = self._ledger
        ledger.opened += 1
        ledger.streams[f"{route.mode} {route.service}{'' if context else ', quick'}"] += 1
        plan = _Stream(rng, route, ledger, self._pace, quick=context is None)
        try:
            with trio.move_on_after(OPEN_SECONDS + _SLACK_SECONDS + plan.seconds) as scope:
                if context is None:
                    if self.urgent:
                        ledger.hostile["urgent data in a stream"] += 1
                    await plan.open_quickly(address, self._hellos[route.service], urgent=self.urgent)
                else:
                    await plan.open(address, context, self.sni(route.service), self._spiffe(route.service))
                await plan.converse()
                ledger.in_order += 1
            if scope.cancelled_caught:
                ledger.violation(f"a stream stalled: {route}, {plan.progress}")
        except (WrongPeerError, DamagedError, CorruptError) as error:
            ledger.violation(f"{type(error).__name__} on {route}: {error}")
        except BROKEN as error:
            # Deaths are written down before they happen; what the kernel still had under way arrives a little later.
            if plan.left_by_us:
                ledger.breaks["client"] += 1
            elif plan.greeted:
                ledger.broke(route, f"{error!r}, {plan.progress}")
            else:
                ledger.refused(route, repr(error), getattr(error, "alert", None))
        finally:
            plan.close()

    def _spiffe(self, service: str) -> str:
        return f"spiffe://{self._trust_domain}/ns/default/dc/{self._services[service]}/svc/{service}"


class _Stream:
    """One stream of a caller."""

    def __init__(self, rng: Random, route: Route, ledger: Ledger, pace: float, *, quick: bool) -> None:
        self.greeted = False
        self.left_by_us = False
        self._rng = rng
        self._route = route
        self._ledger = ledger
        self._quick = quick
        self._up, self._down = ([(rng.randint(1, 4000), 0.0)] if quick else _plan(rng, pace) for _ in range(2))
        self._leaves = rng.random() < (0.003 if quick else 0.03)
        self._half_closes = rng.random() < 0.5
        self._transport: trio.SocketStream | None = None
        self._stream: Duplex
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None

    @property
    def seconds(self) -> float:
        """How long it takes by its plan."""
        return max(sum(pause for _, pause in plan) for plan in (self._up, self._down))

    @property
    def progress(self) -> str:
        """How far it came."""
        if self._sender is None or self._receiver is None:
            return "not open"
        return f"{self._sender.sent} bytes up, {self._receiver.received} down"

    def close(self) -> None:
        """Counts what it carried, and closes it."""
        if self._sender is not None and self._receiver is not None:
            self._ledger.bytes_up += self._sender.sent
            self._ledger.bytes_down += self._receiver.received
        if self._transport is not None:
            self._transport.socket.close()

    async def open(self, address: tuple[str, int], context: ssl.SSLContext, sni: str, spiffe: str) -> None:
        """Up to the greeting, which must come from the service that the SNI names."""
        with trio.move_on_after(OPEN_SECONDS):
            transport = self._transport = await trio.open_tcp_stream(*address)
            self._route.legs.add(frozenset((spot(*transport.socket.getsockname()), spot(*address))))
            stream = TlsStream(transport, context, sni=sni)
            self._stream = stream
            await shake_hands(stream, seconds=OPEN_SECONDS)
            met = peer_of(stream.tls)
            if met.spiffe_id != spiffe:
                raise WrongPeerError(f"MISROUTED: expected {spiffe}, met {met.spiffe_id}")
            await self._greet(stream)
            return
        raise RefusedError("handshake", None, f"no greeting within {OPEN_SECONDS:g} s")

    async def open_quickly(self, address: tuple[str, int], hello: bytes, *, urgent: bool) -> None:
        """Up to the greeting, behind a hello that nobody answers."""
        with trio.move_on_after(OPEN_SECONDS):
            transport = self._transport = await trio.open_tcp_stream(*address)
            self._route.legs.add(frozenset((spot(*transport.socket.getsockname()), spot(*address))))
            self._stream = PlainStream(transport, urgent=self._rng if urgent else None)
            await self._stream.send_all(hello)
            await self._greet(self._stream)
            return
        raise RefusedError("handshake", None, f"no greeting within {OPEN_SECONDS:g} s")

    async def _greet(self, stream: Duplex) -> None:
        self._sender = Sender(stream, self._route.service)
        self._receiver = Receiver(stream, self._route.service)
        await self._sender.send(json.dumps({"seed": self._rng.random(), "down": self._down}).encode())
        who = json.loads(await self._receiver.receive())
        self._route.incarnation = who["incarnation"]
        self._route.legs.add(frozenset(who["leg"]))
        self.greeted = True

    async def converse(self) -> None:
        """Both directions to their ends."""
        if self._quick:
            # So little that it fits into any buffer.
            await self._send()
            await self._receive()
            return
        trouble: list[BaseException] = []
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(self._send)
                await self._receive()
        except* (*BROKEN, DamagedError) as group:
            trouble.extend(group.exceptions)
        for error in trouble:
            cause = error.__cause__
            if isinstance(error, DamagedError):
                raise error
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                raise CorruptError(f"{error}, {self.progress}")
        if trouble:
            raise trouble[0]

    async def _send(self) -> None:
        assert self._sender is not None
        leave_at = self._rng.randrange(len(self._up)) if self._leaves else -1
        for number, (size, pause) in enumerate(self._up):
            if number == leave_at:
                self.left_by_us = True
                assert self._transport is not None
                shut_hard(self._transport)
                raise OverError("left")
            await self._sender.send(noise(self._rng, size))
            await trio.sleep(pause)
        await self._sender.send(b"")
        if self._half_closes:
            await self._stream.send_eof()

    async def _receive(self) -> None:
        assert self._sender is not None
        assert self._receiver is not None
        last = b""
        while payload := await self._receiver.receive():
            last = payload
        summary = json.loads(last)
        if summary != {"received": self._sender.sent, "digest": self._sender.digest}:
            raise DamagedError(f"the service received {summary}, {self._sender.sent} bytes were sent")
        if not self._half_closes:
            await self._stream.send_eof()
        await self._receiver.expect_end()


def _plan(rng: Random, pace: float) -> _Plan:
    """Sizes and the pauses behind them: most streams are short, some are large, some last."""
    match rng.choices(("short", "large", "steady", "long"), (50, 12, 25, 13))[0]:
        case "short":
            return [(rng.randint(1, 20_000), 0.0) for _ in range(rng.randint(1, 4))]
        case "large":
            return [(MOST, 0.0) for _ in range(rng.randint(4, 40))]
        case "steady":
            return [(rng.randint(1, MOST), rng.uniform(0, 0.3) * pace) for _ in range(rng.randint(5, 20))]
        case _:
            return [(rng.randint(1, 9000), rng.uniform(0.2, 1.5) * pace) for _ in range(rng.randint(8, 22))]


async def until_idle(traffic: Traffic, seconds: float) -> None:
    """Waits until no stream is open, or so long."""
    with trio.move_on_after(seconds), suppress(KeyError):
        while traffic.active.total():  # noqa: ASYNC110 (a handful of looks)
            await trio.sleep(0.1)
