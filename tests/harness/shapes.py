"""Streams of all shapes at once through a gateway, with random data from a seed: nothing lost, doubled or changed.

Both ends are here. Each byte that arrives is compared with the one that was sent at its place, so that a fault is told
with its place and kind; at the end both ends must have got all that the other one sent, and an end of stream behind it.
`driving` opens the streams, keeps them moving while its block does what it likes to the gateway, ends them in order,
and raises a `BrokenStreamsError` if anything happened to a single one of them. Whoever kills something on purpose says
so by `forgiving`: a stream may be cut then, and still no byte of it may be lost before its end, doubled or changed.
"""

import contextlib
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Final, Protocol

import trio
import trio.testing

PERIOD: Final = 4_194_301  # Prime: no size of a buffer divides it.
_CHUNK: Final = 1 << 17
_NUMBER: Final = slice(11, 15)  # In the hello: within its random field, where anything may stand.
_GREETING: Final = 100
_SECOND_FLIGHT: Final = 60  # Who sends nothing behind its hello is taken for nobody after a while.
_ALERT: Final = b"\x15\x03\x03"
_CLOCK_SECONDS: Final = 1.0
_MOMENT: Final = 0.2  # A stream that began so long before may still wait for whoever accepts it.
_TOLD_SECONDS: Final = 5.0  # A worker tells of what has ended every half second, where it is not busy.
_OPEN_SECONDS: Final = 60.0
_CLOSED_SECONDS: Final = 0.7  # A second before the kernel repeats a SYN, so that the repetition is let in.
_LETTING_SECONDS: Final = 1.3
_BLOCKED_BUFFER: Final = 1 << 16


class Shape(StrEnum):
    """What a stream is like. Those of `REPEATED` are opened again and again, the others are kept all the time."""

    HALF_HELLO = "half a hello"
    SLOW_HELLO = "slow hello"
    WAITING = "waiting for its name"
    DIALLING = "dialling"
    QUIET = "quiet"
    PING_PONG = "ping-pong"
    CLIENT_CLOSED = "half-closed by the client"
    ENDPOINT_CLOSED = "half-closed by the endpoint"
    BLOCKED_UP = "blocked on its way up"
    BLOCKED_DOWN = "blocked on its way down"
    BULK_UP = "bulk up"
    BULK_DOWN = "bulk down"
    BULK_BOTH = "bulk both ways"
    URGENT = "urgent data"
    SHORT = "short"


REPEATED: Final = frozenset((Shape.HALF_HELLO, Shape.SLOW_HELLO, Shape.WAITING, Shape.DIALLING, Shape.SHORT))
# Of 200 streams; the short ones come on top.
_SHARES: Final[Mapping[Shape, int]] = MappingProxyType(
    {
        Shape.HALF_HELLO: 15,
        Shape.SLOW_HELLO: 10,
        Shape.WAITING: 10,
        Shape.DIALLING: 10,
        Shape.QUIET: 40,
        Shape.PING_PONG: 40,
        Shape.CLIENT_CLOSED: 10,
        Shape.ENDPOINT_CLOSED: 10,
        Shape.BLOCKED_UP: 8,
        Shape.BLOCKED_DOWN: 8,
        Shape.BULK_UP: 8,
        Shape.BULK_DOWN: 8,
        Shape.BULK_BOTH: 8,
        Shape.URGENT: 15,
    }
)


class BrokenStreamsError(AssertionError):
    """Something happened to streams. The message says what to which."""


class DamagedError(Exception):
    """Bytes arrived that were not sent at that place."""


class CutError(Exception):
    """An end of stream came in place of bytes, or an alert in place of the first ones."""


# Whatever a broken connection may raise, and what was found.
FAULTS: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, DamagedError, CutError)


@dataclass(frozen=True)
class Names:
    """What streams ask for: `plain` leads to `Endpoints.port`, `slow` to `slow_port`, and each one that `late` gives
    to `port`, but the gateway has to wait for it. Where one is None there are no streams of that shape.
    """

    plain: str
    slow: str | None = None
    late: Callable[[], str] | None = None

    @property
    def shapes(self) -> list[Shape]:
        """The kept and repeated shapes that these names allow."""
        lacking = {Shape.DIALLING: self.slow is None, Shape.WAITING: self.late is None}
        return [shape for shape in _SHARES if not lacking.get(shape)]


