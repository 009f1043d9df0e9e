"""The epoll loop: one epoll instance for all sockets of the relay, owned by one trio task.

Every socket is registered once, edge-triggered, and never re-armed. The loop takes a batch of events and calls the
state machines they are for, then gives one turn to each stream that had more to do; only when there is neither does it
wait, in trio. trio keeps what it is good at: cancellation, deadlines, and everything that is not the data path.

A sleep in trio costs as much CPU time as a round trip. So where the last one was short the loop first naps in epoll
itself, a millisecond at most, and for BRISK_SECONDS at most in a row (a fifth of the CPU time of a lone ping-pong).

What always holds: a stream moves at most one budget before the others get theirs; the loop reaches a trio checkpoint
at least every CHECKPOINT_SECONDS however busy it is; an error in one stream's handling ends that stream alone.
"""

import logging
import select
from collections import deque
from collections.abc import Callable
from select import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Final

import trio

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteTable

from .connection import Connection
from .counters import Counters, Refused
from .deadlines import Deadlines, Timed
from .destinations import Destinations
from .learning import Learning
from .leg import Leg
from .limits import Limits
from .pipes import PipePool
from .placing import Placing
from .pressure import Pressure
from .protocols import Observer, Watched
from .pump import Pump
from .records import ended_stream
from .shared import SharedCounts
from .sockets import client_key

log = logging.getLogger("meshgate.relay")

CHECKPOINT_SECONDS: Final = 0.01
_NAP_SECONDS: Final = 0.001
_BRISK_SECONDS: Final = 0.004
_LEG_EVENTS: Final = EPOLLIN | EPOLLRDHUP | EPOLLET
_BATCH: Final = 512
_EVENTS_PER_LOOK: Final = 8
_DEFECTS_TOLD: Final = 20
_MAX_PIPES: Final = 64  # Of 1 MiB each, that blocked streams may fill; past it streams are copied.


