"""A client, an endpoint and a kernel that never were: they drive the real stream, without a socket, in every order.

A `World` holds one stream of the relay (the shipped `Stream`, `StreamSetup` and `Pump`), the sockets of its two ends
as Linux has them, and an edge-triggered epoll. What comes next is for a `Choices` to say. Whatever it says, these hold:

    bytes    each arrives once and in order, at one endpoint at most
    ends     an end in order comes after all bytes that were sent before it; else it is a reset
    waiting  once nothing moves by itself and both ends take bytes, all bytes and ends have been passed on, and who
             waits for time has a deadline
    counts   once both ends are gone nothing is open, held, lent, armed or counted

All of that whether or not the stream is frozen at any moment, and then goes on in another process or where it was.

The kernel is that of tcp(7), epoll(7) and splice(2), where they are silent that of Linux 6: a read ends short before an
urgent mark, and `splice` gives nothing there; the bytes before a reset can still be read, its error is told once, to
whoever asks first, and then it looks like an end; a socket that is closed with unread bytes is reset; a blocked one
says once that it takes bytes again, if somebody tried or looked; `shutdown` raises an event without a reason.
"""

import errno
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from socket import MSG_MORE, MSG_PEEK, SHUT_WR, SO_ERROR, SO_LINGER, SOL_SOCKET, TCP_CORK, TCP_NODELAY
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec

from meshgate.adapters.relay import Limits, pump as pumps
from meshgate.adapters.relay.circuit_breakers import CircuitBreakers, Ticket
from meshgate.adapters.relay.context import Context
from meshgate.adapters.relay.counters import Counters, StreamRecord
from meshgate.adapters.relay.hand_over import HandedStream
from meshgate.adapters.relay.on_demand import OnDemand
from meshgate.adapters.relay.pump import HELD_BYTES, READ_BYTES, DrainingPump, Pipe, PipePool, Pump, SystemCalls
from meshgate.adapters.relay.reactor import TICK, Deadlines, Reactor, Timed
from meshgate.adapters.relay.shared_counts import SharedCounts
from meshgate.adapters.relay.stream import ALIKE_ANSWERS, Relayed, Stream
from meshgate.core.load_balancer import LoadBalancer
from meshgate.core.routes import RouteTable
from tests.core.hellos import records

from .streams import WEB, endpoint, hello_for, table_of

HELLO: Final = hello_for(WEB)
CUT_HELLO: Final = records(HELLO[5:], [150])
_PATTERN: Final = b"".join(number.to_bytes(4, "big") for number in range(1 << 19))  # Every place differs.
TO_CLIENT: Final = _PATTERN[2:]
SMALL: Final = 100
LARGE: Final = 5 * READ_BYTES + 7
HUGE: Final = pumps.TURN_BYTES + 3 * READ_BYTES
_ROOM: Final = 1 << 30
_SPLICED_AT_ONCE: Final = 1 << 16
_NOW: Final = 100.0
_COUNTS: Final = SharedCounts()
_ENDPOINTS: Final = (endpoint(1), endpoint(2))
_TABLE: Final = table_of({WEB: _ENDPOINTS})
_STALE_TABLE: Final = table_of({WEB: _ENDPOINTS}, stale=[WEB])
_SHUT: Final = EPOLLIN | EPOLLRDHUP


@cache
def _sent(hello: bytes) -> bytes:
    return hello + _PATTERN


class BrokenPromiseError(AssertionError):
    """The stream did what it must not."""


def promise(kept: object, text: str) -> None:
    if not kept:
        raise BrokenPromiseError(text)


class Choices:
    """What comes next: `path` as far as it goes, then always the first. `taken` notes the path and its siblings."""

    def __init__(self, path: Sequence[int]) -> None:
        self.path = path
        self.taken: list[int] = []
        self.arities: list[int] = []

    @property
    def over(self) -> bool:
        return len(self.taken) >= len(self.path)

    def of(self, count: int) -> int:
        """One of `count` ways."""
        at = len(self.taken)
        chosen = self.path[at] % count if at < len(self.path) else 0
        self.taken.append(chosen)
        self.arities.append(count)
        return chosen