@dataclass
class Life:
    """What one stream was, for comparing with what the gateway says of it. Times are Unix time.

    `up` counts what its client sent with its hello, `down` what the endpoint sent. `cut`: it was broken, and might be.
    `untold`: nobody has to tell of its end.
    """

    number: int
    shape: Shape
    name: str
    client: str = ""
    dialled: float = 0.0
    greeted: float = 0.0
    ended: float = 0.0
    up: int = 0
    down: int = 0
    cut: bool = False
    untold: bool = False


class Noise:
    """Random bytes without an end, by their place."""

    def __init__(self, seed: object) -> None:
        once = Random(f"{seed} noise").randbytes(PERIOD)
        self._data = once + once[:_CHUNK]

    def at(self, place: int, count: int) -> bytes:
        """At most a chunk."""
        start = place % PERIOD
        return self._data[start : start + count]

    def explain(self, place: int, got: bytes) -> str:
        """What came in place of the bytes that belong to a place."""
        expected = self.at(place, len(got))
        first = next(index for index, (one, other) in enumerate(zip(got, expected, strict=True)) if one != other)
        sample = got[first : first + 12]
        found = self._data.find(sample) if len(sample) == 12 else -1
        if found < 0:
            return f"byte {first} of {len(got)} is wrong"
        shift = (found - place - first) % PERIOD
        if shift < PERIOD // 4:
            return f"{shift} bytes are lost before byte {first} of {len(got)}"
        if shift > PERIOD - PERIOD // 4:
            return f"{PERIOD - shift} bytes came twice before byte {first} of {len(got)}"
        return f"from byte {first} of {len(got)} on they are another stream's"


