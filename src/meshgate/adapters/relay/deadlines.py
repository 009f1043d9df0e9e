"""Thousands of timeouts in one wheel.

A bucket for each tenth of a second that has deadlines; arming and disarming are O(1), and nothing is left behind by
a stream that ends early. A deadline fires up to one tick late, never early.
"""

import heapq
from typing import Final, Protocol

TICK: Final = 0.1


class Timed(Protocol):
    """Something with a deadline. `tick` is the wheel's own note and starts as 0."""

    tick: int

    def on_deadline(self) -> None:
        """The deadline has passed; the object is disarmed."""


class Deadlines:
    """The wheel. Times are in seconds on the caller's clock."""

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