class Socket:
    """One of the relay's sockets, with its peer: what came from it, and what it was given.

    `arrived` and `taken` count the bytes of `content` that the peer has sent and the relay has read; `mark` is where an
    urgent byte lies among them. `room` is what the peer takes until it stalls. `state` is `dialled`, `stands` or
    `refused`.
    """

    def __init__(self, world: "World", name: str, content: bytes, expected: bytes, state: str) -> None:
        self.world = world
        self.name = name
        self.descriptor = world.new_descriptor(self)
        self.content, self.expected, self.state = content, expected, state
        self.arrived = self.taken = self.delivered = self.corked = 0
        self.mark: int | None = None
        self.fin = self.reset = self.closed = self.fin_out = self.reset_out = self.nospace = False
        self.cork = self.lingers = self.alert = False
        self.error = self.reset_at = 0
        self.room = _ROOM
        plenty = world.scene.plenty
        self.budget = {"small": 2 * plenty, "large": plenty, "urgent": plenty, "stall": 2 * plenty}

    # --- what the relay calls --------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.closed else self.descriptor

    def take(self, count: int, *, peek: bool = False) -> bytes:
        """As recv(2) without flags, or to look only."""
        start = self.taken
        end = self.arrived
        mark = self.mark
        if mark is not None:
            if mark > start:
                end = mark
            elif not peek:
                self.mark = None  # The urgent byte itself is skipped.
        data = self.content[start : min(start + count, end)]
        if data:
            if not peek:
                self.taken += len(data)
            return data
        if self.error:
            error, self.error = self.error, 0
            raise OSError(error, "")
        if self.fin or self.reset:
            return b""
        raise BlockingIOError

    def put(self, count: int, data: bytes | None, *, more: bool = False) -> int:
        """As send(2): so many bytes, which are `data` or what is expected next where a pipe holds them."""
        if self.state == "dialled":
            raise BlockingIOError
        if self.error:
            error, self.error = self.error, 0
            raise OSError(error, "")
        if self.reset or self.fin_out or self.state == "refused":
            raise OSError(errno.EPIPE, "")
        sent = min(count, self.room)
        self.nospace = self.nospace or sent < count
        if not sent:
            raise BlockingIOError
        self.room -= sent
        at = self.delivered + self.corked
        if data is not None:
            promise(data[:sent] == self.expected[at : at + sent], f"{self.name} got other bytes")
        self.corked += sent
        if not (more or self.cork):
            self.push()
        return sent

    def push(self) -> None:
        self.delivered += self.corked
        self.corked = 0

    def send(self, data: bytes, flags: int = 0) -> int:
        self.world.may_be_interrupted()
        if not self.world.stream.relaying:
            if self.reset:
                raise OSError(errno.EPIPE, "")
            promise(not self.delivered, "an alert among bytes")
            self.alert = True
            return len(data)
        return self.put(len(data), data, more=flags == MSG_MORE)

    def recv(self, count: int, flags: int = 0) -> bytes:
        self.world.may_be_interrupted()
        return self.take(count, peek=flags == MSG_PEEK)

    def shutdown(self, how: int) -> None:
        assert how == SHUT_WR
        if self.reset:
            raise OSError(errno.ENOTCONN, "")
        self.push()
        self.fin_out = True
        self.world.on_end(self)
        self.world.wake(self, 0)

    def getsockopt(self, _level: int, option: int) -> int:
        assert option == SO_ERROR
        error, self.error = self.error, 0
        return error

    def setsockopt(self, level: int, option: int, value: object) -> None:
        if level == SOL_SOCKET and option == SO_LINGER:
            self.lingers = True
        elif option == TCP_CORK:
            self.cork = bool(value)
            if not value:
                self.push()
        elif option == TCP_NODELAY:
            self.push()

    def close(self) -> None:
        promise(not self.closed, f"{self.name} closed twice")
        self.closed = True
        world = self.world
        world.close(self)
        if self.lingers or self.unread:
            self.reset_out = True
        elif not self.fin_out:
            self.push()
            self.fin_out = True
            if not self.reset:
                world.on_end(self)

    # --- what the peer does ----------------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        return self.taken < self.arrived or self.mark is not None

    def poll(self) -> int:
        """What epoll finds."""
        if self.state == "dialled":
            return 0
        mask = 0
        if self.taken < self.arrived:
            mask |= EPOLLIN
        if self.mark is not None:
            mask |= EPOLLPRI
        if self.fin:
            mask |= _SHUT
        if self.reset or self.state == "refused":
            mask |= _SHUT | EPOLLHUP | EPOLLOUT
        elif self.fin and self.fin_out:
            mask |= EPOLLHUP
        if self.error:
            mask |= EPOLLERR
        if self.fin_out or self.room > _ROOM // 2:
            mask |= EPOLLOUT
        else:
            self.nospace = True
        return mask

    def bytes_come(self, count: int) -> None:
        self.arrived += count
        self.world.wake(self, EPOLLIN)

    def urgent_byte_comes(self) -> None:
        self.mark = self.arrived
        self.world.wake(self, EPOLLIN | EPOLLPRI)

    def end_comes(self) -> None:
        self.fin = True
        self.world.wake(self, 0)

    def reset_comes(self) -> None:
        self.reset = True
        self.reset_at = len(self.world.told)
        self.error = errno.ECONNRESET if not self.fin or not self.fin_out else 0
        self.world.wake(self, 0)

    def stalls(self, room: int) -> None:
        self.room = room

    def takes_again(self) -> None:
        self.room = _ROOM
        if self.nospace:
            self.nospace = False
            self.world.wake(self, EPOLLOUT)

    def stands(self) -> None:
        self.state = "stands"
        self.world.wake(self, EPOLLOUT)

    def refuses(self) -> None:
        self.state = "refused"
        self.error = errno.ECONNREFUSED
        self.world.wake(self, 0)

    def moves(self) -> Iterable[tuple[str, Callable[[], None]]]:
        """What the peer may do now."""
        if self.closed or self.reset or self.state == "refused":
            return
        if self.state == "dialled":
            yield "stands", self.stands
            yield "refuses", self.refuses
            return
        budget, name, scene = self.budget, self.name, self.world.scene
        patient = budget["small"] + scene.patience > 2 * scene.plenty
        if self.room != _ROOM:
            yield f"{name} takes", self.takes_again
        elif budget["stall"] and not self.fin_out:
            yield f"{name} stalls", lambda: self._spend("stall", self.stalls, 0)
            yield f"{name} stalls soon", lambda: self._spend("stall", self.stalls, SMALL // 2)
        if not self.fin:
            for kind, count in (("small", SMALL), ("large", LARGE)):
                if budget[kind]:
                    yield (
                        f"{name} sends {kind}",
                        partial(self._spend, kind, self.bytes_come, count),
                    )
            if budget["urgent"] and self.mark is None:
                yield f"{name} urgent", lambda: self._spend("urgent", self.urgent_byte_comes)
            if patient:
                return
            yield f"{name} ends", self.end_comes
        yield f"{name} resets", self.reset_comes

    def _spend(self, kind: str, step: Callable[..., None], *given: int) -> None:
        self.budget[kind] -= 1
        step(*given)

    def state_key(self) -> tuple[object, ...]:
        mark = None if self.mark is None else self.mark - self.taken
        return (
            self.state, self.arrived - self.taken, mark, self.fin, self.reset, self.closed, self.fin_out, self.nospace,
            self.cork, self.corked, self.error, self.room, self.delivered == 0, *self.budget.values(),
        )  # fmt: skip


class Copy:
    """A copy of one of the relay's sockets in a process that lets go of it: the connection lives on."""

    def __init__(self, sock: Any) -> None:
        self._descriptor = sock.fileno()

    def fileno(self) -> int:
        return int(self._descriptor)

    def close(self) -> None: ...


class InPipe:
    """What is in a pipe without a kernel, whose ends are numbers."""

    def __init__(self) -> None:
        self.content = b""

    def pipe(self, world: "World") -> Pipe:
        pipe = Pipe()
        pipe.close()
        pipe.reader, pipe.writer = world.new_descriptor(self), world.new_descriptor(self)
        pipe.inside = 0
        pipe.capacity = pumps.PIPE_BYTES
        return pipe


class Loop:
    """The reactor of one stream with its turns and deadlines; tells what an edge-triggered epoll and a clock would."""

    def __init__(self, descriptors: Mapping[int, Any]) -> None:
        self._descriptors = descriptors
        self.reactor = reactor = Reactor()
        reactor.close()  # It needs no epoll instance.
        reactor.now = _NOW
        reactor.clock = lambda: reactor.now
        reactor._epoll = cast("Any", self)
        self.watched = reactor._watched = {}
        self.turns = reactor._turns = OrderedDict()
        self.late = reactor._late = deque()
        reactor._deadlines = Deadlines()
        reactor._alarm = float("-inf")  # There is none: the model chooses when a deadline comes.
        self.closed = False
        self.events: dict[int, int] = {}
        self.ready: dict[int, None] = {}

    @property
    def now(self) -> float:
        return self.reactor.now

    @now.setter
    def now(self, time: float) -> None:
        self.reactor.now = time

    @property
    def deadlines(self) -> dict[Timed, float]:
        return {timed: tick * TICK for tick, bucket in self.reactor._deadlines._buckets.items() for timed in bucket}

    def register(self, descriptor: int, events: int) -> None:
        self.events[descriptor] = events | EPOLLERR | EPOLLHUP
        if self._descriptors[descriptor].poll() & self.events[descriptor]:
            self.ready[descriptor] = None

    def unregister(self, descriptor: int) -> None:
        self.ready.pop(descriptor, None)

    modify = register


@dataclass(frozen=True)
class Scene:
    """How a world begins.

    `past` is what has come to pass already: the moves by name. `stale` says that the route has to be looked up, `pipes`
    how many there are, `much_held` whether no more may be held, `drains` whether the relay drains, `time` whether time
    passes, `dials` what may become of a connection at once, `interruptions` how often a peer may act between two system
    calls of one step, `plenty` how many times as much peers do as is enough to see all, `patience` how many small
    messages one sends before it ends, `hand_overs` how often the stream may be frozen.
    """

    name: str
    past: tuple[str, ...] = ()
    hello: bytes = HELLO
    stale: bool = False
    pipes: int = 2
    much_held: bool = False
    drains: bool = False
    time: bool = False
    dials: tuple[str, ...] = ("dialled",)
    interruptions: int = 1
    plenty: int = 1
    patience: int = 0
    hand_overs: int = 0
    limits: Limits = field(default_factory=Limits)


class World:
    """One stream, and all that is around it."""

    def __init__(self, scene: Scene, choices: Choices) -> None:
        self.scene = scene
        self.choices = choices
        self.stream: Stream = None  # type: ignore[assignment]
        self._interruptions = 0
        self._moving = False
        self.descriptors: dict[int, Any] = {}
        self.dialled: list[Socket] = []
        self.ended: list[StreamRecord] = []
        self.hand_overs = scene.hand_overs
        self.processes = 0
        self.extra = HELD_BYTES if scene.much_held else 0
        _COUNTS.add(-_COUNTS.active)  # What a broken promise has left.
        self._begin_process(_STALE_TABLE if scene.stale else _TABLE)
        ticket = self.context.breakers.admit("192.0.2.7", scene.limits, lambda _: True)
        assert isinstance(ticket, Ticket)
        self.context.counters = Counters(active=1)
        self.to_endpoint = _sent(scene.hello)
        self.client = Socket(self, "client", self.to_endpoint, TO_CLIENT, "stands")
        self.stream = Stream(self.context, ticket, cast("Any", self.client), ("192.0.2.7", 7), "default")
        self.told: list[str] = []

    def _begin_process(self, table: RouteTable) -> None:
        """All that streams of one process share."""
        self.processes += 1
        self.loop = Loop(self.descriptors)
        self.pipes = PipePool(self.scene.pipes, lambda: InPipe().pipe(self), lambda _: None)
        pump = Pump(self.pipes, SystemCalls(self.read, self.write, self.splice, self.dial))
        pump.held = self.extra
        breakers = CircuitBreakers(_COUNTS, lambda: _TABLE)
        told = SimpleNamespace(
            wants_records=True,
            on_refused=lambda _: None,
            on_ended=self._on_ended,
            on_settled=lambda _: None,
        )
        self.context: Context[Stream] = Context(
            reactor=self.loop.reactor,
            pump=pump,
            table=table,
            limits=self.scene.limits,
            observer=cast("Any", told),
            worker=0,
            breakers=breakers,
            load_balancer=LoadBalancer(breakers.loads, lambda: 0.0),
            on_demand=OnDemand((lambda *_: None) if self.scene.stale else None),
            overload=cast("Any", SimpleNamespace(free_descriptors=lambda: False)),
            report=lambda *_: None,
        )

    def begin(self) -> None:
        """Let come to pass what has come to pass already."""
        for step in self.scene.past:
            self._past(step)
        self._interruptions = self.scene.interruptions

    def _on_ended(self, record: StreamRecord) -> None:
        self.ended.append(record)

    @property
    def upstream(self) -> Socket | None:
        """The endpoint that was reached, or is dialled last."""
        return self.dialled[-1] if self.dialled else None

    def _past(self, step: str) -> None:
        upstream = self.upstream or self.client
        steps: dict[str, Callable[[], object]] = {
            "start": self.stream.start,
            "hello": lambda: self._comes(self.client, len(self.scene.hello)),
            "stands": upstream.stands,
            "asks": lambda: self._comes(self.client, SMALL),
            "answers": lambda: self._comes(upstream, SMALL),
            "up heavy": lambda: self._comes(self.client, READ_BYTES, pumps.LARGE_READS_TO_SPLICE),
            "down heavy": lambda: self._comes(upstream, READ_BYTES, pumps.LARGE_READS_TO_SPLICE),
            "down large": lambda: self._comes(upstream, LARGE),
            "down huge": lambda: upstream.bytes_come(HUGE),
            "client stalls": lambda: self.client.stalls(0),
            "a while": lambda: self._passes(2 * pumps.STALLED_SECONDS),
            "drains": lambda: setattr(self.context, "pump", DrainingPump(self.context.pump)),
            "hurries": lambda: setattr(self.context.pump, "hurry", True),
        }
        steps[step]()
        self.turn()

    def _comes(self, source: Socket, count: int, times: int = 1) -> None:
        for _ in range(times):
            self._passes(0.01)
            source.bytes_come(count)
            self.turn()

    def _passes(self, seconds: float) -> None:
        self.loop.now += seconds

    # --- the kernel ------------------------------------------------------------------------------------------------

    def new_descriptor(self, what: object) -> int:
        number = len(self.descriptors) + 3
        self.descriptors[number] = what
        return number

    def _find(self, descriptor: int) -> Any:
        if descriptor < 0:
            raise OSError(errno.EBADF, "")
        return self.descriptors[descriptor]

    def read(self, descriptor: int, count: int) -> bytes:
        self.may_be_interrupted()
        source = self._find(descriptor)
        if isinstance(source, InPipe):
            data, source.content = source.content[:count], source.content[count:]
            return data
        promise(not source.closed, "a closed socket is read")
        return cast("bytes", source.take(count))

    def write(self, descriptor: int, data: bytes | bytearray) -> int:
        self.may_be_interrupted()
        sock = self._find(descriptor)
        promise(not sock.closed, "a closed socket is written to")
        return cast("int", sock.put(len(data), bytes(data)))

    def splice(self, source: int, destination: int, count: int, flags: int) -> int:
        assert flags
        self.may_be_interrupted()
        one, other = self._find(source), self._find(destination)
        if isinstance(one, InPipe):
            sent = cast("int", other.put(min(count, len(one.content)), one.content))
            one.content = one.content[sent:]
            return sent
        promise(not other.content, "bytes of another stream in a pipe")
        if one.mark is not None and one.mark == one.taken:
            if one.error:
                error, one.error = one.error, 0
                raise OSError(error, "")
            if one.fin or one.reset:
                return 0
            raise BlockingIOError
        other.content = one.take(min(count, _SPLICED_AT_ONCE))
        return len(other.content)

    def dial(self, _address: str, _port: int) -> tuple[Any, int]:
        state = self.scene.dials[self.choices.of(len(self.scene.dials))]
        sock = Socket(self, f"endpoint{len(self.dialled)}", TO_CLIENT, self.to_endpoint, state)
        self.dialled.append(sock)
        if state == "refused":
            return sock, errno.ECONNREFUSED
        return sock, errno.EINPROGRESS if state == "dialled" else 0

    def close(self, sock: Socket) -> None:
        self.loop.ready.pop(sock.descriptor, None)
        promise(sock.descriptor not in self.loop.watched, "a socket is closed that is still watched")

    def wake(self, sock: Socket, events: int) -> None:
        """Something has come to pass on a socket: it is looked at if that is wanted; 0 always is."""
        wanted = self.loop.events[sock.descriptor] if sock.descriptor in self.loop.watched else 0
        if wanted and (not events or events & wanted):
            self.loop.ready[sock.descriptor] = None

    def may_be_interrupted(self) -> None:
        """Between two system calls a peer may act."""
        if self._moving and self._interruptions > 0:
            moves = self.moves_of_peers()
            chosen = self.choices.of(1 + len(moves))
            if chosen:
                self._interruptions -= 1
                name, move = moves[chosen - 1]
                self.told.append(f"({name})")
                move()

    # --- steps -----------------------------------------------------------------------------------------------------

    def moves_of_peers(self) -> list[tuple[str, Callable[[], None]]]:
        moves = list(self.client.moves())
        if self.client.arrived < len(self.scene.hello):
            moves = [each for each in moves if "sends" not in each[0]]
            if not self.client.fin and not self.client.reset:
                rest = len(self.scene.hello) - self.client.arrived
                moves += [(f"hello {count}", partial(self.client.bytes_come, count))
                          for count in {1, 200, rest} if count <= rest]  # fmt: skip
        for sock in self.dialled:
            moves += sock.moves()
        return moves

    def moves(self) -> list[tuple[str, Callable[[], None]]]:
        """What may come next."""
        loop = self.loop
        moves: list[tuple[str, Callable[[], None]]] = []
        if loop.ready or loop.turns or loop.late:
            moves.append(("loop", self.turn))
        moves += self.moves_of_peers()
        if self.scene.time and loop.deadlines:
            moves.append(("deadline", self._deadline))
        if self.scene.stale:
            moves.append(("looked up", self._looked_up))
        if self.scene.drains and not self.stream.closed:
            moves.append(("quiet", self._quiet))
        if self.hand_overs and not self.stream.closed:
            moves.append(("handed over", partial(self._hand_over, kept=False)))
            moves.append(("frozen and kept", partial(self._hand_over, kept=True)))
        return moves

    def _hand_over(self, *, kept: bool) -> None:
        """Freeze the stream, and have it go on in another process; or where it was, which the other one dropped."""
        self.hand_overs -= 1
        old, context, loop, pipes = self.stream, self.context, self.loop, self.pipes
        frozen = old.freeze()
        if frozen is None:
            promise(not old.relaying and old.setup is None, "a stream is not handed over")
            return
        promise(not loop.watched and not loop.deadlines, "a frozen stream is watched or has a deadline")
        for step in (*loop.turns, *loop.late):
            step.on_turn()
        loop.turns.clear()
        loop.late.clear()
        self._moving = True
        self.may_be_interrupted()
        self._moving = False
        self._begin_process(context.table)
        self.loop.now = loop.now
        if isinstance(context.pump, DrainingPump):
            pump = self.context.pump = DrainingPump(self.context.pump)
            pump.hurry = context.pump.hurry
        was = msgspec.msgpack.decode(msgspec.msgpack.encode(frozen[0]), type=HandedStream)
        relayed = None
        if old.upstream is not None:
            to_client, to_endpoint = (self._copy_of_pipe(leg.pipe) for leg in (old.client, old.upstream))
            assert old.hosts is not None
            assert old.endpoint is not None
            sock = cast("Any", Copy(old.upstream.sock) if kept else old.upstream.sock)
            relayed = Relayed(sock, old.hosts, old.endpoint, to_client, to_endpoint)
        client = cast("Any", Copy(old.client.sock) if kept else old.client.sock)
        new = Stream.rebuilt(self.context, Ticket(self.context.breakers, ""), was, client, relayed)
        if kept:
            new.drop()
            promise(not self.loop.watched and not self.context.streams, "something is left of a dropped stream")
            self.context, self.loop, self.pipes = context, loop, pipes
            self.processes -= 1
            old.thaw()
            return
        for leg in (old.client, old.upstream):
            if leg is not None:
                leg.sock = cast("Any", Copy(leg.sock))
        old.let_go()
        self._check_nothing_left(context, pipes)
        self.stream = new
        new.take_over()
        self.context.counters.add(context.counters)

    def _copy_of_pipe(self, pipe: Pipe | None) -> Pipe | None:
        if pipe is None:
            return None
        inside = InPipe()
        inside.content = self.descriptors[pipe.reader].content
        copy = inside.pipe(self)
        copy.inside = pipe.inside
        return copy

    def turn(self) -> None:
        """One batch of events, then the turns."""
        loop = self.loop
        batch = []
        for descriptor in loop.ready:
            mask = self.descriptors[descriptor].poll() & loop.events[descriptor]
            if mask:
                batch.append((descriptor, mask))
        loop.ready.clear()
        self._moving = True
        for descriptor, mask in batch:
            self.may_be_interrupted()
            if descriptor in loop.watched:
                loop.watched[descriptor].on_event(mask)
        for _ in range(len(loop.turns)):
            loop.turns.popitem(last=False)[0].on_turn()
        for _ in range(len(loop.late)):
            loop.late.popleft().on_turn()
        self._moving = False

    def _deadline(self) -> None:
        loop = self.loop
        loop.now = max(loop.now, loop.reactor._deadlines.next())
        for timed in loop.reactor._deadlines.expire(loop.now):
            timed.on_deadline()

    def _looked_up(self) -> None:
        self.context.table = _TABLE
        self._moving = True
        for stream in self.context.on_demand.lookup_done(WEB, self.loop.now):
            stream.on_lookup_done()
        self._moving = False

    def _quiet(self) -> None:
        self.loop.now += 0.3
        self._moving = True
        self.stream.drain(0.25, 0.01)
        self._moving = False

    def on_end(self, sock: Socket) -> None:
        """A peer is told of an end in order: it must have got all that there was."""
        other = self.client if sock is not self.client else self.upstream
        if (
            sock.alert
            or other is None
            or not self.context.counters.connections
            or sock not in (self.client, self.upstream)
        ):
            return
        promise(sock.delivered == other.taken, f"{sock.name} is told of an end before all bytes that were read")
        now_only = other.reset and other.reset_at == len(self.told)  # Between the look and the close.
        promise(not other.reset or other.fin or now_only, f"{sock.name} is told of an end where there was a reset")
        promise(other.fin or sock.closed or now_only, f"{sock.name} is told of an end that nobody sent")
        promise(
            not other.fin or sock.closed or sock.delivered == other.arrived, f"{sock.name} lost bytes before the end"
        )

    def settle(self) -> None:
        """Let both ends take bytes and everything be done that moves by itself; then nothing may be left."""
        self._interruptions = 0
        for sock in (self.client, *self.dialled):
            if sock.state == "dialled" and not sock.closed:
                sock.stands()
            sock.takes_again()
        self._run()
        stream, pump = self.stream, self.context.pump
        if stream.closed:
            self.check_gone()
            return
        promise(pump.held == self.extra, "bytes are held for nobody")
        promise(not any(sock.corked for sock in (self.client, *self.dialled)), "bytes are kept back for ever")
        promise(self.loop.deadlines, "nothing would end it")
        if stream.relaying:
            upstream = self.upstream
            assert upstream is not None
            promise(self.context.breakers.pending == 0, "its connection stands and counts as pending")
            for one, other in ((self.client, upstream), (upstream, self.client)):
                promise(not one.reset, f"the reset of {one.name} was not passed on")
                promise(other.delivered == one.arrived, f"bytes of {one.name} wait for ever")
                promise(one.fin == other.fin_out, f"the end of {one.name} was not passed on, or made up")
        elif stream.setup is not None and not stream.setup.connecting:
            promise(not stream.setup.late, "nobody reads on")
            promise(not self.client.unread, "a part of the hello is not read")
            promise(not self.client.fin and not self.client.reset, "nobody saw that the client has left")

    def end(self) -> None:
        """Both ends go: then nothing may be left behind."""
        orderly = self.stream.relaying
        for sock in (self.client, *self.dialled):
            if not (sock.closed or sock.reset or sock.fin) and sock.state == "stands":
                sock.end_comes()
        self._run()
        promise(not orderly or not self.client.reset_out, "an end in order is passed on as a reset")
        if not self.stream.closed and not self.stream.relaying:
            while self.loop.deadlines and not self.stream.closed:
                self._deadline()
                self._run()
        self.check_gone()

    def _run(self) -> None:
        for _ in range(1000):
            if not (self.loop.ready or self.loop.turns or self.loop.late):
                return
            self.turn()
        promise(False, "a busy loop")

    def check_gone(self) -> None:
        context, counters = self.context, self.context.counters
        promise(self.stream.closed, "it does not end with its ends")
        promise(self.client.closed and all(sock.closed for sock in self.dialled), "a socket stays open")
        promise(not self.loop.watched, "a socket is watched that is gone")
        promise(not self.loop.deadlines, "a deadline is left")
        self._check_nothing_left(context, self.pipes)
        promise(counters.taken_over == counters.handed_over, "it is handed over and not taken over, or not by one")
        routed = sum(counters.connections.values())
        promise(sum(counters.ends.values()) == routed <= 1, "its end is not counted, or twice")
        promise(routed <= sum(counters.hellos.values()) <= 1, "its hello is not counted, or twice")
        promise(len(self.ended) <= 1, "its record is told twice")
        promise(bool(self.ended) or not self.client.taken, "its record is not told")
        moved = counters.bytes_received, counters.bytes_sent
        for record in self.ended:
            promise(moved == (record.bytes_received, record.bytes_sent), "its bytes are not counted once")
        promise([*counters.carried.values()] == [moved] * routed, "its destination has not the same bytes")
        promise(sum(sock.delivered > 0 for sock in self.dialled) <= 1, "two endpoints got bytes")

    def _check_nothing_left(self, context: Context[Stream], pipes: PipePool) -> None:
        """In a process that has the stream no more."""
        counters = context.counters
        promise(context.pump.held == self.extra, "bytes are held for nobody")
        promise(not context.pump.blocked, "a leg is blocked that is gone")
        taken = [pipes.take() for _ in range(self.scene.pipes)]
        promise(all(taken), "a pipe is not given back")
        promise(pipes.take() is None, "a pipe is given back that was not lent")
        for pipe in taken:
            if pipe is not None:
                promise(not self.descriptors[pipe.reader].content, "bytes of another stream in a pipe")
                pipes.give(pipe)
        promise((counters.active, counters.of_servers) == (0, 0), "it counts although it is gone")
        promise(_COUNTS.active == 0, "its slot is not given back, or twice")
        promise(context.breakers.pending == 0, "it counts as pending")
        promise(not context.breakers.loads, "its endpoint is loaded")
        promise(not context.streams, "it is among the streams")

    def state_key(self) -> tuple[object, ...]:
        """What the future depends on."""
        stream, loop = self.stream, self.loop
        pump = self.context.pump
        legs = [leg for leg in (stream.client, stream.upstream) if leg is not None and not stream.closed]
        rhythm = stream._rhythm
        setup = stream.setup
        return (
            self.hand_overs, self.processes, stream.closed, stream.relaying, setup is None,
            setup is not None and setup.connecting,
            setup is not None and len(setup.late), self._interruptions, min(self.client.arrived, len(self.scene.hello)),
            tuple(loop.ready), tuple(getattr(each, "descriptor", None) for each in loop.turns), len(loop.late),
            pump.held,
            tuple((number, loop.events[number]) for number in loop.watched),
            tuple(sock.state_key() for sock in (self.client, *self.dialled)),
            tuple(
                (leg.held is None, 0 if leg.pipe is None else leg.pipe.inside, leg.held and len(leg.held), leg.readable,
                 leg.until_eagain, leg.eof, leg.flows, min(leg.large_reads, pumps.LARGE_READS_TO_SPLICE),
                 leg.reports_writable)
                for leg in legs
            ),
            rhythm and (rhythm._alike >= ALIKE_ANSWERS, rhythm._pieces, rhythm._usual),
            (self.scene.time or self.scene.drains) and (loop.now, tuple(leg.touched for leg in legs), stream._settled),
            tuple(round(each - loop.now, 3) for each in loop.deadlines.values()),
        )  # fmt: skip


def play(world: World) -> None:
    """Take the steps that the choices say."""
    world.begin()
    while not world.choices.over:
        moves = world.moves()
        if not moves:
            break
        name, move = moves[world.choices.of(len(moves))]
        world.told.append(name)
        move()


def run_through(scene: Scene, path: Sequence[int]) -> World:
    """One long order of steps, in which the peers send much and often act between two system calls.

    Raises:
        BrokenPromiseError: with the steps.
    """
    patience = path[-1] % 16 if path else 0
    world = World(replace(scene, interruptions=len(path), plenty=20, patience=patience), Choices(path))
    try:
        play(world)
        world.settle()
        if not world.stream.closed:
            world.end()
    except Exception as error:
        raise BrokenPromiseError(f"{error!r} in {scene.name!r} after {world.told}") from error
    return world


@dataclass
class Explored:
    """How far an exploration has come: what was played, and the different states among them."""

    plays: int = 0
    states: int = 0


def explore(scene: Scene, depth: int) -> Explored:
    """Play every order of so many steps, but those that lead where another has been.

    Raises:
        BrokenPromiseError: with the steps that led to it.
    """
    done = Explored()
    seen: set[tuple[object, ...]] = set()
    # Fewer steps come first, so that whoever comes to a state has as many left as anybody may have.
    todo: deque[tuple[tuple[int, ...], int]] = deque([((), 0)])
    while todo:
        path, steps = todo.popleft()
        choices = Choices(path)
        done.plays += 1
        world = World(scene, choices)
        try:
            play(world)
            # What else could have happened between the system calls of the last step.
            for at in range(len(path), len(choices.taken)):
                todo.extendleft(((*choices.taken[:at], other), steps) for other in range(1, choices.arities[at]))
            key = world.state_key()
            if key in seen:
                continue
            seen.add(key)
            if steps < depth:
                taken = tuple(choices.taken)
                todo.extend(((*taken, number), steps + 1) for number in range(len(world.moves())))
            world.settle()
            if not world.stream.closed:
                world.end()
        except Exception as error:
            raise BrokenPromiseError(f"{error!r} in {scene.name!r} after {world.told}") from error
    done.states = len(seen)
    return done


RELAYED: Final = ("start", "hello", "stands")
HEAVY: Final = (*RELAYED, "up heavy", "down heavy")
BLOCKED: Final = ("client stalls", "down large")
SCENES: Final = (
    Scene("hello", ("start",), dials=("stands", "dialled", "refused")),
    Scene("hello that is cut into records", ("start",), hello=CUT_HELLO),
    Scene("hello for nobody", ("start",), hello=hello_for("nobody.example"), time=True),
    Scene("route that is looked up", ("start", "hello"), stale=True, time=True),
    Scene("dialled", ("start", "hello"), dials=("stands", "dialled", "refused")),
    Scene("light", RELAYED),
    Scene("light and blocked", (*RELAYED, *BLOCKED)),
    Scene("heavy", HEAVY),
    Scene("heavy and blocked", (*HEAVY, *BLOCKED)),
    Scene("heavy without a pipe", HEAVY, pipes=0),
    Scene("the only pipe is with a leg that stalls", (*HEAVY, *BLOCKED, "a while"), pipes=1),
    Scene("several turns", (*HEAVY, "down huge")),
    Scene("several turns without a pipe", (*HEAVY, "down huge"), pipes=0),
    Scene("much held", HEAVY, pipes=0, much_held=True),
    Scene("much held and blocked", (*HEAVY, *BLOCKED), pipes=0, much_held=True),
    Scene("timeouts", RELAYED, time=True, limits=replace(Limits(), idle_timeout=10.0, half_close_timeout=5.0)),
    Scene("drain", (*RELAYED, "drains", *(("asks", "answers") * (ALIKE_ANSWERS + 1)), "hurries", "asks"), drains=True),
    Scene("drain of a blocked one", (*RELAYED, "drains", "hurries", *BLOCKED), drains=True),
)
