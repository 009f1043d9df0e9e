"""Following more services than Consul grants connections: which of them get a held query, and how the others are kept.

While there are connections for all, every service has a held query of its own. When there are not:

- Each service is read once at the start; the first snapshot waits for that, so no service is unknown when the gateway
  begins to serve.
- A service in use (streams of the last `IN_USE` seconds, or just registered) has a held query. Where more are in use
  than there are connections they pass them on, and those that wait for one are read every `TICK` seconds.
- One more held query, for the summaries of all services that Consul's web pages are made of, tells which others have
  changed (instances, their nodes, their health). Those are read at once. It is answered every `SUMMARY_PACE` seconds at
  most, for its answer is large.
- What summaries do not show, such as another port on the same node, is found by a sweep: all services, one after the
  other, slowly; less slowly where Consul gives no summaries.

A query that is held is never given up for another service: Consul would keep its connection's slot until its wait ends.
It is passed on when it returns.
"""

import random
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

import trio

from .errors import ConsulError
from .followed import NEVER, SIDECAR, Followed, nothing_expected
from .hub import WatchHub
from .pool import ReaderPool
from .records import LONGEST_WAIT, Client, Cursor, Instances, Page
from .watch import Watch

IN_USE: Final = 300.0
TICK: Final = 5.0
SUMMARY_PACE: Final = 10.0
# Seconds between two reads of the sweep, with summaries and without: of 5,000 services a pass takes 42 and 4 minutes.
SWEEP_PAUSE: Final = 0.5
SWEEP_PAUSE_ALONE: Final = 0.05
# Seconds that a query is held while other services in use wait for its connection.
PASSING_WAIT: Final = 15.0
SUMMARIES: Final = "summaries of services"

# At once, of the connections that short requests share.
_READERS: Final = 3
_AT_A_TICK: Final = 50
# Seconds that readers rest when the agent is out of reach.
_REST: Final = (1.0, 5.0)


