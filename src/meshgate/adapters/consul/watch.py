"""Watches of Consul: one of them, for ever asking for the next state of something, and the registry of all.

What always holds: a value is handed on only if it differs from the last one; a failure never ends a watch and takes
nothing back; a query that Consul answers at once again and again is slowed to a trickle; and a query after a failure,
or after a sign that Consul's state was restored, does not block, so that the first answer is the present state,
whatever became of Consul's index meanwhile.

How long a wait after a failure is stands in `retry`. Three events cut one short: another watch reached the agent again
after an outage of all, others have told of the place that fails, and a token that was refused has been replaced.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Final, Generic, TypeVar

import msgspec
import structlog
import trio

from meshgate.core.catalog import in_namespace

from .api import LONGEST_WAIT, AgentFacts, ConsulClient, ConsulError, Cursor, Page
from .retry import WATCHES

log = structlog.get_logger(module="meshgate.consul")

T = TypeVar("T")

# Answers may come this many seconds apart, two in a row without a wait: Consul's index may move without a change of
# what is watched, and a broken proxy may never hold a query.
PACE: Final = 0.5
BURST: Final = 2
# Seconds from which on a query counts as held by Consul.
HELD: Final = 1.0
# Seconds between looks at the token, where a watch waits for another one.
TOKEN_POLL: Final = 1.0
# After an outage, and after a restore, all watches are woken at once; this many seconds spread them.
JITTER: Final = 0.3
# Seconds between two times that all watches ask anew. Where an agent caps the wait of queries (`max_query_time`) each
# answer looks like a sign of a restore.
RESTORES_APART: Final = 10.0
# A failure that goes on is told again each minute, and after ten of them each ten.
LOG_INTERVAL: Final = 60.0
LATER_LOG_INTERVAL: Final = 600.0
# Seconds for which a process holds its first queries, and how much longer with each second that it runs.
FIRST_WAIT: Final = 2.0
WAIT_GROWTH: Final = 0.25
# Held queries from which on a successor beside what a process has left is near the limit of an agent, and how many of
# them are renewed in a second then (2 ms of processor time each, mostly that of waking up).
MANY: Final = 80
RENEWED: Final = 10.0


def ignore(_: object) -> None:
    """For a callback that is not needed."""


def always() -> bool:
    """For a condition that always holds."""
    return True


@dataclass(frozen=True, slots=True)
class WatchKey:
    """What is watched, and where. `kind` is one of a handful, for metrics; `str()` is for people and never parsed.

    `place` is another datacenter, or `partition NAME` or `peer NAME`; "" is where the gateway is, as is `namespace` for
    the default one.
    """

    kind: str
    name: str = ""
    place: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        return " of ".join(filter(None, (in_namespace(self.namespace, self.name), self.place)))


@dataclass(eq=False, slots=True)
class WatchState:
    """How one watch is doing. Times are those of trio's clock, in seconds.

    `swept` is whether it has no query that is held, but is asked now and then (see `watch_scheduler`). `error` and
    `status` are empty while the last request succeeded; `failures` counts the failed ones since then, and
    `failing_since` is when the first of them was.
    """

    key: WatchKey
    started: float
    last_success: float | None = None
    error: str = ""
    status: str = ""
    failures: int = 0
    failing_since: float | None = None
    index: int = 0
    swept: bool = False

    @property
    def answered(self) -> bool:
        """Whether Consul has said what there is, or that the question makes no sense to it (400)."""
        return self.last_success is not None or self.status == "400"

    def age(self, now: float) -> float:
        """Seconds since Consul last answered, or since the watch began if it never did.

        0 for a query that is `swept`, as long as it succeeds: when it is to be asked again, others know.
        """
        if self.swept and self.last_success is not None and not self.error:
            return 0.0
        return now - (self.started if self.last_success is None else self.last_success)


class WatchLeft(msgspec.Struct, frozen=True):
    """How a watch was doing when another program took over: seconds since its last answer, and of its failing."""

    key: WatchKey
    age: float
    error: str
    status: str
    failures: int
    failing: float | None


class WatchRegistry:
    """The watches of one process.

    `token_version` changes when the token does; for `first_wait` and `streaming`, a fact of the agent, see
    `longest_wait`.
    """

    def __init__(self, *, token_version: Callable[[], int] = lambda: 0, first_wait: float = FIRST_WAIT) -> None:
        self.token_version = token_version
        self._first_wait = first_wait
        self.streaming = False
        self._states: dict[WatchKey, WatchState] = {}
        self._recovery = trio.Event()
        self._news: dict[str, trio.Event] = {}
        # Grows when all watches are to ask anew.
        self.generation = 0
        self._restored = float("-inf")
        self._asking: set[trio.CancelScope] = set()
        self._began: float | None = None
        # When each failure that goes on was told last.
        self._told: dict[str, float] = {}
        self._before: dict[WatchKey, WatchLeft] = {}

    def left(self) -> list[WatchLeft]:
        """How the watches are doing, for the registry of another program that goes on with them."""
        now = trio.current_time()
        return [
            WatchLeft(
                it.key,
                it.age(now),
                it.error,
                it.status,
                it.failures,
                None if it.failing_since is None else now - it.failing_since,
            )
            for it in self._states.values()
        ]

    def remember(self, left: Iterable[WatchLeft]) -> None:
        """Let watches begin as they were left, an outage with its age; only that Consul has answered is forgotten."""
        self._before = {it.key: it for it in left}

    def longest_wait(self) -> float:
        """Seconds for which a query may be held at present.

        Consul keeps the connection of a query that it holds until the wait is over, also when the process that asked is
        gone, and grants a client 200. So what a process leaves behind lasts for no more than a fraction of the time
        that it ran, and where it is much, for seconds; else restarts lock out the next process, and all others of the
        machine with it. Where the agent is `streaming`, queries for health, which are most, end with their client (seen
        with 1.22; 1.8 holds all), so that there is little to be left: it may last as long as the process ran.
        """
        if self._began is None:
            self._began = trio.current_time()
        age = trio.current_time() - self._began
        if self.streaming:
            return max(self._first_wait, age)
        longest = max(self._first_wait, age * WAIT_GROWTH)
        held = len(self._asking)
        return longest if held <= MANY else min(longest, held / RENEWED)

    def states(self) -> list[WatchState]:
        """The watches that run now; the records live on, so copy what has to stay as it is."""
        return list(self._states.values())

    def state(self, key: WatchKey) -> WatchState | None:
        return self._states.get(key)

    def answered(self, key: WatchKey) -> bool:
        state = self._states.get(key)
        return state is not None and state.answered

    @contextmanager
    def registered(self, key: WatchKey) -> Iterator[WatchState]:
        """A new state, listed for the time of the block. Needs a running trio."""
        state = self.register(key)
        try:
            yield state
        finally:
            self.unregister(state)

    def register(self, key: WatchKey) -> WatchState:
        """A new state, listed until `unregister`. Needs a running trio."""
        now = trio.current_time()
        state = self._states[key] = WatchState(key, now)
        if (before := self._before.pop(key, None)) is not None:
            state.started = now - before.age
            state.error, state.status, state.failures = before.error, before.status, before.failures
            state.failing_since = None if before.failing is None else now - before.failing
            if before.error:
                self._told.setdefault(before.error, now)
        return state

    def unregister(self, state: WatchState) -> None:
        if self._states.get(state.key) is state:
            del self._states[state.key]

    async def retry(
        self,
        state: WatchState,
        request: Callable[[], Awaitable[T]],
        on_error: Callable[[ConsulError], None] = ignore,
        wanted: Callable[[], bool] = always,
    ) -> T | None:
        """Make a request again and again until it succeeds; None where it failed and is no longer wanted.

        `on_error` hears of each failure. Anything but a `ConsulError` goes through, cancellation among it.
        """

        def failed(error: ConsulError) -> None:
            self.failed(state, error)
            on_error(error)

        retrying = WATCHES.retrying(sleep=partial(self._pause, state), on_failure=failed, wanted=wanted)
        try:
            result: T = await retrying(request)
        except ConsulError as error:
            failed(error)
            return None
        self.succeeded(state)
        return result

    @contextmanager
    def asking(self) -> Iterator[trio.CancelScope]:
        """A scope for a query that may be held; cancelled where that would be held in vain."""
        with trio.CancelScope() as scope:
            self._asking.add(scope)
            try:
                yield scope
            finally:
                self._asking.discard(scope)

    def restored(self) -> None:
        """Consul's state has probably been replaced by an older one: have all watches ask for the present one."""
        now = trio.current_time()
        if now < self._restored + RESTORES_APART:
            return
        self._restored = now
        self.generation += 1
        log.info("a held query was answered early and with its own index: Consul may be restored, all is asked anew")
        for scope in tuple(self._asking):
            scope.cancel()

    async def recovery(self) -> None:
        await self._recovery.wait()

    def news_of(self, place: str) -> None:
        """Others have just told of a place: have its failing watches ask again at once, for it probably answers."""
        if (news := self._news.pop(place, None)) is not None:
            news.set()

    def failed(self, state: WatchState, error: ConsulError) -> None:
        state.failures += 1
        if state.failing_since is None:
            state.failing_since = trio.current_time()
        if str(error) != state.error:
            # An outage hits all watches at once: the first one to notice speaks for those that see the same.
            known = any(other.error == str(error) for other in self._states.values())
            state.error, state.status = str(error), error.status
            if not known:
                going_on = {other.error for other in self._states.values()}
                told = {error: at for error, at in self._told.items() if error in going_on}
                self._told = told | {state.error: trio.current_time()}
            event = "Consul watch fails, retrying; what is known stays in use"
            if state.last_success is None:
                event = "cannot read from Consul yet, retrying"
            (log.debug if known else log.warning)(event, watch=str(state.key), kind=state.key.kind, error=state.error)

    def succeeded(self, state: WatchState) -> None:
        state.last_success = trio.current_time()
        if state.failing_since is None:
            return
        # One connection that Consul reset, of many that work, is no outage of the agent.
        asking = [other for other in self._states.values() if other is state or not other.swept]
        if _out_of_reach(state) and sum(map(_out_of_reach, asking)) * 2 >= len(asking):
            self._recovery.set()
            self._recovery = trio.Event()
        error, seconds = state.error, state.last_success - state.failing_since
        state.error, state.status, state.failures, state.failing_since = "", "", 0, None
        last = not any(other.error == error for other in self._states.values())
        (log.info if last else log.debug)(
            "Consul watch works again", watch=str(state.key), kind=state.key.kind, failed_for=round(seconds, 1)
        )

    def _tell_again(self, state: WatchState, next_try: float) -> None:
        now = trio.current_time()
        told = self._told.setdefault(state.error, now)
        if now - told < LOG_INTERVAL:
            return
        failing = [other for other in self._states.values() if other.error == state.error]
        since = min(other.failing_since for other in failing if other.failing_since is not None)
        if now - since > LATER_LOG_INTERVAL and now - told < LATER_LOG_INTERVAL:
            return
        self._told[state.error] = now
        log.warning(
            "Consul still fails, retrying; what is known stays in use",
            error=state.error,
            failing_for=round(now - since),
            watches=len(failing),
            next_try=f"in {next_try:.0f} s",
        )

    async def _pause(self, state: WatchState, seconds: float) -> None:
        deadline = trio.current_time() + seconds
        self._tell_again(state, seconds)
        if _out_of_reach(state):
            with trio.move_on_at(deadline):
                await self._recovery.wait()
                await trio.sleep(random.uniform(0, JITTER))  # noqa: S311 (spreads load, decides nothing)
            return
        if state.status != "403":
            with trio.move_on_at(deadline):
                await self._news.setdefault(state.key.place, trio.Event()).wait()
            return
        refused_token = self.token_version()
        while (left := deadline - trio.current_time()) > 0:
            await trio.sleep(min(left, TOKEN_POLL))
            if self.token_version() != refused_token:
                return


def _out_of_reach(state: WatchState) -> bool:
    return state.status in ("unreachable", "timeout")


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
                await trio.sleep(random.uniform(0, JITTER))  # noqa: S311 (spreads load, decides nothing)
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
            await trio.sleep(TOKEN_POLL)
            if self.registry.token_version() != version:
                version = self.registry.token_version()
                # There may be no query now, but a pause until the next one.
                self._cursor = Cursor()
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
    """The index to ask with next, of the one asked with (0 for the first) and `X-Consul-Index` of the answer.

    An index that went backwards (a restored snapshot, a replaced server) starts over at 0, which makes the next read
    answer at once. An answered index below 1 counts as 1: asking with 0 would not block and spin (Consul's API
    documentation, "Blocking Queries").
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
    """Ask until the agent says what it is; failures are logged and repeated as those of a watch are.

    An agent may start after the gateway, and a token may reach a secondary datacenter late.
    """
    with registry.registered(WatchKey("agent", "agent")) as state:
        facts = await registry.retry(state, client.agent_facts)
        assert facts is not None
    registry.streaming = facts.streaming
    if facts.limited:
        log.warning("the agent's own facts are hidden, Consul's defaults are assumed", problem=facts.limited)
    return facts