class Engine:
    """The loop, and what the state machines share: the clock, the table, the buffer, the wheel, the counters.

    `now` is the time of the current batch; `clock` reads the time anew. Both are trio's clock, in seconds.
    """

    def __init__(
        self,
        table: RouteTable,
        limits: Limits,
        counts: SharedCounts,
        observer: Observer,
        worker: int = 0,
        ask: Callable[[str], None] | None = None,
    ) -> None:
        self.table = table
        self.limits = limits
        self.worker = worker
        self.counters = Counters()
        self._pipes = PipePool(_MAX_PIPES)
        self.pump = Pump(self._pipes)
        self.placing = Placing()
        self.destinations = Destinations(counts)
        self.learning = Learning(ask)
        self.pressure = Pressure(self)
        self.clock = trio.lowlevel.current_clock().current_time
        self.now = self.clock()
        self.watched: dict[int, Watched] = {}
        self._counts = counts
        self._observer = observer
        self._epoll = select.epoll()
        self._pending: deque[Leg] = deque()
        self._deadlines = Deadlines()
        self._alarm = trio.CancelScope()

    # --- for the state machines ----------------------------------------------------------------------------------

    def register(self, leg: Leg) -> None:
        """Report what comes on a leg's socket from now on; what has come already is reported at once."""
        self.watch(leg, _LEG_EVENTS)

    def register_writer(self, leg: Leg) -> None:
        """As `register`, and report also that the leg takes bytes (again). Few ever block, so few pay for this."""
        if leg.reports_writable:
            return
        leg.reports_writable = True
        if leg.sock.fileno() in self.watched:
            self._epoll.modify(leg.sock.fileno(), _LEG_EVENTS | EPOLLOUT)
        else:
            self.watch(leg, _LEG_EVENTS | EPOLLOUT)

    def watch(self, watched: Watched, events: int) -> None:
        """Report `events` on a socket from now on."""
        descriptor = watched.sock.fileno()
        self.watched[descriptor] = watched
        self._epoll.register(descriptor, events)

    def forget(self, watched: Watched) -> None:
        """Report nothing more on a socket that is about to be closed, which takes it out of the epoll instance."""
        self.watched.pop(watched.sock.fileno(), None)

    def unwatch(self, watched: Watched) -> None:
        """Report nothing more on a socket that stays open."""
        if self.watched.pop(watched.sock.fileno(), None) is not None and not self._epoll.closed:
            self._epoll.unregister(watched.sock.fileno())

    def arm(self, timed: Timed, seconds: float) -> None:
        """Call `on_deadline` in so many seconds, up to a tick later; replaces the deadline that was set before."""
        deadline = self.now + seconds
        self._deadlines.arm(timed, deadline)
        if deadline < self._alarm.deadline:
            self._alarm.deadline = self._deadlines.next()

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline."""
        self._deadlines.disarm(timed)

    def promise_turn(self, leg: Leg) -> None:
        """Let a leg that used up its budget go on after the others."""
        self._pending.append(leg)

    def admit(self, host: str) -> Reason | None:
        """Count a new client in, or say which limit it is over."""
        counts, most = self._counts, self.limits.max_connections_per_client
        key = client_key(host) if most else ""
        if most and counts.client(key) >= most:
            return Reason.MAX_CONNECTIONS_PER_CLIENT
        if counts.active >= self.limits.pressure_from and not self.pressure.admits(counts):
            return Reason.MAX_CONNECTIONS
        if most:
            counts.add_client(key, 1)
        counts.add(1)
        self.counters.accepted += 1
        self.counters.active += 1
        return None

    def on_refused(self, refused: Refused) -> None:
        """A stream was refused, or shed before its hello was read."""
        self.counters.count_refused(refused.reason)
        self._observer.on_refused(refused)

    def on_ended(self, connection: Connection) -> None:
        """A stream has ended: count it out."""
        counters = self.counters
        counters.active -= 1
        self._counts.add(-1)
        counters.bytes_received += connection.client.received
        if connection.upstream is not None:
            counters.bytes_sent += connection.upstream.received
        if self.limits.max_connections_per_client:
            self._counts.add_client(client_key(connection.client_address[0]), -1)
        if connection.charged:
            self.destinations.release(connection.charged)
        # A connection that closed without a byte is a health check, not a stream.
        if self._observer.wants_records and (connection.client.received or connection.reason is not None):
            self._observer.on_ended(ended_stream(connection))

    def guard(self, leg: Leg, step: Callable[[], None]) -> None:
        """Run a step of a stream. An error in it is a defect of ours; it ends that stream and no other."""
        try:
            step()
        except Exception:  # noqa: BLE001  (logged there)
            self._on_defect(leg)

    # --- for the relay -------------------------------------------------------------------------------------------

    def install(self, table: RouteTable) -> None:
        """Place new streams by another table. Streams that are placed stay where they are."""
        self.table = table
        self.placing.keep_only(table)

    async def learned(self, name: str) -> None:
        """Place the streams that wait for a name by the table that there is now."""
        rested = self.clock()
        for opening in self.learning.learned(name, rested):
            self.now = self.clock()
            # There may be thousands. Not after each: it takes a whole round of the loop until it goes on here.
            if self.now - rested > CHECKPOINT_SECONDS:
                await trio.lowlevel.checkpoint()
                self.now = rested = self.clock()
            self.guard(opening.client, opening.on_learned)

    async def ask_nobody(self) -> None:
        """Nobody answers any more: place who waits by the table that there is, and let no other stream wait."""
        for name in self.learning.end():
            await self.learned(name)

    def relieve(self) -> None:
        """Look whether there is pressure that clients of this process cause. To be called every now and then."""
        self.now = self.clock()
        self.pressure.relieve(self._counts.active)

    def connections(self) -> list[Connection]:
        """The streams open now."""
        return [
            watched.connection
            for watched in self.watched.values()
            if isinstance(watched, Leg) and watched is watched.connection.client
        ]

    async def run(self) -> None:
        """Serve until cancelled; the streams then still open are reset."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_deadlines)
                await self._loop()
        finally:
            for connection in self.connections():
                connection.abort()
            self._pipes.close()
            self._epoll.close()

    # --- the loop ------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        poll, descriptor, clock = self._epoll.poll, self._epoll.fileno(), self.clock
        rested = clock()
        brisk = False
        while True:
            nap = brisk and not self._pending and self.now - rested < _BRISK_SECONDS
            events = poll(_NAP_SECONDS if nap else 0, _BATCH)
            if not events and not self._pending:
                asleep = clock()
                await trio.lowlevel.wait_readable(descriptor)
                rested = clock()
                brisk = rested - asleep < _NAP_SECONDS
                continue
            # A batch of costly events must not keep the rest of the process waiting, so it is handled in pieces.
            for start in range(0, len(events) or 1, _EVENTS_PER_LOOK):
                self.now = clock()
                if self.now - rested > CHECKPOINT_SECONDS:
                    await trio.lowlevel.checkpoint()
                    self.now = rested = clock()
                self._dispatch(events[start : start + _EVENTS_PER_LOOK])
            if self._pending:
                self._give_turns()

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        watched = self.watched
        for descriptor, mask in events:
            # A stream that ended earlier in this batch may have taken this socket with it.
            target = watched.get(descriptor)
            if target is not None:
                try:
                    target.on_event(mask)
                except Exception:  # noqa: BLE001  (logged there)
                    self._on_defect(target)

    def _give_turns(self) -> None:
        until = self.clock() + CHECKPOINT_SECONDS
        for _ in range(len(self._pending)):
            leg = self._pending.popleft()
            self.guard(leg, leg.on_turn)
            if self.clock() > until:
                return  # The others come first next time; light streams must not wait for hundreds of heavy ones.

    def _on_defect(self, target: Watched | Timed) -> None:
        self.counters.internal_errors += 1
        if self.counters.internal_errors <= _DEFECTS_TOLD:
            log.exception("internal error in a stream, it is reset; please report this")
        connection = target.connection if isinstance(target, Leg) else target
        if isinstance(connection, Connection) and not connection.closed:
            connection.abort()

    async def _watch_deadlines(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadlines.next()) as self._alarm:
                await trio.sleep_forever()
            self.now = self.clock()
            for timed in self._deadlines.expire(self.now):
                try:
                    timed.on_deadline()
                except Exception:  # noqa: BLE001  (logged there)
                    self._on_defect(timed)