class Attention:
    """Follows queries; one for a gateway.

    Args:
        client: for short requests.
        hub: shared by all watches.
        pool: connections for the queries that are held.
    """

    def __init__(self, client: Client, hub: WatchHub, pool: ReaderPool) -> None:
        self._client = client
        self._hub = hub
        self._pool = pool
        self._followed: dict[Followed, None] = {}
        self._by_service: dict[str, tuple[Followed, ...]] = {}
        self._interesting: dict[Followed, None] = {}
        self._watches: dict[Followed, trio.CancelScope] = {}
        self._waiting: list[Followed] = []
        self._due: dict[Followed, None] = {}
        self._round: deque[Followed] = deque()
        self._summaries: Mapping[str, int] = {}
        self._summarized = True
        self._fits = True
        self._news = trio.Event()
        self._work = trio.Event()

    def follow(self, query: Followed, *, later: bool = False) -> None:
        """Follow a query from now on.

        Args:
            query: is told the answers.
            later: where there are not connections for all, leave the first answer to the sweep.
        """
        query.state = self._hub.enlist(query.kind, query.name)
        query.state.swept = True
        self._followed[query] = None
        self._by_service[query.service] = (*self._by_service.get(query.service, ()), query)
        if not later:
            self._due[query] = None
        self._news.set()

    def leave(self, query: Followed) -> None:
        """Follow it no longer."""
        for queries in (self._followed, self._due, self._interesting):
            queries.pop(query, None)
        left = tuple(other for other in self._by_service[query.service] if other is not query)
        if left:
            self._by_service[query.service] = left
        else:
            del self._by_service[query.service]
        if query in self._watches:
            self._watches.pop(query).cancel()
        if query.state is not None:
            self._hub.strike(query.state)
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

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await self._run()
        finally:
            for query in tuple(self._followed):
                self.leave(query)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(_READERS):
                nursery.start_soon(self._read_what_is_due)
            nursery.start_soon(self._sweep)
            nursery.start_soon(self._follow_summaries)
            while True:
                self._news = trio.Event()
                self._balance(nursery)
                with trio.move_on_after(TICK):
                    await self._news.wait()
                    continue
                for query in self._waiting[:_AT_A_TICK]:
                    self._look(query)

    # --- who is watched ------------------------------------------------------------------------------------------

    def _interest(self, query: Followed) -> None:
        if query.interest == NEVER or query not in self._watches:
            self._news.set()
        query.interest = trio.current_time()
        self._interesting[query] = None

    def _balance(self, nursery: trio.Nursery) -> None:
        room = self._pool.room(len(self._watches))
        self._fits = len(self._followed) <= room
        if self._fits:
            wanted = list(self._followed)
            self._due.clear()
        else:
            self._forget()
            # Who waits already comes first.
            newest = sorted(self._interesting, key=lambda query: query.interest, reverse=True)
            wanted = list(dict.fromkeys([*(it for it in self._waiting if it in self._interesting), *newest]))
            self._wake()
        missing = [query for query in wanted if query not in self._watches]
        free = max(0, room - len(self._watches))
        self._waiting = missing[free:]
        for query in missing[:free]:
            scope = self._watches[query] = trio.CancelScope()
            self._due.pop(query, None)
            nursery.start_soon(self._watch, query, scope)

    def _forget(self) -> None:
        unused = [query for query in self._interesting if not self._in_use(query)]
        for query in unused:
            del self._interesting[query]

    def _in_use(self, query: Followed) -> bool:
        return query.interest > trio.current_time() - IN_USE

    def _keeps(self, query: Followed, until: float) -> bool:
        """Whether a query whose answer has come is to be held again; it may be until a time, whoever waits."""
        return self._fits or (self._in_use(query) and (not self._waiting or trio.current_time() < until))

    async def _watch(self, query: Followed, scope: trio.CancelScope) -> None:
        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._pool.turn(cursor, PASSING_WAIT if self._waiting else LONGEST_WAIT) as (reader, turn):
                page = await query.ask(reader, turn)
            await query.held.accept(page)
            return page

        with scope, self._pool.watching():
            if scope.cancel_called or query.state is None:
                return
            query.state.swept = False
            watch = Watch(
                self._hub,
                query.kind,
                query.name,
                ask,
                lambda _: query.answered(),
                on_error=query.failed,
            )
            until = trio.current_time() + PASSING_WAIT
            await watch.only_while(partial(self._keeps, query, until), state=query.state).run()
            query.state.swept = True
            self._watches.pop(query, None)
            self._news.set()

    # --- who is only read ----------------------------------------------------------------------------------------

    def _look(self, query: Followed) -> None:
        if query not in self._watches:
            self._due[query] = None
            self._wake()

    def _wake(self) -> None:
        self._work.set()
        self._work = trio.Event()

    async def _read_what_is_due(self) -> None:
        while True:
            while self._fits or not self._due:
                await self._work.wait()
            query = next(iter(self._due))
            del self._due[query]
            await self._read(query)

    async def _read(self, query: Followed) -> None:
        if query.state is None or query in self._watches or query not in self._followed:
            return
        first = query.state.last_success is None
        before = query.held.value
        try:
            page = await query.ask(self._client, Cursor())
            await query.held.accept(page)
        except ConsulError as error:
            if query in self._followed:
                self._hub.failed(query.state, error)
                query.failed(error)
                await self._rest(query, error)
            return
        if query in self._followed and query not in self._watches:
            self._hub.succeeded(query.state)
            query.state.index = page.index or 0
            if first or query.held.value is not before:
                query.answered()

    async def _rest(self, query: Followed, error: ConsulError) -> None:
        """What could not be read because nothing can be is tried again; anything else is left to the sweep."""
        if error.status in ("unreachable", "timeout", "429"):
            with trio.move_on_after(random.uniform(*_REST)):  # noqa: S311 (spreads load, decides nothing)
                await self._hub.recovery()
            if query in self._followed:
                self._look(query)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_PAUSE if self._summarized else SWEEP_PAUSE_ALONE)
            if self._fits:
                self._round.clear()
                await self._too_many()
                continue
            if not self._round:
                self._round.extend(query for query in self._followed if not nothing_expected(query))
            if self._round:
                await self._read(self._round.popleft())

    async def _too_many(self) -> None:
        """Wait until there are not connections for all."""
        while self._fits:
            await self._work.wait()

    # --- what tells of changes -----------------------------------------------------------------------------------

    async def _follow_summaries(self) -> None:
        while True:
            await self._too_many()
            async with self._pool.dedicated() as reader:
                watch = Watch(
                    self._hub, "summaries", SUMMARIES, reader.summaries, self._summarize, on_error=self._no_summaries
                )
                await watch.only_while(lambda: not self._fits, pace=SUMMARY_PACE).run()
            self._summaries = {}

    def _no_summaries(self, _: ConsulError) -> None:
        self._summarized = False

    def _summarize(self, summaries: Mapping[str, int]) -> None:
        self._summarized = True
        before, self._summaries = self._summaries, summaries
        if not before:
            return
        changed = {name.lower() for name, digest in summaries.items() if before.get(name) != digest}
        changed.update(name.lower() for name in before.keys() - summaries.keys())
        if changed:
            self.look(changed | {name.removesuffix(SIDECAR) for name in changed})
            for query in self._followed:
                if any(instance.service.lower() in changed for instance in query.held.value):
                    self._look(query)
