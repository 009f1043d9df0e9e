"""The event loop of a relay: one epoll instance for all its sockets, a wheel of deadlines, turns. Knows no streams.

Every socket is registered once, edge-triggered as a rule, and never re-armed. The loop takes a batch of events and
calls the objects they are for, then gives one turn to each that had more to do; only when there is neither does it
wait, in trio. trio keeps what it is good at: cancellation, deadlines, and everything that is not the data path.

A sleep in trio costs as much CPU time as a round trip. So where the last one was short the loop first naps in epoll
itself, a millisecond at most, and for BRISK_SECONDS at most in a row (a fifth of the CPU time of a lone ping-pong).

What always holds: who takes turns moves at most one budget before the others get theirs; what was postponed gets one
turn after each batch of events, and LATE_SECONDS where there were none; the loop reaches a trio checkpoint at least
every CHECKPOINT_SECONDS however busy it is; an error in one object's handling is that object's.
"""

import heapq
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio

CHECKPOINT_SECONDS: Final = 0.01
LATE_SECONDS: Final = 0.0005
TICK: Final = 0.1
_NAP_SECONDS: Final = 0.001
_BRISK_SECONDS: Final = 0.004
_BATCH: Final = 512
_EVENTS_PER_LOOK: Final = 8


class Watched(Protocol):
    """Something with a socket that epoll reports on."""

    @property
    def sock(self) -> socket.SocketType:
        """The socket."""

    def on_event(self, events: int) -> None:
        """Something has happened on the socket; a hint, not a promise."""

    def on_turn(self) -> None:
        """The turn that was promised."""

    def on_defect(self) -> None:
        """A call of one of the others raised, which is being handled: log it and end what it was for."""


class Turning(Protocol):
    """Something that has work to do when its turn comes."""

    def on_turn(self) -> None:
        """The turn that was promised."""

    def on_defect(self) -> None:
        """As for `Watched`."""


class Timed(Protocol):
    """Something with a deadline. `tick` is the wheel's own note and starts as 0."""

    tick: int

    def on_deadline(self) -> None:
        """The deadline has passed; the object is disarmed."""

    def on_defect(self) -> None:
        """As for `Watched`."""


class Deadlines:
    """Thousands of timeouts in one wheel: a bucket for each tenth of a second that has any.

    Arming and disarming are O(1), and nothing is left behind by what ends early. A deadline fires up to one tick late,
    never early. Times are in seconds on the caller's clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._order: list[int] = []

    def arm(self, timed: Timed, deadline: float) -> None:
        """Set or move the deadline of an object."""
        tick = int(deadline / TICK) + 1
        if tick == timed.tick:
            return
        if timed.tick:
            self._buckets[timed.tick].discard(timed)
        timed.tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heapq.heappush(self._order, tick)
        bucket.add(timed)

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline of an object, if it has one."""
        if timed.tick:
            self._buckets[timed.tick].discard(timed)
            timed.tick = 0

    def next(self) -> float:
        """When to call `expire` next; infinity when nothing is armed."""
        return self._order[0] * TICK if self._order else float("inf")

    def expire(self, now: float) -> list[Timed]:
        """Take out everything whose time has come, disarmed."""
        due: list[Timed] = []
        while self._order and self._order[0] * TICK <= now:
            for timed in self._buckets.pop(heapq.heappop(self._order)):
                timed.tick = 0
                due.append(timed)
        return due


class Reactor:
    """The loop. `now` is the time of the current batch; `clock` reads the time anew. Both are trio's, in seconds."""

    def __init__(self) -> None:
        self.clock = trio.lowlevel.current_clock().current_time
        self.now = self.clock()
        self._watched: dict[int, Watched] = {}
        self._epoll = select.epoll()
        self._turns: deque[Watched] = deque()
        self._late: deque[Turning] = deque()
        self._deadlines = Deadlines()
        self._alarm = trio.CancelScope()

    def watch(self, watched: Watched, events: int) -> None:
        """Report `events` on a socket from now on; of edge-triggered ones, what has happened already at once."""
        descriptor = watched.sock.fileno()
        if descriptor in self._watched:
            self._epoll.modify(descriptor, events)
        else:
            self._watched[descriptor] = watched
            self._epoll.register(descriptor, events)

    def forget(self, watched: Watched) -> None:
        """Report nothing more on a socket that is about to be closed, which takes it out of the epoll instance."""
        self._watched.pop(watched.sock.fileno(), None)

    def unwatch(self, watched: Watched) -> None:
        """Report nothing more on a socket that stays open."""
        if self._watched.pop(watched.sock.fileno(), None) is not None and not self._epoll.closed:
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

    def promise_turn(self, watched: Watched) -> None:
        """Let something that used up its budget go on after the others."""
        self._turns.append(watched)

    def postpone(self, turning: Turning) -> None:
        """Let costly work that nobody has earned yet wait for a turn behind everything else."""
        self._late.append(turning)

    async def run(self) -> None:
        """Serve until cancelled. What is watched then is for its owners to close."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_deadlines)
                await self._loop()
        finally:
            self._epoll.close()

    async def _loop(self) -> None:
        poll, descriptor, clock = self._epoll.poll, self._epoll.fileno(), self.clock
        rested = clock()
        brisk = False
        while True:
            nap = brisk and not self._turns and not self._late and self.now - rested < _BRISK_SECONDS
            events = poll(_NAP_SECONDS if nap else 0, _BATCH)
            if not events and not self._turns and not self._late:
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
            if self._turns:
                self._give_turns()
            if self._late:
                self._give_late_turns(0.0 if events else LATE_SECONDS)

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        watched = self._watched
        for descriptor, mask in events:
            # Something that ended earlier in this batch may have taken this socket with it.
            target = watched.get(descriptor)
            if target is not None:
                try:
                    target.on_event(mask)
                except Exception:  # noqa: BLE001  (logged there)
                    target.on_defect()

    def _give_turns(self) -> None:
        until = self.clock() + CHECKPOINT_SECONDS
        for _ in range(len(self._turns)):
            watched = self._turns.popleft()
            run_guarded(watched, watched.on_turn)
            if self.clock() > until:
                return  # The others come first next time; light streams must not wait for hundreds of heavy ones.

    def _give_late_turns(self, seconds: float) -> None:
        until = self.clock() + seconds
        while self._late:
            turning = self._late.popleft()
            run_guarded(turning, turning.on_turn)
            if self.clock() >= until:
                return

    async def _watch_deadlines(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadlines.next()) as self._alarm:
                await trio.sleep_forever()
            self.now = self.clock()
            for timed in self._deadlines.expire(self.now):
                run_guarded(timed, timed.on_deadline)


class Accountable(Protocol):
    """Whoever answers for an error in a step of its own."""

    def on_defect(self) -> None:
        """As for `Watched`."""


def run_guarded(target: Accountable, step: Callable[[], None]) -> None:
    """Run a step of something. An error in it is a defect of ours; it ends that thing and no other."""
    try:
        step()
    except Exception:  # noqa: BLE001  (logged there)
        target.on_defect()
