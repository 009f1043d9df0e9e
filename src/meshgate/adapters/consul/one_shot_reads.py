"""Reading queries that nobody holds: those that are due, one after the other, and one at once where a stream waits.

What always holds: an answer is taken over only while the query is still to be read, so it never overtakes that of a
query that is held; and a failure takes nothing back.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from .api import ConsulError, Cursor
from .health_query import HealthQuery
from .retry import READINGS
from .scope import Scope

# At once, of the connections that short requests share.
_READERS: Final = 3


class OneShotReads:
    """Reads queries.

    Args:
        scope: where Consul is asked.
        wanted: whether a query is to be read still: it is followed, and not held.
    """

    def __init__(self, scope: Scope, wanted: Callable[[HealthQuery], bool]) -> None:
        self._scope = scope
        self._wanted = wanted
        self._due: dict[HealthQuery, None] = {}
        self._work = trio.Event()

    def enqueue(self, query: HealthQuery) -> None:
        """Read it as soon as those before it are read."""
        self._due[query] = None
        self._work.set()

    def drop(self, query: HealthQuery) -> None:
        """Do not read it after all."""
        self._due.pop(query, None)

    async def run(self) -> None:
        """Read what is due until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_READERS):
                nursery.start_soon(self._read_what_is_due)

    async def _read_what_is_due(self) -> None:
        while True:
            while not self._due:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()
            query = next(iter(self._due))
            del self._due[query]
            await self.read(query)

    async def read(self, query: HealthQuery) -> None:
        """Read it. What could not be read because nothing can be is tried again; anything else is left to others."""
        if self._wanted(query):
            with suppress(ConsulError):
                await READINGS.retrying(sleep=self._rest, wanted=partial(self._wanted, query))(self._ask, query)

    async def ask(self, query: HealthQuery) -> None:
        """One request for a query that is to be read; it hears of a failure."""
        with suppress(ConsulError):
            await self._ask(query)

    async def _rest(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._scope.registry.recovery()

    async def _ask(self, query: HealthQuery) -> None:
        if query.state is None:
            return
        first = query.state.last_success is None
        before = query.held.value
        try:
            page = await query.ask(self._scope.client, Cursor())
            await query.held.accept(page)
        except ConsulError as error:
            if self._wanted(query):
                self._scope.registry.failed(query.state, error)
                query.failed(error)
            raise
        if self._wanted(query):
            self._scope.registry.succeeded(query.state)
            query.state.index = page.index or 0
            if first or query.held.value is not before:
                query.answered()
