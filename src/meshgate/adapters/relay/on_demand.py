"""Streams that wait until their name is known as Consul has it now.

A gateway with more services than Consul grants connections does not follow all of them closely, and what was just
registered may have no route yet. A stream of such a name waits while the parent is asked to learn of it, and is then
placed by whatever the table has.

What always holds: a stream waits once, `LEARN_SECONDS` at most; a name is asked for once, however many streams wait for
it, again only where no answer came in that time, and not within `AGAIN_SECONDS` of one; strangers cannot make many
questions out of names that nobody has; and where there is nobody to ask no stream waits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from meshgate.core.routes import Route, RouteTable
from meshgate.core.token_bucket import TokenBucket

# The parent gives up sooner; longer than this it does not live, or has no time.
LEARN_SECONDS: Final = 1.5
AGAIN_SECONDS: Final = 1.0
# Questions for names without a route, of each worker.
UNKNOWN_PER_SECOND: Final = 50
UNKNOWN_AT_ONCE: Final = 100
_REMEMBERED: Final = 4096

Waiter = TypeVar("Waiter")


@dataclass(slots=True)
class _Question(Generic[Waiter]):
    """What was asked when, and who waits for the answer."""

    asked: float
    waiting: dict[Waiter, None] = field(default_factory=dict)


class OnDemand(Generic[Waiter]):
    """Who waits in one process, and for what.

    Args:
        ask: has a name learned, and `learned` called afterwards; None where nobody can.
        patience: seconds that a stream waits at most.
        again: seconds after an answer within which a name is not asked for again.
    """

    def __init__(
        self, ask: Callable[[str], None] | None, patience: float = LEARN_SECONDS, again: float = AGAIN_SECONDS
    ) -> None:
        self.patience = patience
        self._ask = ask
        self.again = again
        self._questions: dict[str, _Question[Waiter]] = {}
        self._learned: dict[str, float] = {}
        self._room = _REMEMBERED
        self._unknown = TokenBucket(UNKNOWN_PER_SECOND, UNKNOWN_AT_ONCE)

    def wants(self, name: str, route: Route | None, table: RouteTable, now: float) -> bool:
        """Whether a stream is to wait: its name has no route but could have one, or a stale one."""
        if self._ask is None or (route is None and table.on_demand(name) is None):
            return False
        question = self._questions.get(name)
        if question is not None and not self._is_lost(question, now):
            return True
        if self._learned.get(name, float("-inf")) > now - self.again:
            return False
        return route is not None or self._unknown.take(now)

    def wait(self, waiter: Waiter, name: str, now: float) -> None:
        """Have the waiter among those that `learned` gives for a name that it `wants`."""
        question = self._questions.get(name)
        asks = question is None or self._is_lost(question, now)
        if question is None:
            question = self._questions[name] = _Question[Waiter](now)
        question.waiting[waiter] = None
        if asks and self._ask is not None:
            question.asked = now
            self._ask(name)

    def leave(self, waiter: Waiter, name: str) -> None:
        """It waits no longer. What was asked for stays asked for."""
        question = self._questions.get(name)
        if question is not None:
            question.waiting.pop(waiter, None)

    def learned(self, name: str, now: float) -> list[Waiter]:
        """The table has what could be learned of a name: who has waited for it."""
        if len(self._learned) >= self._room:
            self._learned = {each: when for each, when in self._learned.items() if when > now - self.again}
            self._room = max(_REMEMBERED, 2 * len(self._learned))
        self._learned[name] = now
        question = self._questions.pop(name, None)
        return [] if question is None else list(question.waiting)

    def end(self) -> list[str]:
        """Nobody can be asked any more, so no stream waits from now on; the names that some may wait for still."""
        self._ask = None
        return list(self._questions)

    def _is_lost(self, question: _Question[Waiter], now: float) -> bool:
        return now - question.asked > self.patience
