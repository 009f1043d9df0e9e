"""What all watches of Consul share: when to try again after a failure, and what is known of each watch.

A failure never ends a watch. Waits are random below a growing bound (full jitter), so that many gateways do not return
to Consul in step. Two events cut a wait short: another watch reached the agent again after an outage of all, and a
token that was refused has been replaced.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec
import structlog
import trio

from meshgate.core.catalog import in_namespace

from .api import ConsulError
from .retry import WATCHES, Policy

log = structlog.get_logger(module="meshgate.consul")

T = TypeVar("T")


def ignore(_: object) -> None:
    """For a callback that is not needed."""


def always() -> bool:
    """For a condition that always holds."""
    return True


# Seconds between looks at the token, where a watch waits for another one.
TOKEN_LOOK: Final = 1.0
# After an outage, and after a restore, all watches are woken at once; this many seconds spread them.
SPREAD: Final = 0.3
# Seconds between two times that all watches ask anew. Where an agent caps the wait of queries (`max_query_time`) each
# answer looks like a sign of a restore.
RESTORES_APART: Final = 10.0
# A failure that goes on is told again each minute, and after ten of them each ten.
TOLD_AGAIN: Final = 60.0
TOLD_SELDOM: Final = 600.0


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


# Seconds for which a process holds its first queries, and how much longer with each second that it runs.
FIRST_WAIT: Final = 2.0
WAIT_GROWTH: Final = 0.25
# Held queries from which on a successor beside what a process has left is near the limit of an agent, and how many of
# them are renewed in a second then.
MANY: Final = 80
RENEWED: Final = 10.0


class WatchRegistry:
    """The watches of one process.

    Args:
        token_version: a number that changes when the token does.
        first_wait: seconds for which the first queries may be held; see `longest_wait`.
        policy: when a watch that fails tries again.
    """

    def __init__(
        self, *, token_version: Callable[[], int] = lambda: 0, first_wait: float = FIRST_WAIT, policy: Policy = WATCHES
    ) -> None:
        self._policy = policy
        self.token_version = token_version
        self._first_wait = first_wait
        self._states: dict[WatchKey, WatchState] = {}
        self._recovery = trio.Event()
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

        Consul 1.8 keeps the connection of a query that it holds until the wait is over, also when the process that
        asked is gone, and grants a client 200. So what a process leaves behind lasts for no more than a fraction of the
        time that it ran, and where it is much, for seconds; else restarts lock out the next process, and all others of
        the machine with it.
        """
        if self._began is None:
            self._began = trio.current_time()
        held = len(self._asking)
        longest = max(self._first_wait, (trio.current_time() - self._began) * WAIT_GROWTH)
        return longest if held <= MANY else min(longest, held / RENEWED)

    def states(self) -> list[WatchState]:
        """The watches that run now; the records live on, so copy what has to stay as it is."""
        return list(self._states.values())

    def state(self, key: WatchKey) -> WatchState | None:
        return self._states.get(key)

    def answered(self, key: WatchKey) -> bool:
        """Whether there is a watch of this key and Consul has answered it."""
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
        retrying = self._policy.retrying(
            sleep=partial(self._pause, state), on_failure=partial(self._failed, state, on_error), wanted=wanted
        )
        try:
            result: T = await retrying(request)
        except ConsulError as error:
            self._failed(state, on_error, error)
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
        """Wait until the agent is reached again after an outage."""
        await self._recovery.wait()

    def _failed(self, state: WatchState, on_error: Callable[[ConsulError], None], error: ConsulError) -> None:
        self.failed(state, error)
        on_error(error)

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
            known_before = state.last_success is not None
            event = "Consul watch fails, retrying; what is known stays in use"
            if not known_before:
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
        if now - told < TOLD_AGAIN:
            return
        failing = [other for other in self._states.values() if other.error == state.error]
        since = min(other.failing_since for other in failing if other.failing_since is not None)
        if now - since > TOLD_SELDOM and now - told < TOLD_SELDOM:
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
                await trio.sleep(random.uniform(0, SPREAD))  # noqa: S311 (spreads load, decides nothing)
            return
        refused_token = self.token_version() if state.status == "403" else None
        while (left := deadline - trio.current_time()) > 0:
            await trio.sleep(left if refused_token is None else min(left, TOKEN_LOOK))
            if refused_token is not None and self.token_version() != refused_token:
                return


def _out_of_reach(state: WatchState) -> bool:
    return state.status in ("unreachable", "timeout")
