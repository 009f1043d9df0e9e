"""Following more services than Consul grants connections: which of them get a held query, and how the others are kept.

While there are connections for all, every service has a held query of its own. When there are not:

- Each service is read once at the start; the first snapshot waits for that, so no service is unknown when the gateway
  begins to serve.
- A service in use (streams of the last `IN_USE` seconds, or just registered) has a held query. Where more are in use
  than there are connections they pass them on, and the first `AT_A_TICK` of those that wait for one are read every
  `TICK` seconds.
- All others are cold: what is known of them may be old, so the first stream waits until they are read (`lookup`), and
  puts them into use. That they are not far behind when Consul is lost is the work of `_Resync`.

A query that is held is never given up for another service: Consul would keep its connection's slot until its wait ends.
It is passed on when it returns. The answer to a read is taken over only while the query is still to be read, so it
never overtakes that of a query that is held; and a failure takes nothing back.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from .acl_visibility import VerifiedInstances
from .api import LONGEST_WAIT, NOW, ConsulClient, ConsulError, Cursor, Instances, Page
from .retry import READINGS
from .scope import Scope
from .watch import Watch, WatchKey, WatchState

IN_USE: Final = 300.0
TICK: Final = 5.0
AT_A_TICK: Final = 50
# Seconds that a query is held while other services in use wait for its connection.
PASSING_WAIT: Final = 15.0
# Seconds for which what was read is as good as what is read now.
FRESH: Final = 0.1
SUMMARY_PACE: Final = 30.0
# Seconds between two reads of the sweep, with summaries and without: a pass over 5,000 services takes 3 hours, or 4
# minutes.
SWEEP_PAUSE: Final = 2.0
SWEEP_PAUSE_ALONE: Final = 0.05
SUMMARIES: Final = WatchKey("summaries", "summaries of services")
# Sidecars are registered as services of this name, unless somebody says otherwise.
SIDECAR: Final = "-sidecar-proxy"
# `last_used` of what was never used.
_NEVER: Final = float("-inf")
# Reads at once, on the connections that short requests share.
_READERS: Final = 3


@dataclass(eq=False, slots=True)
class HealthQuery:
    """A query for the instances of a service, or of those that a subset's filter leaves.

    `service` is the lower-case name of the service, and `held` has what is known. `refused`: Consul says that the
    filter does not compile. `cold` is whether Consul is asked for it only now and then, so that what is known may be
    old. `last_used` is on trio's clock.
    """

    state: WatchState
    service: str
    held: VerifiedInstances
    filter: str = ""
    refused: bool = False
    cold: bool = True
    last_used: float = _NEVER


@dataclass(slots=True, eq=False)
class _Held:
    """A query that is held; `tried` when its first answer has come, or has not."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    tried: trio.Event = field(default_factory=trio.Event)


