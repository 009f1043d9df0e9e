"""One watch: asks Consul for the next state of something, for ever, and hands on what changed.

What always holds: a value is handed on only if it differs from the last one; no failure takes anything back; a query
that Consul answers at once again and again is slowed to a trickle; and a query after a failure, or after a sign that
Consul's state was restored, does not block, so that the first answer is the present state, whatever became of Consul's
index meanwhile.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Final, Generic, TypeVar

import structlog
import trio

from .api import LONGEST_WAIT, AgentFacts, ConsulClient, ConsulError, Cursor, Page
from .watch_registry import SPREAD, TOKEN_LOOK, WatchKey, WatchRegistry, WatchState, always, ignore

log = structlog.get_logger(module="meshgate.consul")

T = TypeVar("T")

# Answers may come this many seconds apart, two in a row without a wait: Consul's index may move without a change of
# what is watched, and a broken proxy may never hold a query.
PACE: Final = 0.5
BURST: Final = 2
# Seconds from which on a query counts as held by Consul.
HELD: Final = 1.0


@dataclass(eq=False)
class Watch(Generic[T]):
    """Follows one value of Consul.

    Args:
        registry: shared by all watches.
        key: what is watched.
        ask: one request; it gets the cursor to go on from and raises `ConsulError`. It may be cancelled.
        on_value: gets the first value, and each later one that is not equal to the one before.
        on_error: hears of each failed request.
        interval: seconds between two requests, or what tells them, where Consul cannot hold any; None for a blocking
            query.
        wait: tells how many seconds a blocking query may be held.
        minds_token: give up a query that is held when the token is replaced, and ask anew. Consul answers a held query
            by the rights of the token that it came with, and keeps the slot of one that was given up until its wait
            ends; so this is for the few lists that say what there is, not for the many watches of single services.
        wanted: asked before each request but the first; the watch ends where it says no. A query that is held is not
            given up for its answer.
        pace: tells how many seconds answers may come apart in the long run.
        state: of the watch, where somebody else keeps it registered.
        start: where to begin, if what was true there is known already; `on_value` gets what comes after it.
    """

    registry: WatchRegistry
    key: WatchKey
    ask: Callable[[Cursor], Awaitable[Page[T]]]
    on_value: Callable[[T], None]
    _: KW_ONLY
    on_error: Callable[[ConsulError], None] = ignore
    interval: float | Callable[[], float] | None = None
    wait: Callable[[], float] = lambda: LONGEST_WAIT
    minds_token: bool = False
    wanted: Callable[[], bool] = always
    pace: Callable[[], float] = lambda: PACE
    state: WatchState | None = None
    start: Cursor = field(default_factory=Cursor)

    def __post_init__(self) -> None:
        self._asking = trio.CancelScope()
        self._generation = self.registry.generation
        self._cursor = self.start
        self._last: tuple[T] | None = None

    async def run(self) -> None:
        """Watch until cancelled or no longer wanted."""
        listed = self.registry.registered(self.key) if self.state is None else nullcontext(self.state)
        with listed as state:
            if not self.minds_token:
                await self._follow(state)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._mind_token)
                await self._follow(state)
                nursery.cancel_scope.cancel()

    async def _follow(self, state: WatchState) -> None:
        pace = Pace(self.pace)
        await pace.take()
        while (page := await self.registry.retry(state, self._request, self._failed, self.wanted)) is not None:
            self._advance(state, page)
            if self.interval is not None:
                # After an outage there may be news: no need to sit out the rest of the interval.
                with trio.move_on_after(self.interval() if callable(self.interval) else self.interval):
                    await self.registry.recovery()
            await pace.take()
            if not self.wanted():
                return

    async def _request(self) -> Page[T]:
        while True:
            if self._generation != self.registry.generation:
                self._generation, self._cursor = self.registry.generation, Cursor()
                await trio.sleep(random.uniform(0, SPREAD))  # noqa: S311 (spreads load, decides nothing)
            cursor = replace(self._cursor, wait=min(self.wait(), self.registry.longest_wait()))
            begun = trio.current_time()
            with self.registry.asking() as self._asking:
                page = await self.ask(cursor)
                if not _tells_of_restore(cursor, page, trio.current_time() - begun):
                    return page
                self.registry.restored()
            self._cursor = Cursor()

    async def _mind_token(self) -> None:
        version = self.registry.token_version()
        while True:
            await trio.sleep(TOKEN_LOOK)
            if self.registry.token_version() != version:
                version = self.registry.token_version()
                self._asking.cancel()

    def _failed(self, error: ConsulError) -> None:
        self._cursor = Cursor()
        self.on_error(error)

    def _advance(self, state: WatchState, page: Page[T]) -> None:
        index = 0 if page.index is None else next_index(self._cursor.index, page.index)
        self._cursor = Cursor(index, page.content_hash)
        state.index = index
        if self._last is None or (self._last[0] is not page.value and self._last[0] != page.value):
            self._last = (page.value,)
            self.on_value(page.value)


def _tells_of_restore(cursor: Cursor, page: Page[object], held: float) -> bool:
    """Whether an answer to a held query is one that Consul gives only where its state was replaced.

    After `snapshot restore` it answers what it holds at once, as it was, with the very index that was asked for; asked
    with that again, it would hold the query to its end (seen with 1.8 and 1.22; `agent/blockingquery`). What comes
    within `HELD` seconds was never held: a proxy in between answers so.
    """
    return cursor.index > 0 and page.index == cursor.index and HELD <= held < 0.9 * cursor.wait


def next_index(asked: int, answered: int) -> int:
    """The index to ask with next (Consul's API documentation, "Blocking Queries").

    An index that went backwards (a restored snapshot, a replaced server) starts over at 0, which makes the next read
    answer at once. An answered index below 1 counts as 1: asking with 0 would not block and spin.

    Args:
        asked: the index of the query, 0 for the first.
        answered: `X-Consul-Index` of its answer.
    """
    answered = max(answered, 1)
    return 0 if answered < asked else answered


class Pace:
    """A token bucket that holds `BURST` tokens and gains one each so many seconds."""

    def __init__(self, seconds: Callable[[], float] = lambda: PACE) -> None:
        self._seconds = seconds
        self._taken = 0.0  # Counted, not timed: what was taken at a slow pace is paid back at the one of now.
        self._taken_at = trio.current_time()

    async def take(self) -> None:
        now, seconds = trio.current_time(), self._seconds()
        self._taken = max(0.0, self._taken - (now - self._taken_at) / seconds) + 1
        self._taken_at = now
        excess = (self._taken - BURST) * seconds
        if excess > 0:
            await trio.sleep(excess)


async def wait_for_agent(client: ConsulClient, registry: WatchRegistry) -> AgentFacts:
    """Ask until the agent says what it is, the first thing that a gateway needs.

    Failures are logged and repeated as those of a watch are: an agent may start after the gateway, and a token may
    reach a secondary datacenter late. May be cancelled at any time.
    """
    with registry.registered(WatchKey("agent", "agent")) as state:
        facts = await registry.retry(state, client.agent_facts)
        assert facts is not None
    if facts.limited:
        log.warning("the agent's own facts are hidden, Consul's defaults are assumed", problem=facts.limited)
    return facts
