"""Following more services than Consul grants connections: which of them get a held query, and how the others are kept.

While there are connections for all, every service has a held query of its own. When there are not:

- Each service is read once at the start; the first snapshot waits for that, so no service is unknown when the gateway
  begins to serve.
- A service in use (streams of the last `IN_USE` seconds, or just registered) has a held query. Where more are in use
  than there are connections they pass them on, and the first `AT_A_TICK` of those that wait for one are read every
  `TICK` seconds.
- All others are cold: what is known of them may be old, so the first stream waits until they are read (`lookup`), and
  puts them into use. That they are not far behind when Consul is lost is what `sweep` is for.

A query that is held is never given up for another service: Consul would keep its connection's slot until its wait ends.
It is passed on when it returns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from .api import LONGEST_WAIT, ConsulError, Cursor, Instances, Page
from .health_query import NEVER, HealthQuery, OneShotReads
from .resync import Resync
from .scope import Scope
from .watch import Watch

IN_USE: Final = 300.0
TICK: Final = 5.0
AT_A_TICK: Final = 50
# Seconds that a query is held while other services in use wait for its connection.
PASSING_WAIT: Final = 15.0
# Seconds for which what was read is as good as what is read now.
FRESH: Final = 0.1


@dataclass(slots=True, eq=False)
class _Held:
    """A query that is held; `tried` when its first answer has come, or has not."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    tried: trio.Event = field(default_factory=trio.Event)


