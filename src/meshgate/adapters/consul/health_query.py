"""What is followed: a query for instances, of a service or of a subset. How closely, `watch_scheduler` decides.

Queries that nobody holds are read: those that are due one after the other, and one at once where a stream waits. What
always holds: an answer is taken over only while the query is still to be read, so it never overtakes that of a query
that is held; and a failure takes nothing back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from .acl_visibility import VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page
from .retry import READINGS
from .scope import Scope
from .watch_registry import WatchKey, WatchState

# Sidecars are registered as services of this name, unless somebody says otherwise.
SIDECAR: Final = "-sidecar-proxy"
# `last_used` of what was never used.
NEVER: Final = float("-inf")
# At once, of the connections that short requests share.
_READERS: Final = 3


class HealthQuery(ABC):
    """A query for the instances of something that belongs to a service; `service` is its lower-case name.

    `held` has what is known. `last_used` is on trio's clock. `cold` is whether Consul is asked for it only now and
    then, so that what is known may be old. `state` is None while nobody follows it.
    """

    __slots__ = ("cold", "held", "key", "last_used", "service", "state")

    def __init__(self, key: WatchKey, service: str, held: VerifiedInstances) -> None:
        self.key = key
        self.service = service
        self.held = held
        self.last_used = NEVER
        self.cold = True
        self.state: WatchState | None = None

    @property
    def expects_nothing(self) -> bool:
        """Whether it was answered with nothing, as are those for sidecars by their own names."""
        return self.service.endswith(SIDECAR) and self.held.known and not self.held.value

    @abstractmethod
    async def ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        """One request."""

    @abstractmethod
    def answered(self) -> None:
        """There is a first answer, or another one than before; `held` has it."""

    @abstractmethod
    def failed(self, error: ConsulError) -> None:
        """A request has failed."""

    @abstractmethod
    def on_staleness_changed(self) -> None:
        """`cold` is not what it was."""


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
