"""Room for clients that speak, when the slots for streams are nearly used up.

A client that connects and says nothing costs its owner next to nothing and holds a slot until its time is over. So
when few slots are left, clients that have waited long without a complete hello are cut, and those that were refused
and linger only to read their alert. A stream that has been placed is never touched.

    below `Limits.pressure_from`   nobody is cut
    above                          for each new client the one that has been silent longest, if that is GRACE_SECONDS
    no slot left                   the same, however short it has been: a hello comes right behind its connection, so
                                   it has been read before its client's turn comes

What always holds: without pressure a stream pays nothing for this, and under pressure the search for whom to cut
takes a tenth of the process's time at most.
"""

from collections import deque
from typing import TYPE_CHECKING, Final

from meshgate.core.reasons import Reason

from .shared import SharedCounts

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine

GRACE_SECONDS: Final = 1.0
_REST: Final = 9  # After each search, so many times as long without one.
_DESCRIPTORS: Final = 2  # What a stream takes.
_CUT: Final = "no complete hello, and its place was needed"


class Pressure:
    """Finds and cuts the silent clients of one process."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._silent: deque[Connection] = deque()
        self._next_search = float("-inf")

    def admits(self, counts: SharedCounts) -> bool:
        """Whether one more client may come in while there is pressure; makes room for it where that takes it."""
        most = self._engine.limits.max_connections
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
        excess = active - self._engine.limits.pressure_from
        if excess < 0:
            self._silent.clear()
        while excess >= 0 and self._cut(GRACE_SECONDS):
            excess -= 1

    def _cut(self, waited: float = 0.0) -> bool:
        """Cut the client that has been silent longest, if it is so for `waited` seconds."""
        connection = self._longest_silent()
        if connection is None or self._engine.now - connection.started < waited:
            return False
        self._silent.popleft()
        if connection.opening is not None:
            connection.shed(Reason.HELLO_TIMEOUT, _CUT)
        else:
            connection.close()
        return True

    def _longest_silent(self) -> "Connection | None":
        silent = self._silent
        while silent and not _is_silent(silent[0]):
            silent.popleft()
        if not silent:
            self._search()
        return silent[0] if silent else None

    def _search(self) -> None:
        engine = self._engine
        began = engine.clock()
        if began < self._next_search:
            return
        self._silent.extend(sorted(filter(_is_silent, engine.connections()), key=lambda each: each.started))
        ended = engine.clock()
        self._next_search = ended + (ended - began) * _REST


def _is_silent(connection: "Connection") -> bool:
    """Whether a connection waits for its hello, or lingers behind its alert."""
    opening = connection.opening
    return not (connection.relaying or connection.closed) if opening is None else not opening.connecting