class WatchScheduler:
    """Follows queries; one for a namespace, where `scope` is."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._followed: dict[HealthQuery, None] = {}
        self._by_service: dict[str, tuple[HealthQuery, ...]] = {}
        self._interesting: dict[HealthQuery, None] = {}
        self._new: dict[HealthQuery, None] = {}
        self._held: dict[HealthQuery, _Held] = {}
        self._waiting: list[HealthQuery] = []
        self._warm: set[HealthQuery] = set()
        self._fits = True
        self._news = trio.Event()
        self._reads = OneShotReads(scope, self._is_read)
        self._resync = Resync(scope, self._reads, lambda: tuple(self._followed), self.look)

    @property
    def fits(self) -> bool:
        """Whether there are connections for all."""
        return self._fits

    def follow(self, query: HealthQuery, *, later: bool = False) -> None:
        """Follow a query from now on.

        Args:
            query: is told the answers.
            later: where there are not connections for all, leave the first answer to the sweep.
        """
        query.state = self._scope.registry.register(query.key)
        query.state.swept = True
        query.cold = True
        self._followed[query] = None
        self._by_service[query.service] = (*self._by_service.get(query.service, ()), query)
        if not later:
            self._new[query] = None
        self._news.set()

    def leave(self, query: HealthQuery) -> None:
        """Follow it no longer."""
        for queries in (self._followed, self._interesting, self._new):
            queries.pop(query, None)
        self._reads.drop(query)
        self._warm.discard(query)
        left = tuple(other for other in self._by_service[query.service] if other is not query)
        if left:
            self._by_service[query.service] = left
        else:
            del self._by_service[query.service]
        if query in self._held:
            held = self._held.pop(query)
            held.scope.cancel()
            held.tried.set()
        if query.state is not None:
            self._scope.registry.unregister(query.state)
        self._news.set()

    def used(self, services: Iterable[str]) -> None:
        """These services have streams; lower-case names, unknown ones are ignored."""
        for service in services:
            for query in self._by_service.get(service, ()):
                self._interest(query)

    def look(self, services: Iterable[str]) -> None:
        """Something about these services has probably changed."""
        for service in services:
            for query in self._by_service.get(service, ()):
                self._look(query)

    async def lookup(self, service: str) -> None:
        """Put a service into use, and return when it is known as Consul has it now, or when that cannot be had.

        May take as long as a request does; a caller who has less time cancels it.
        """
        async with trio.open_nursery() as nursery:
            for query in self._by_service.get(service, ()):
                nursery.start_soon(self._lookup, query)
        # Not before: a query that is held answers for itself.
        self.used((service,))

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await self._run()
        finally:
            for query in tuple(self._followed):
                self.leave(query)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reads.run)
            nursery.start_soon(self._resync.run)
            while True:
                self._news = trio.Event()
                self._balance(nursery)
                with trio.move_on_after(TICK):
                    await self._news.wait()
                    continue
                for query in self._waiting[:AT_A_TICK]:
                    self._look(query)

    # --- who is watched ------------------------------------------------------------------------------------------

    def _interest(self, query: HealthQuery) -> None:
        if query.last_used == NEVER or query not in self._held:
            self._news.set()
        query.last_used = trio.current_time()
        self._interesting[query] = None

    def _balance(self, nursery: trio.Nursery) -> None:
        room = self._scope.pool.capacity_for(len(self._held))
        self._fits = len(self._followed) <= room
        self._resync.want(not self._fits)
        if self._fits:
            wanted = list(self._followed)
        else:
            self._forget()
            # Who waits already comes first.
            newest = sorted(self._interesting, key=lambda query: query.last_used, reverse=True)
            wanted = list(dict.fromkeys([*(it for it in self._waiting if it in self._interesting), *newest]))
        missing = [query for query in wanted if query not in self._held]
        free = max(0, room - len(self._held))
        self._waiting = missing[free:]
        for query in missing[:free]:
            held = self._held[query] = _Held()
            self._reads.drop(query)
            nursery.start_soon(self._watch, query, held)
        for query in self._new:
            self._look(query)
        self._new.clear()
        self._tell_warm({*self._held, *self._waiting[:AT_A_TICK]})

    def _tell_warm(self, warm: set[HealthQuery]) -> None:
        """Tell those queries that are not cold any more, or are now."""
        for query in warm ^ self._warm:
            if query in self._followed:
                query.cold = query not in warm
                query.on_staleness_changed()
        self._warm = warm

    def _forget(self) -> None:
        unused = [query for query in self._interesting if not self._in_use(query)]
        for query in unused:
            del self._interesting[query]

    def _in_use(self, query: HealthQuery) -> bool:
        return query.last_used > trio.current_time() - IN_USE

    def _keeps(self, query: HealthQuery, until: float) -> bool:
        """Whether a query whose answer has come is to be held again; it may be until a time, whoever waits."""
        return self._fits or (self._in_use(query) and (not self._waiting or trio.current_time() < until))

    async def _watch(self, query: HealthQuery, held: _Held) -> None:
        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._scope.pool.slot(cursor) as reader:
                page = await query.ask(self._scope.reader(reader), cursor)
            await query.held.accept(page, cursor)
            return page

        def answered(_: Instances) -> None:
            held.tried.set()
            query.answered()

        def failed(error: ConsulError) -> None:
            held.tried.set()
            query.failed(error)

        with held.scope, self._scope.pool.registered():
            if held.scope.cancel_called or query.state is None:
                return
            query.state.swept = False
            start = Cursor()
            if self._is_fresh(query):
                start = Cursor(query.state.index)
                held.tried.set()
            until = trio.current_time() + PASSING_WAIT
            await Watch(
                self._scope.registry,
                query.key,
                ask,
                answered,
                on_error=failed,
                wait=lambda: self._scope.pool.wait(PASSING_WAIT if self._waiting else LONGEST_WAIT),
                wanted=partial(self._keeps, query, until),
                state=query.state,
                start=start,
            ).run()
            query.state.swept = True
            self._held.pop(query, None)
            self._news.set()

    # --- who is only read ----------------------------------------------------------------------------------------

    def _is_read(self, query: HealthQuery) -> bool:
        return query in self._followed and query not in self._held

    def _look(self, query: HealthQuery) -> None:
        if self._is_read(query):
            self._reads.enqueue(query)

    async def _lookup(self, query: HealthQuery) -> None:
        if query not in self._held and not self._is_fresh(query):
            await self._reads.ask(query)
        if query in self._held:
            await self._held[query].tried.wait()

    def _is_fresh(self, query: HealthQuery) -> bool:
        last = None if query.state is None else query.state.last_success
        return last is not None and trio.current_time() - last <= (FRESH if query.cold else TICK)