class End:
    """One end of a stream: what it has sent of its sequence, and received of the other one's."""

    def __init__(self, noise: Noise, out: int, into: int) -> None:
        self._noise = noise
        self._out = out
        self._into = into
        self._stream: trio.SocketStream | None = None
        self.sent = 0
        self.received = 0
        self.saw_end = False

    @property
    def stream(self) -> trio.SocketStream:
        """Its connection, once it has one."""
        assert self._stream is not None
        return self._stream

    @stream.setter
    def stream(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send(self, count: int) -> None:
        """Send the next bytes."""
        while count:
            part = min(count, _CHUNK)
            await self.stream.send_all(self._noise.at(self._out + self.sent, part))
            self.sent += part
            count -= part

    async def finish(self) -> None:
        """Send an end of stream."""
        await self.stream.send_eof()

    async def receive(self, most: int = _CHUNK) -> int:
        """Take what is there, and give how much it was; 0 at the end.

        Raises:
            DamagedError: it is not what was sent.
        """
        data = await self.stream.receive_some(min(most, _CHUNK))
        place = self._into + self.received
        if data != self._noise.at(place, len(data)):
            if not self.received and data[:3] == _ALERT:
                raise CutError("it was refused, by an alert")
            raise DamagedError(f"after {self.received} bytes {self._noise.explain(place, bytes(data))}")
        self.received += len(data)
        self.saw_end = not data
        return len(data)

    async def receive_exactly(self, count: int) -> None:
        """Take so many.

        Raises:
            DamagedError: they are not what was sent.
            CutError: the stream ended before.
        """
        while count:
            got = await self.receive(count)
            if not got:
                raise CutError(f"it ended after {self.received} bytes, {count} more were to come")
            count -= got

    async def receive_to_end(self) -> None:
        """Take everything."""
        while await self.receive():
            pass


class _Talk:
    """A stream with both of its ends."""

    def __init__(self, driver: "Driver", rng: Random, life: Life, hello: bytes) -> None:
        self.driver = driver
        self.life = life
        self.rng, self.its_rng = rng, Random(rng.random())
        self.hello = hello
        up, down = rng.randrange(PERIOD), rng.randrange(PERIOD)
        self.client = End(driver.noise, up, down)
        self.endpoint = End(driver.noise, down, up)
        self.reached = False
        self.forgiven = driver.forgives
        self.served = trio.Event()

    def __str__(self) -> str:
        life, client, endpoint = self.life, self.client, self.endpoint
        return (
            f"stream {life.number} ({life.shape}, {life.client or 'not connected'}, open for "
            f"{(life.ended or time.time()) - life.dialled:.2f} s): up {client.sent} sent and {endpoint.received} "
            f"received, down {endpoint.sent} sent and {client.received} received"
        )


Part = Callable[[_Talk], Awaitable[None]]


class Endpoints:
    """The servers that the streams lead to: `port`, and `slow_port`, where connections stand only after a while."""

    def __init__(self) -> None:
        self.port = 0
        self.slow_port = 0
        self.bare = 0
        """Connections that ended before a byte came."""
        self.talks: dict[int, _Talk] = {}
        self.forgotten: set[int] = set()
        """Streams that were cut, maybe: their hello may come still."""
        self.fault: Callable[[_Talk | None, str, Exception], None] = lambda *_: None

    async def serve(self, stream: trio.SocketStream) -> None:
        talk: _Talk | None = None
        try:
            async with stream:
                talk = await self._opened(stream)
                if talk is not None:
                    talk.endpoint.stream = stream
                    await talk.endpoint.send(_GREETING)
                    await talk.endpoint.receive_exactly(_SECOND_FLIGHT)
                    await _ENDPOINT[talk.life.shape](talk)
                    if not talk.endpoint.saw_end:
                        await talk.endpoint.receive_to_end()
                    talk.served.set()
        except FAULTS as error:
            self.fault(talk, "endpoint", error)

    async def _opened(self, stream: trio.SocketStream) -> _Talk | None:
        """Which stream it is; None where not a byte comes, which is no stream yet."""
        try:
            head = await _exactly(stream, 5, may_end=True)
        except trio.BrokenResourceError:
            head = b""
        if not head:
            self.bare += 1
            return None
        hello = head + await _exactly(stream, int.from_bytes(head[3:5]))
        number = int.from_bytes(hello[_NUMBER])
        talk = self.talks.get(number)
        if talk is None and number in self.forgotten:
            return None
        if talk is None:
            raise DamagedError(f"stream {number} is nobody's")
        if talk.reached:
            raise DamagedError(f"{talk}: it came twice")
        if hello != talk.hello:
            raise DamagedError(f"{talk}: its hello is not what was sent")
        talk.reached = True
        return talk

    async def serve_slowly(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Let clients wait and in by turns: while a queue that holds one is full, the kernel drops every SYN."""
        address = sock.getsockname()
        while True:
            sock.listen(0)
            with socket.socket() as blocker:
                blocker.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    blocker.connect(address)
                await trio.sleep(_CLOSED_SECONDS)
                sock.listen(128)
                with trio.move_on_after(_LETTING_SECONDS):
                    while True:
                        accepted, whose = await sock.accept()
                        if whose == blocker.getsockname():
                            accepted.close()
                        else:
                            nursery.start_soon(self.serve, trio.SocketStream(accepted))


@asynccontextmanager
async def endpoints() -> AsyncIterator[Endpoints]:
    """The servers, for the length of the block."""
    servers = Endpoints()
    with trio.socket.socket() as slow:
        await slow.bind(("127.0.0.1", 0))
        servers.slow_port = slow.getsockname()[1]
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
            servers.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, servers.serve, listeners)
            nursery.start_soon(servers.serve_slowly, slow, nursery)
            yield servers
            nursery.cancel_scope.cancel()


@dataclass
class Driver:
    """The streams. `lives` has all there ever were, `longest` the longest round trip of a ping-pong, in seconds."""

    address: tuple[str, int]
    names: Names
    servers: Endpoints
    seed: object
    pace: float
    over: trio.Event = field(default_factory=trio.Event)
    lives: list[Life] = field(default_factory=list)
    in_order: Counter[Shape] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest: float = 0.0

    def __post_init__(self) -> None:
        self.noise = Noise(self.seed)
        self._hellos: dict[str, bytes] = {}
        self._talks = self.servers.talks
        self.servers.fault = self.fault
        self._kept: list[_Talk] = []
        self._repeated: set[Shape] = set()
        self._forgiving, self._forgiven = False, 0.0

    @property
    def open(self) -> int:
        """Streams that have been dialled and have not ended."""
        return len(self._talks)

    @contextmanager
    def forgiving(self, *, open_ones: bool = True) -> Iterator[None]:
        """Take no offence if a stream is cut that begins within the block or a moment before or after, or is open then.

        Nor if nobody tells of one that ends within it, or a moment before or after: who carried it may have died then.
        """
        self._forgiving = True
        for life in self.lives:
            life.untold |= life.ended > time.time() - _TOLD_SECONDS
        for talk in self._talks.values():
            talk.forgiven |= open_ones or talk.life.dialled > time.time() - _MOMENT
        yield
        self._forgiving, self._forgiven = False, time.time()

    @property
    def forgives(self) -> bool:
        """Whether a stream that begins now may be cut."""
        return self._forgiving or time.time() < self._forgiven + _MOMENT

    def fault(self, talk: "_Talk | None", where: str, error: Exception) -> None:
        """Note what happened to a stream."""
        if talk is not None and talk.forgiven and talk.life.client and not isinstance(error, DamagedError):
            talk.life.cut = True
            talk.served.set()
        else:
            self.faults.append(f"{talk or 'a stream'}, at the {where}: {error!r} {error.__cause__ or ''}")

    async def moved(self, rounds: int = 2, of: Collection[Shape] = REPEATED) -> None:
        """Wait until each repeated shape has had so many more streams that came to their end in order."""
        wanted = {shape: self.in_order[shape] + rounds for shape in self._repeated.intersection(of)}
        with trio.move_on_after(_OPEN_SECONDS) as scope:
            while any(self.in_order[shape] < count for shape, count in wanted.items()) and not self.faults:
                await trio.sleep(0.01)
        if scope.cancelled_caught:
            lacking = {str(shape): count - self.in_order[shape] for shape, count in wanted.items()}
            self.faults.append(f"new streams do not come to their end: {lacking}")

    # --- running them ----------------------------------------------------------------------------------------------

    async def run(self, shape: Shape, number: int) -> None:
        """One stream after another, or one that is kept."""
        rng = Random(f"{self.seed} {shape} {number}")
        if shape not in REPEATED:
            await self._stream(shape, rng)
            return
        self._repeated.add(shape)
        while not self.over.is_set():
            await self._stream(shape, rng)
            await trio.sleep(rng.uniform(0, 0.1) * self.pace)
            if shape is Shape.WAITING:
                # All have one address, for which five names without a route are asked for in a second, and no more.
                with trio.move_on_after(rng.uniform(1, 3)):
                    await self.over.wait()

    async def until_open(self, seconds: float) -> None:
        """Wait until all kept streams are open, or one has failed."""
        with trio.move_on_after(seconds):
            await trio.testing.wait_all_tasks_blocked()
            while not self.faults and not all(talk.life.greeted for talk in self._kept):
                await trio.sleep(0.01)
        self.faults += [f"{talk} does not open" for talk in self._kept if not self.faults and not talk.life.greeted]

    async def pause(self, seconds: float) -> bool:
        """Sleep, not beyond the end; whether that has come."""
        with trio.move_on_after(seconds * self.pace):
            await self.over.wait()
        return self.over.is_set()

    async def _stream(self, shape: Shape, rng: Random) -> None:
        name = self.names.plain
        if shape is Shape.DIALLING:
            assert self.names.slow is not None
            name = self.names.slow
        elif shape is Shape.WAITING:
            assert self.names.late is not None
            name = self.names.late()
        life = Life(len(self.lives) + 1, shape, name)
        self.lives.append(life)
        talk = self._talks[life.number] = _Talk(self, Random(rng.random()), life, self._hello(life))
        if shape not in REPEATED:
            self._kept.append(talk)
        try:
            await self._run(talk)
            self.in_order[shape] += 1
        except FAULTS as error:
            self.fault(talk, "client", error)
        except trio.Cancelled:
            self.faults.append(f"{talk} does not end")
            raise
        finally:
            life.ended = time.time()
            # Whoever dies when all bytes have gone through ends a stream in order, as far as its ends can see.
            life.untold |= self._forgiving or (talk.forgiven and life.ended < self._forgiven + _TOLD_SECONDS)
            if talk.forgiven:
                self.servers.forgotten.add(life.number)
            life.up = len(talk.hello) + talk.client.sent
            life.down = talk.endpoint.sent
            del self._talks[life.number]

    async def _run(self, talk: _Talk) -> None:
        life, client, endpoint = talk.life, talk.client, talk.endpoint
        life.dialled = time.time()
        stream = client.stream = await trio.open_tcp_stream(*self.address)
        host, port = stream.socket.getsockname()[:2]
        life.client = f"{host}:{port}"
        async with stream:
            await self._say_hello(talk, stream)
            await client.receive_exactly(_GREETING)
            await client.send(_SECOND_FLIGHT)
            life.greeted = time.time()
            await _CLIENT[life.shape](talk)
            if not client.saw_end:
                await client.receive_to_end()
            with trio.move_on_after(_OPEN_SECONDS):
                await talk.served.wait()
            if (client.received, endpoint.received) != (endpoint.sent, client.sent):
                raise CutError("an end of stream came before all bytes")

    async def _say_hello(self, talk: _Talk, stream: trio.SocketStream) -> None:
        data, rng = talk.hello, talk.rng
        if talk.life.shape is Shape.HALF_HELLO:
            cut = rng.randrange(1, len(talk.hello))
            await stream.send_all(data[:cut])
            await self.pause(rng.uniform(0.3, 3))
            data = data[cut:]
        elif talk.life.shape is Shape.SLOW_HELLO:
            while len(data) > 60:
                await stream.send_all(data[:50])
                data = data[50:]
                await trio.sleep(rng.uniform(0, 0.1) * self.pace)
        await stream.send_all(data)

    def _hello(self, life: Life) -> bytes:
        if life.name not in self._hellos:
            self._hellos[life.name] = _hello_for(life.name)
        hello = bytearray(self._hellos[life.name])
        hello[_NUMBER] = life.number.to_bytes(_NUMBER.stop - _NUMBER.start)
        return bytes(hello)


class Told(Protocol):
    """What a gateway tells of a stream that has ended: a `StreamRecord`, or a line of the access log."""

    @property
    def client(self) -> str: ...
    @property
    def started(self) -> float: ...
    @property
    def sni(self) -> str | None: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def end(self) -> str: ...


def not_as_told(lives: Sequence[Life], told: Iterable[Told]) -> list[str]:
    """Where a gateway tells something else of streams than what came to pass; it is to tell of each one once."""
    lines: dict[str, list[Told]] = {}
    for each in sorted(told, key=lambda line: line.started, reverse=True):
        lines.setdefault(each.client, []).append(each)
    # A port may be another stream's a moment later, and a worker's clock is that of its last look at it.
    later: dict[str, float] = {}
    following = {}
    for life in reversed(lives):
        following[life.number] = later.get(life.client, math.inf)
        later[life.client] = life.dialled
    wrong = []
    for life in lives:
        left = lines.get(life.client, [])
        begun = left[-1].started if left else math.inf
        until = min((life.greeted or life.ended) + _CLOCK_SECONDS, (life.dialled + following[life.number]) / 2)
        if not life.dialled - _CLOCK_SECONDS <= begun <= until:
            if not (life.cut or life.untold):
                wrong.append(f"{life} has no line; the next of its address begins {begun - life.dialled:+.3f} s later")
            continue
        line = left.pop()
        said = (line.sni, line.bytes_received, line.bytes_sent, line.end)
        if said != (life.name, life.up, life.down, "closed") and not life.cut:
            wrong.append(f"{life} is told of as {said}")
    # What is told of one that was lost with its process is from memory.
    lost = {life.client for life in lives if life.cut or life.untold}
    others = [each for left in lines.values() for each in left if each.end != "worker_lost" or each.client not in lost]
    return [*wrong, *(f"nobody's stream is told of: {each}" for each in others)]


# --- the client's part ------------------------------------------------------------------------------------------------


async def _exchange(talk: _Talk) -> None:
    """Send something, end, and take all that comes, at the same time."""
    size = talk.rng.choice((0, 1, 1000, 50_000, 400_000))
    await _at_once(partial(_send_all, talk.client, size), talk.client.receive_to_end)


async def _send_all(end: End, size: int) -> None:
    await end.send(size)
    await end.finish()


async def _quiet(talk: _Talk) -> None:
    await talk.driver.over.wait()
    await _round_trip(talk, 1000)
    await talk.client.finish()


async def _ping_pong(talk: _Talk) -> None:
    while not await talk.driver.pause(talk.rng.uniform(0.02, 0.3)):
        talk.driver.longest = max(talk.driver.longest, await _round_trip(talk, talk.rng.randint(1, 3000)))
    await talk.client.finish()


async def _round_trip(talk: _Talk, size: int) -> float:
    begun = trio.current_time()
    await talk.client.send(size)
    await talk.client.receive_exactly(size)
    return trio.current_time() - begun


async def _urgent(talk: _Talk) -> None:
    """One mark at a time: a byte whose mark is moved on before it was read is an ordinary one."""
    client, rng, pause = talk.client, talk.rng, talk.driver.pause
    while not await pause(rng.uniform(0.02, 0.3)):
        before, behind = rng.randint(1, 60_000), rng.randint(1, 3000)
        await client.send(before)
        await client.stream.socket.send(b"!", socket.MSG_OOB)
        await pause(rng.uniform(0, 0.2))
        await client.send(behind)
        await client.receive_exactly(before + behind)
    await client.finish()


async def _end_at_once(talk: _Talk) -> None:
    await _send_all(talk.client, talk.rng.randint(0, 100_000))


async def _listen_then_trickle(talk: _Talk) -> None:
    await talk.client.receive_to_end()
    await _trickle(talk.driver, talk.client, talk.rng)


async def _trickle(driver: "Driver", end: End, rng: Random) -> None:
    while not await driver.pause(rng.uniform(0.02, 0.2)):
        await end.send(rng.randint(1, 5000))
    await end.finish()


async def _pour(driver: "Driver", end: End) -> None:
    """As much as the others take."""
    while not driver.over.is_set():
        await end.send(50_000)
    await end.finish()


async def _sip(driver: "Driver", end: End, rng: Random) -> None:
    """Less than comes, until everything is to end."""
    end.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BLOCKED_BUFFER)
    while not await driver.pause(rng.uniform(0.1, 0.6)):
        await end.receive(rng.choice((1, 1000, 30_000)))
    await end.receive_to_end()


async def _bursts(driver: "Driver", end: End, rng: Random) -> None:
    """Large reads in a row, again and again: they are spliced."""
    while not await driver.pause(rng.uniform(0.05, 0.3)):
        await end.send(rng.randint(100_000, 1_500_000))
    await end.finish()


async def _pour_up(talk: _Talk) -> None:
    await _pour(talk.driver, talk.client)


async def _sip_from_above(talk: _Talk) -> None:
    await _sip(talk.driver, talk.client, talk.rng)
    await talk.client.finish()


async def _bursts_up(talk: _Talk) -> None:
    await _bursts(talk.driver, talk.client, talk.rng)


async def _take_all(talk: _Talk) -> None:
    await talk.client.receive_to_end()
    await talk.client.finish()


async def _bursts_both(talk: _Talk) -> None:
    await _at_once(partial(_bursts, talk.driver, talk.client, talk.rng), talk.client.receive_to_end)


_CLIENT: Final[Mapping[Shape, Part]] = MappingProxyType(
    dict.fromkeys(REPEATED, _exchange)
    | {
        Shape.QUIET: _quiet,
        Shape.PING_PONG: _ping_pong,
        Shape.CLIENT_CLOSED: _end_at_once,
        Shape.ENDPOINT_CLOSED: _listen_then_trickle,
        Shape.BLOCKED_UP: _pour_up,
        Shape.BLOCKED_DOWN: _sip_from_above,
        Shape.BULK_UP: _bursts_up,
        Shape.BULK_DOWN: _take_all,
        Shape.BULK_BOTH: _bursts_both,
        Shape.URGENT: _urgent,
    }
)


# --- the endpoint's part ----------------------------------------------------------------------------------------------
# Its random numbers are others than the client's, so that one of them may begin earlier than the other.


async def _answer(talk: _Talk) -> None:
    """As many bytes as come."""
    while count := await talk.endpoint.receive():
        await talk.endpoint.send(count)
    await talk.endpoint.finish()


async def _exchange_back(talk: _Talk) -> None:
    size = talk.its_rng.choice((0, 1, 1000, 50_000, 400_000))
    await _at_once(partial(_send_all, talk.endpoint, size), talk.endpoint.receive_to_end)


async def _trickle_behind_its_end(talk: _Talk) -> None:
    await talk.endpoint.receive_to_end()
    await _trickle(talk.driver, talk.endpoint, talk.its_rng)


async def _end_and_listen(talk: _Talk) -> None:
    await _send_all(talk.endpoint, talk.its_rng.randint(0, 100_000))


async def _sip_from_below(talk: _Talk) -> None:
    await _sip(talk.driver, talk.endpoint, talk.its_rng)
    await talk.endpoint.finish()


async def _pour_down(talk: _Talk) -> None:
    await _pour(talk.driver, talk.endpoint)


async def _take_all_of_it(talk: _Talk) -> None:
    await talk.endpoint.receive_to_end()
    await talk.endpoint.finish()


async def _bursts_down(talk: _Talk) -> None:
    await _bursts(talk.driver, talk.endpoint, talk.its_rng)


async def _bursts_both_back(talk: _Talk) -> None:
    await _at_once(partial(_bursts, talk.driver, talk.endpoint, talk.its_rng), talk.endpoint.receive_to_end)


_ENDPOINT: Final[Mapping[Shape, Part]] = MappingProxyType(
    dict.fromkeys(REPEATED, _exchange_back)
    | {
        Shape.QUIET: _answer,
        Shape.PING_PONG: _answer,
        Shape.CLIENT_CLOSED: _trickle_behind_its_end,
        Shape.ENDPOINT_CLOSED: _end_and_listen,
        Shape.BLOCKED_UP: _sip_from_below,
        Shape.BLOCKED_DOWN: _pour_down,
        Shape.BULK_UP: _take_all_of_it,
        Shape.BULK_DOWN: _bursts_down,
        Shape.BULK_BOTH: _bursts_both_back,
        Shape.URGENT: _answer,
    }
)


async def _at_once(*parts: Callable[[], Awaitable[None]]) -> None:
    """All of them; the first fault of one ends the others and comes out as itself."""
    trouble: list[Exception] = []

    async def run(part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except FAULTS as error:
            trouble.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for part in parts:
            nursery.start_soon(run, part)
    if trouble:
        raise trouble[0]


async def _exactly(stream: trio.SocketStream, count: int, *, may_end: bool = False) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            if may_end and not data:
                break
            text = f"it ended after {len(data)} of the {count} bytes that were to come"
            raise CutError(text)
        data += more
    return data


def _hello_for(name: str) -> bytes:
    """A ClientHello as OpenSSL makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@asynccontextmanager
async def driving(
    servers: Endpoints,
    address: tuple[str, int],
    names: Names,
    *,
    streams: int = 200,
    short: int = 5,
    seed: object = 1,
    pace: float = 1.0,
    only: Collection[Shape] = (),
    patience: float = 60.0,
) -> AsyncIterator[Driver]:
    """About so many streams at once through a gateway at `address`, and short ones `short` at a time, for the block.

    It begins when all that are kept are open; at its end all streams come to theirs, which takes at most `patience`.
    Pauses within and between streams are multiplied by `pace`.

    Raises:
        BrokenStreamsError: at the end.
    """
    driver = Driver(address, names, servers, seed, pace)
    with trio.move_on_after(math.inf) as life:
        async with trio.open_nursery() as nursery:
            for shape in names.shapes:
                if not only or shape in only:
                    for number in range(max(1, round(_SHARES[shape] * streams / 200))):
                        nursery.start_soon(driver.run, shape, number)
            for number in range(short if not only or Shape.SHORT in only else 0):
                nursery.start_soon(driver.run, Shape.SHORT, number)
            await driver.until_open(patience)
            yield driver
            driver.over.set()
            life.deadline = trio.current_time() + patience
    if driver.faults:
        shown = "\n".join(driver.faults[:20])
        text = f"{len(driver.faults)} faults of {len(driver.lives)} streams:\n{shown}"
        raise BrokenStreamsError(text)
