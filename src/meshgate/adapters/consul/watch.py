"""One watch: asks Consul for the next state of something, for ever, and hands on what changed.

What always holds: a value is handed on only if it differs from the last one; no failure takes anything back; a query
that Consul answers at once again and again is slowed to a trickle; and a query after a failure does not block, so that
the first answer after an outage is the present state, whatever became of Consul's index meanwhile.
"""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Final, Generic, NoReturn, TypeVar

import structlog
import trio

from meshgate.core.blocking_index import next_index

from .api import AgentFacts, ConsulClient, ConsulError, Cursor, Page
from .watch_registry import TOKEN_LOOK, WatchRegistry, WatchState

log = structlog.get_logger(module="meshgate.consul")

T = TypeVar("T")

# Answers may come this many seconds apart, two in a row without a wait: Consul's index may move without a change of
# what is watched, and a broken proxy may never hold a query.
PACE: Final = 0.5
BURST: Final = 2


def ignore(_: object) -> None:
    """For a callback that is not needed."""


class Watch(Generic[T]):
    """Follows one value of Consul.

    Args:
        registry: shared by all watches.
        kind: for metrics, one of a handful.
        name: for people.
        ask: one request; it gets the cursor to go on from and raises `ConsulError`. It may be cancelled.
        on_value: gets the first value, and each later one that is not equal to the one before.
        on_error: hears of each failed request.
        interval: seconds between two requests, or what tells them, where Consul cannot hold any; None for a blocking
            query.
        minds_token: give up a query that is held when the token is replaced, and ask anew. Consul answers a held query
            by the rights of the token that it came with, and keeps the slot of one that was given up until its wait
            ends; so this is for the few lists that say what there is, not for the many watches of single services.
    """

    def __init__(
        self,
        registry: WatchRegistry,
        kind: str,
        name: str,
        ask: Callable[[Cursor], Awaitable[Page[T]]],
        on_value: Callable[[T], None],
        *,
        on_error: Callable[[ConsulError], None] = ignore,
        interval: float | Callable[[], float] | None = None,
        minds_token: bool = False,
    ) -> None:
        self._registry = registry
        self._kind = kind
        self._name = name
        self._ask = ask
        self._on_value = on_value
        self._on_error = on_error
        self._interval = interval
        self._minds_token = minds_token
        self._state: WatchState | None = None
        self._wanted: Callable[[], bool] = lambda: True
        self._pace: Callable[[], float] = lambda: PACE
        self._begun = False
        self._asking = trio.CancelScope()
        self._cursor = Cursor()
        self._last: tuple[T] | None = None

    def only_while(
        self,
        wanted: Callable[[], bool],
        *,
        state: WatchState | None = None,
        pace: Callable[[], float] = lambda: PACE,
        start: Cursor = Cursor(),  # noqa: B008 - frozen
    ) -> "Watch[T]":
        """The watch itself, which now ends when it is no longer wanted.

        Args:
            wanted: asked before each request but the first. A query that is held is not given up for its answer.
            state: of the watch, where somebody else keeps it listed.
            pace: tells how many seconds answers may come apart in the long run.
            start: where to begin, if what was true there is known already; `on_value` gets what comes after it.
        """
        self._wanted, self._state, self._pace, self._cursor = wanted, state, pace, start
        return self

    async def run(self) -> None:
        """Watch until cancelled or no longer wanted."""
        with suppress(_UnwantedError):
            if not self._minds_token:
                await self._follow()
            await self._follow_minding_the_token()

    async def _follow_minding_the_token(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._mind_token)
            await self._follow()

    async def _follow(self) -> NoReturn:
        listed = self._registry.watching(self._kind, self._name) if self._state is None else nullcontext(self._state)
        with listed as state:
            pace = Pace(self._pace)
            while True:
                await pace.take()
                page = await self._registry.retry(state, self._request, self._failed)
                self._advance(state, page)
                if self._interval is not None:
                    # After an outage there may be news: no need to sit out the rest of the interval.
                    seconds = self._interval() if callable(self._interval) else self._interval
                    with trio.move_on_after(seconds):
                        await self._registry.recovery()

    async def _request(self) -> Page[T]:
        if self._begun and not self._wanted():
            raise _UnwantedError
        self._begun = True
        with trio.CancelScope() as self._asking:
            return await self._ask(self._cursor)
        self._cursor = Cursor()
        return await self._ask(self._cursor)

    async def _mind_token(self) -> None:
        version = self._registry.token_version()
        while True:
            await trio.sleep(TOKEN_LOOK)
            if self._registry.token_version() != version:
                version = self._registry.token_version()
                self._asking.cancel()

    def _failed(self, error: ConsulError) -> None:
        self._cursor = Cursor()
        self._on_error(error)

    def _advance(self, state: WatchState, page: Page[T]) -> None:
        index = 0 if page.index is None else next_index(self._cursor.index, page.index)
        self._cursor = Cursor(index, page.content_hash)
        state.index = index
        if self._last is None or (self._last[0] is not page.value and self._last[0] != page.value):
            self._last = (page.value,)
            self._on_value(page.value)


class _UnwantedError(Exception):
    """Ends a watch that is no longer wanted."""


class Pace:
    """A token bucket that holds `BURST` tokens and gains one each so many seconds."""

    def __init__(self, seconds: Callable[[], float] = lambda: PACE) -> None:
        self._seconds = seconds
        self._full_at = trio.current_time()

    async def take(self) -> None:
        """Wait for a token."""
        now, seconds = trio.current_time(), self._seconds()
        self._full_at = max(self._full_at, now) + seconds
        excess = self._full_at - now - BURST * seconds
        if excess > 0:
            await trio.sleep(excess)


async def wait_for_agent(client: ConsulClient, registry: WatchRegistry) -> AgentFacts:
    """Ask until the agent says what it is, the first thing that a gateway needs.

    Failures are logged and repeated as those of a watch are: an agent may start after the gateway, and a token may
    reach a secondary datacenter late. May be cancelled at any time.
    """
    with registry.watching("agent", "agent") as state:
        facts = await registry.retry(state, client.agent_facts, ignore)
    if facts.limited:
        log.warning("the agent's own facts are hidden, Consul's defaults are assumed", problem=facts.limited)
    return facts
