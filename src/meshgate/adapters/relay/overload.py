"""Room for clients that speak, when the slots for streams are nearly used up.

A client that connects and says nothing costs its owner next to nothing and holds a slot until its time is over; and so
does one that sends a hello, which anybody can who has seen one, and nothing behind it. So when few slots are left,
clients go that keep others waiting: those without a complete hello; those that were refused and linger only to read
their alert; those whose name is looked for; and those that were placed, have their endpoint's answer, and have not sent
a byte since their hello. No TLS handshake ends without that byte (RFC 8446 section 2, RFC 5246 section 7.3: the client
finishes after the server has spoken). A stream whose client has spoken twice is never touched.

    below `Limits.overload_from`   nobody is cut
    above                          for each new client the one that has been silent longest, if that is GRACE_SECONDS
    no slot left                   the same, however short it has been: a hello comes right behind its connection, so
                                   it has been read before its client's turn comes

Who was placed gets SECOND_FLIGHT_SECONDS before this begins, as its next byte takes a round trip at least.

What always holds: without overload a stream pays nothing for this, and under overload the search for whom to cut
takes a tenth of the process's time at most.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from .shared_counts import SharedCounts

GRACE_SECONDS: Final = 1.0
SECOND_FLIGHT_SECONDS: Final = 1.0
_REST: Final = 9  # After each search, so many times as long without one.
_DESCRIPTORS: Final = 2  # What a stream takes.


class Client(Protocol):
    """A stream, as far as overload concerns it."""

    @property
    def silent_since(self) -> float | None:
        """Since when its client keeps others waiting, which may be a time to come; None for one that does not."""

    def shed(self) -> None:
        """End it at once and without a word: its place is needed."""


class Overload:
    """Finds and cuts the silent clients of one process.

    Args:
        clients: gives those that are open now.
        clock: reads the time.
        wanted: the number of streams from which on silent clients have to go, and the most streams.
        spent: the seconds of processor time that this thread has used.
    """

    def __init__(
        self,
        clients: Callable[[], Iterable[Client]],
        clock: Callable[[], float],
        wanted: Callable[[], tuple[int, int]],
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clients = clients
        self._clock = clock
        self._wanted = wanted
        self._spent = spent
        self._silent: deque[Client] = deque()
        self._next_search = float("-inf")

    def makes_room(self, counts: SharedCounts) -> bool:
        """Whether one more client may come in while there is overload; cuts another one where that takes it."""
        _, most = self._wanted()
        if counts.active < most:
            self._cut(GRACE_SECONDS)
            return True
        return self._cut() and counts.active < most

    def free_descriptors(self) -> bool:
        """Cut clients for the descriptors of one stream; False where nobody could be cut."""
        cut = [self._cut() for _ in range(_DESCRIPTORS)]
        return cut[0]

    def relieve(self, active: int) -> None:
        """Cut those of the silent clients of this process that keep `active` streams above the threshold.

        A process that has no silent clients itself, and so cannot make room, depends on the others to do this.
        """
        excess = active - self._wanted()[0]
        if excess < 0:
            self._silent.clear()
        while excess >= 0 and self._cut(GRACE_SECONDS):
            excess -= 1

    def _cut(self, waited: float = 0.0) -> bool:
        """Cut the client that has been silent longest, if it is so for `waited` seconds."""
        now, silent = self._clock(), self._silent
        while silent and not _is_silent(silent[0], now):
            silent.popleft()
        if not silent:
            self._search()
        since = silent[0].silent_since if silent else None
        if since is None or self._clock() - since < waited:
            return False
        silent.popleft().shed()
        return True

    def _search(self) -> None:
        began = self._clock()
        if began < self._next_search:
            return
        # Not by the clock: on a busy machine others run meanwhile, and whoever comes in the rest would be closed.
        before = self._spent()
        found = [client for client in self._clients() if _is_silent(client, began)]
        self._silent.extend(sorted(found, key=lambda each: each.silent_since or 0.0))
        self._next_search = self._clock() + (self._spent() - before) * _REST


def _is_silent(client: Client, now: float) -> bool:
    since = client.silent_since
    return since is not None and since <= now