class WatchScheduler:
    """Follows queries; one for a namespace.

    `answered` hears of each first answer and of each that differs, which `held` of the query has then, and `failed` of
    failed requests; `staleness_changed` that `cold` is not what it was.
    """

    def __init__(
        self,
        scope: Scope,
        *,
        answered: Callable[[HealthQuery], None],
        failed: Callable[[HealthQuery, ConsulError], None],
        staleness_changed: Callable[[HealthQuery], None],
    ) -> None:
        self.crowded = trio.Event()
        """Set while there are not connections for all."""
        self._scope = scope
        self._answered = answered
        self._failed = failed
        self._staleness_changed = staleness_changed
        self.followed: dict[HealthQuery, None] = {}
        self._by_service: dict[str, tuple[HealthQuery, ...]] = {}
        self._interesting: dict[HealthQuery, None] = {}
        self._new: dict[HealthQuery, None] = {}
        self._held: dict[HealthQuery, _Held] = {}
        self._waiting: list[HealthQuery] = []
        self._warm: set[HealthQuery] = set()
        self._news = trio.Event()
        # To be read one after the other, and whether there may be any.
        self._due: dict[HealthQuery, None] = {}
        self._work = trio.Event()

    @property
    def fits(self) -> bool:
        """Whether there are connections for all."""
        return not self.crowded.is_set()

    def follow(
        self, key: WatchKey, service: str, held: VerifiedInstances, subset_filter: str = "", *, later: bool = False
    ) -> HealthQuery:
        """Follow a query from now on; `later`: where there are not connections for all, the sweep brings the answer."""
        query = HealthQuery(self._scope.registry.register(key), service, held, subset_filter)
        query.state.swept = True
        self.followed[query] = None
        self._by_service[query.service] = (*self._by_service.get(query.service, ()), query)
        if not later:
            self._new[query] = None
        self._news.set()
        return query

    def leave(self, query: HealthQuery) -> None:
        for queries in (self.followed, self._interesting, self._new):
            queries.pop(query, None)
        self._due.pop(query, None)
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
        self._scope.registry.unregister(query.state)
        self._news.set()

    def used(self, services: Iterable[str]) -> None:
        """These services have streams; lower-case names, unknown ones are ignored."""
        for service in services:
            for query in self._by_service.get(service, ()):
                if query.last_used == _NEVER or query not in self._held:
                    self._news.set()
                query.last_used = trio.current_time()
                self._interesting[query] = None

    def read_soon(self, services: Iterable[str]) -> None:
        """Something about these services has probably changed."""
        for service in services:
            for query in self._by_service.get(service, ()):
                self._look(query)

    async def lookup(self, service: str) -> None:
        """Put a service into use, and return when it is known as Consul has it now, or when that cannot be had."""
        async with trio.open_nursery() as nursery:
            for query in self._by_service.get(service, ()):
                nursery.start_soon(self._lookup, query)
        # Not before: a query that is held answers for itself.
        self.used((service,))

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(_READERS):
                    nursery.start_soon(self._read_what_is_due)
                nursery.start_soon(_Resync(self._scope, self).run)
                while True:
                    self._news = trio.Event()
                    self._balance(nursery)
                    with trio.move_on_after(TICK):
                        await self._news.wait()
                        continue
                    for query in self._waiting[:AT_A_TICK]:
                        self._look(query)
        finally:
            for query in tuple(self.followed):
                self.leave(query)

    # --- who is watched ------------------------------------------------------------------------------------------

    def _balance(self, nursery: trio.Nursery) -> None:
        room = self._scope.pool.capacity_for(len(self._held))
        if len(self.followed) <= room:
            if self.crowded.is_set():
                self.crowded = trio.Event()
            wanted = list(self.followed)
        else:
            self.crowded.set()
            self._interesting = {query: None for query in self._interesting if self._in_use(query)}
            # Who waits already comes first.
            newest = sorted(self._interesting, key=lambda query: query.last_used, reverse=True)
            wanted = list(dict.fromkeys([*(it for it in self._waiting if it in self._interesting), *newest]))
        missing = [query for query in wanted if query not in self._held]
        free = max(0, room - len(self._held))
        self._waiting = missing[free:]
        for query in missing[:free]:
            held = self._held[query] = _Held()
            self._due.pop(query, None)
            nursery.start_soon(self._watch, query, held)
        for query in self._new:
            self._look(query)
        self._new.clear()
        warm = {*self._held, *self._waiting[:AT_A_TICK]}
        for query in warm ^ self._warm:
            if query in self.followed:
                query.cold = query not in warm
                self._staleness_changed(query)
        self._warm = warm

    def _in_use(self, query: HealthQuery) -> bool:
        return query.last_used > trio.current_time() - IN_USE

    def _keeps(self, query: HealthQuery, until: float) -> bool:
        """Whether a query whose answer has come is to be held again; it may be until a time, whoever waits."""
        return self.fits or (self._in_use(query) and (not self._waiting or trio.current_time() < until))

    async def _watch(self, query: HealthQuery, held: _Held) -> None:
        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._scope.pool.slot(cursor) as reader:
                page = await self._request(query, self._scope.reader(reader), cursor)
            await query.held.accept(page, cursor, again=partial(self._request, query, self._scope.client, NOW))
            return page

        def answered(_: Instances) -> None:
            held.tried.set()
            self._answered(query)

        def failed(error: ConsulError) -> None:
            held.tried.set()
            self._failed(query, error)

        with held.scope, self._scope.pool.registered():
            if held.scope.cancel_called:
                return
            query.state.swept = False
            start = Cursor()
            if self._is_fresh(query):
                start = Cursor(query.state.index)
                held.tried.set()
            until = trio.current_time() + PASSING_WAIT
            await Watch(
                self._scope.registry,
                query.state.key,
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

    async def _request(self, query: HealthQuery, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        page = await reader.connect_instances(query.held.service, cursor, subset_filter=query.filter)
        if query.refused:
            query.refused = False
            self._answered(query)
        return page

    # --- who is only read ----------------------------------------------------------------------------------------

    async def read(self, query: HealthQuery) -> None:
        """Read it. What could not be read because nothing can be is tried again; anything else is left to others."""
        if self._is_read(query):
            with suppress(ConsulError):
                await READINGS.retrying(sleep=self._rest, wanted=partial(self._is_read, query))(self._read, query)

    def _is_read(self, query: HealthQuery) -> bool:
        return query in self.followed and query not in self._held

    def _look(self, query: HealthQuery) -> None:
        """Read it as soon as those before it are read."""
        if self._is_read(query):
            self._due[query] = None
            self._work.set()

    async def _read_what_is_due(self) -> None:
        while True:
            while not self._due:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()
            query = next(iter(self._due))
            del self._due[query]
            await self.read(query)

    async def _rest(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._scope.registry.recovery()

    async def _read(self, query: HealthQuery) -> None:
        first = query.state.last_success is None
        before = query.held.value
        try:
            request = partial(self._request, query, self._scope.client, NOW)
            page = await request()
            await query.held.accept(page, again=request)
        except ConsulError as error:
            if self._is_read(query):
                self._scope.registry.failed(query.state, error)
                self._failed(query, error)
            raise
        if self._is_read(query):
            self._scope.registry.succeeded(query.state)
            query.state.index = page.index or 0
            if first or query.held.value is not before:
                self._answered(query)

    async def _lookup(self, query: HealthQuery) -> None:
        if query not in self._held and not self._is_fresh(query):
            with suppress(ConsulError):
                await self._read(query)
        if query in self._held:
            await self._held[query].tried.wait()

    def _is_fresh(self, query: HealthQuery) -> bool:
        last = query.state.last_success
        return last is not None and trio.current_time() - last <= (FRESH if query.cold else TICK)


class _Resync:
    """Has read what has changed of services that are only read: told by summaries where Consul gives them.

    One held query, for the summaries of all services that Consul's web pages are made of, tells which have changed
    (instances, their nodes, their health); those are read at once. It is answered every `SUMMARY_PACE` seconds at most,
    for its answer is large. What summaries do not show, such as another port on the same node, is found by the sweep:
    all services, one after the other, slowly; less slowly where Consul gives no summaries.
    """

    def __init__(self, scope: Scope, scheduler: WatchScheduler) -> None:
        self._scope = scope
        self._scheduler = scheduler
        self._summaries: Mapping[str, int] = {}
        self._summarized = True

    async def run(self) -> None:
        sweep: deque[HealthQuery] = deque()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_summaries)
            while True:
                await trio.sleep(SWEEP_PAUSE if self._summarized else SWEEP_PAUSE_ALONE)
                if self._scheduler.fits:
                    sweep.clear()
                    await self._scheduler.crowded.wait()
                    continue
                if not sweep:
                    # Not those that were answered with nothing, as are those for sidecars by their own names.
                    sweep.extend(
                        query
                        for query in self._scheduler.followed
                        if query.held.value or not query.held.known or not query.service.endswith(SIDECAR)
                    )
                if sweep:
                    await self._scheduler.read(sweep.popleft())

    async def _follow_summaries(self) -> None:
        while True:
            await self._scheduler.crowded.wait()
            await self._scope.watch(
                SUMMARIES,
                lambda reader, cursor: reader.summaries(cursor),
                self._summarize,
                on_error=self._no_summaries,
                dedicated=True,
                wanted=lambda: not self._scheduler.fits,
                pace=lambda: SUMMARY_PACE,
            )
            self._summaries = {}

    def _no_summaries(self, _: ConsulError) -> None:
        self._summarized = False

    def _summarize(self, summaries: Mapping[str, int]) -> None:
        self._summarized = True
        before, self._summaries = self._summaries, summaries
        if not before:
            return
        changed = {name.lower() for name, _ in summaries.items() ^ before.items()}
        named = changed | {name.removesuffix(SIDECAR) for name in changed}
        self._scheduler.read_soon(named | self._odd(changed))

    def _odd(self, changed: set[str]) -> set[str]:
        """The services whose sidecars have names of their own, and are among those that have changed."""
        queries = self._scheduler.followed
        own = {query.service for query in queries if query.held.value}
        names = {name for name in changed if name.removesuffix(SIDECAR) not in own}
        if not names:
            return set()
        return {query.service for query in queries if any(each.service.lower() in names for each in query.held.value)}
