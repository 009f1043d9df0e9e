"""The event loop of a relay: one epoll instance for all its sockets, a wheel of deadlines, turns. Knows no streams.

Every socket is registered once, edge-triggered as a rule, and never re-armed. The loop takes a batch of events and
calls the objects they are for, then gives one turn to each that had more to do; only when there is neither does it
wait, in epoll itself. This is the outer loop of its process, and trio lives in it as a guest: a thread of trio's own
waits for the few descriptors and timers of trio's tasks, and is silent while streams move. So an event of a stream
costs no pass of a scheduler (in a relay of small calls that was a quarter of a core), and everything that is not the
data path is written as trio has it.

What always holds: who takes turns moves at most one budget before the others get theirs; what was postponed gets one
turn after each batch of events, and LATE_SECONDS where there were none; trio's tasks go on between two events, a few
milliseconds after they could however busy the loop is; an error in one object's handling is that object's.
"""

import heapq
import os
import select
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

CHECKPOINT_SECONDS: Final = 0.01
LATE_SECONDS: Final = 0.0005
TICK: Final = 0.1
_LONGEST_WAIT: Final = 3600.0
_BATCH: Final = 64  # Longer ones would keep the time, trio and turns waiting, and their buffer is slow to allocate.
_FULL_BATCHES: Final = 8


class Accountable(Protocol):
    """Something that is called, and answers for an error in that."""

    def on_defect(self) -> None:
        """A call of it raised, which is being handled: log it and end what it was for."""


class Turning(Accountable, Protocol):
    """Something that has work to do when its turn comes."""

    def on_turn(self) -> None:
        """The turn that was promised."""


class Watched(Accountable, Protocol):
    """Something with a socket that epoll reports on."""

    @property
    def descriptor(self) -> int:
        """The socket's."""

    def on_event(self, events: int) -> None:
        """Something has happened on the socket; a hint, not a promise."""


class Timed(Accountable, Protocol):
    """Something with a deadline. `tick` is the wheel's own note and starts as 0."""

    tick: int

    def on_deadline(self) -> None:
        """The deadline has passed; the object is disarmed."""


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
    """The loop. `now` is the time of the current batch; `clock` reads the time anew, in seconds."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.now = self.clock()
        self._watched: dict[int, Watched] = {}
        self._epoll = select.epoll()
        self._turns: OrderedDict[Turning, None] = OrderedDict()
        self._late: deque[Turning] = deque()
        self._deadlines = Deadlines()
        self._alarm = self.now + _LONGEST_WAIT
        self._calls: deque[Callable[[], object]] = deque()
        self._serves = True
        # Edge-triggered: each write is an event, and it need not be read.
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)

    def watch(self, watched: Watched, events: int) -> None:
        """Report `events` on a socket from now on; of edge-triggered ones, what has happened already at once."""
        descriptor = watched.descriptor
        if descriptor in self._watched:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._watched[descriptor] = watched

    def forget(self, watched: Watched) -> None:
        """Report nothing more on a socket that is about to be closed, which takes it out of the epoll instance."""
        self._watched.pop(watched.descriptor, None)

    def unwatch(self, watched: Watched) -> None:
        """Report nothing more on a socket that stays open."""
        if self._watched.pop(watched.descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(watched.descriptor)

    def arm(self, timed: Timed, seconds: float) -> None:
        """Call `on_deadline` in so many seconds, up to a tick later; replaces the deadline that was set before."""
        deadline = self.now + seconds
        self._deadlines.arm(timed, deadline)
        if deadline < self._alarm:
            self._alarm = min(self._deadlines.next(), self.now + _LONGEST_WAIT)

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline."""
        self._deadlines.disarm(timed)

    def promise_turn(self, turning: Turning) -> None:
        """Let something that used up its budget go on after the others; once, however often it is promised."""
        self._turns[turning] = None

    def postpone(self, turning: Turning) -> None:
        """Let costly work that nobody has earned yet wait for a turn behind everything else."""
        self._late.append(turning)

    def run_trio(self, main: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Run an async function with trio as this loop's guest, and serve until it has ended; its error is raised."""
        ended: list[Any] = []  # The outcome, as trio gives it.

        def end(outcome: object) -> None:
            ended.append(outcome)
            self.stop()

        trio.lowlevel.start_guest_run(main, *args, run_sync_soon_threadsafe=self.call_soon, done_callback=end)
        try:
            self.serve()
        finally:
            self.close()
        ended[0].unwrap()

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call something between two batches of events. Any thread may ask for that."""
        self._calls.append(call)
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """End `serve` when what waits now has been seen to."""
        self._serves = False

    def close(self) -> None:
        """Serve no more. What is watched is for its owners to close."""
        self._epoll.close()
        os.close(self._bell)

    def serve(self) -> None:
        """Wait for what happens and see to it, until `stop`."""
        self._serves = True
        poll, clock, find = self._epoll.poll, self.clock, self._watched.get
        turns, late, calls = self._turns, self._late, self._calls
        full, wait = 0, 0.0
        while self._serves:
            events = poll(wait, _BATCH)
            self.now = now = clock()
            for descriptor, mask in events:
                # Something that ended earlier in this batch may have taken this socket with it.
                target = find(descriptor)
                if target is not None:
                    try:
                        target.on_event(mask)
                    except Exception:  # noqa: BLE001  (logged there)
                        target.on_defect()
            if now >= self._alarm:
                self._expire()
            if not (turns or late or calls):
                wait = self._alarm - now  # Below zero would be for ever; but what is due has expired.
                continue
            wait = 0.0
            if turns:
                self._give_turns()
            if late:
                # Where more waits than one batch holds, turns of this kind are as rare as if it held all.
                full = full + 1 if len(events) == _BATCH else 0
                if full % _FULL_BATCHES == 0:
                    self._give_late_turns(0.0 if events else LATE_SECONDS)
            if calls:
                # Of trio: one step of its scheduler, which asks for the next one itself.
                for _ in range(len(calls)):
                    calls.popleft()()
                self.now = clock()

    def _give_turns(self) -> None:
        until = self.clock() + CHECKPOINT_SECONDS
        for _ in range(len(self._turns)):
            turning, _ = self._turns.popitem(last=False)
            run_guarded(turning, turning.on_turn)
            if self.clock() > until:
                return  # The others come first next time; light streams must not wait for hundreds of heavy ones.

    def _give_late_turns(self, seconds: float) -> None:
        until = self.clock() + seconds
        while self._late:
            turning = self._late.popleft()
            run_guarded(turning, turning.on_turn)
            if self.clock() >= until:
                return

    def _expire(self) -> None:
        for timed in self._deadlines.expire(self.now):
            run_guarded(timed, timed.on_deadline)
        self._alarm = max(self.now, min(self._deadlines.next(), self.now + _LONGEST_WAIT))


def run_guarded(target: Accountable, step: Callable[[], None]) -> None:
    """Run a step of something. An error in it is a defect of ours; it ends that thing and no other."""
    try:
        step()
    except Exception:  # noqa: BLE001  (logged there)
        target.on_defect()
