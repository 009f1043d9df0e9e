"""Streams that wait until their name is known as Consul has it now.

A gateway with more services than Consul grants connections does not follow all of them closely, and what was just
registered may have no route yet. A stream of such a name waits while the parent looks it up, and is then
placed by whatever the table has. Names without a route may be made up, so that each client may only ask for a few of
them. A stream that may not ask waits all the same, and longer: the watch of the services' names, or somebody else's
question, may bring its route in time.

What always holds: a stream waits once, `WAIT_SECONDS` at most, three times that for a name without a route; a name is
asked for once, however many streams wait for it, and once more for each client where it has no route; again only where
no answer came in that time, and not within `AGAIN_SECONDS` of one, by a client that has waited for it; strangers cannot
make many questions out of names that nobody has, nor use up what others may ask; what is remembered is bounded; and
where there is nobody to ask no stream waits.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from meshgate.core.routes import Route, RouteTable
from meshgate.core.token_bucket import ClientBuckets

# The parent gives up sooner; longer than this it does not live, or has no time.
WAIT_SECONDS: Final = 1.5
AGAIN_SECONDS: Final = 1.0
_WITHOUT_ROUTE: Final = 3  # Times as long. Envoy, if nobody sets it, gives up its connection after 5 s.
# Questions for names without a route, a second and at once: of one client, and of all of a worker's.
OF_A_CLIENT: Final = (5.0, 20)
OF_A_WORKER: Final = (50.0, 100)
_REMEMBERED: Final = 4096

Waiter = TypeVar("Waiter")


@dataclass(slots=True)
class _Question(Generic[Waiter]):
    """What was asked when and for whom, and who waits: streams and their clients, "" where the name had a route."""

    asked: float = float("-inf")
    clients: set[str] = field(default_factory=set)
    waiting: dict[Waiter, str] = field(default_factory=dict)


class OnDemand(Generic[Waiter]):
    """Who waits in one process, and for what.

    Args:
        ask: has a name looked up for a client, and `lookup_done` called afterwards; None where nobody can. It may be
            called in vain.
        patience: seconds after which an answer does not come any more.
        again: seconds after an answer within which a name is not asked for again.
    """

    def __init__(
        self, ask: Callable[[str, str], None] | None, patience: float = WAIT_SECONDS, again: float = AGAIN_SECONDS
    ) -> None:
        self.patience = patience
        self._ask = ask
        self.again = again
        self._questions: dict[str, _Question[Waiter]] = {}
        self._done: dict[tuple[str, str], float] = {}
        self._unknown = ClientBuckets(OF_A_CLIENT, OF_A_WORKER)

    def wants(self, name: str, route: Route | None, table: RouteTable, client: str, now: float) -> bool:
        """Whether a client's stream is to wait: its name has no route but could have one, or a stale one."""
        if self._ask is None or (route is None and table.on_demand(name) is None):
            return False
        question = self._questions.get(name)
        if question is not None and not self._is_lost(question, now):
            return True
        return self._done.get((name, client if route is None else ""), float("-inf")) <= now - self.again

    def wait(self, waiter: Waiter, name: str, client: str, now: float) -> float:
        """Have the waiter among those that `lookup_done` gives for a name that it `wants`; for how many seconds.

        `client` is "" if the name has a route. Without one clients are answered apart: what one was told a moment ago
        is not held against another one.
        """
        question = self._questions.get(name)
        if question is None:
            question = self._questions[name] = _Question[Waiter]()
        elif self._is_lost(question, now):
            question.clients.clear()
        question.waiting[waiter] = client
        may_ask = client not in question.clients and (not client or self._unknown.take(client, now))
        if self._ask is not None and may_ask:
            question.asked = now
            question.clients.add(client)
            self._ask(name, client)
        return self.patience * (_WITHOUT_ROUTE if client else 1)

    def leave(self, waiter: Waiter, name: str) -> None:
        """It waits no longer. What was asked for stays asked for, unless the name may be made up."""
        question = self._questions.get(name)
        if question is not None and question.waiting.pop(waiter, "") and not question.waiting:
            del self._questions[name]

    def lookup_done(self, name: str, now: float, clients: Collection[str] | None = None) -> list[Waiter]:
        """The lookup of a name is over, for these clients alone if any are given: who has waited for it."""
        question = self._questions.pop(name, None)
        waiting: dict[Waiter, str] = {} if question is None else question.waiting
        if question is not None and clients is not None:
            told = frozenset(clients)
            waiting = {waiter: client for waiter, client in question.waiting.items() if client in told}
            question.waiting = {waiter: client for waiter, client in question.waiting.items() if client not in told}
            question.clients -= told
            if question.waiting:
                self._questions[name] = question
        for key in dict.fromkeys((name, client) for client in ("", *waiting.values())):
            self._done.pop(key, None)
            self._done[key] = now
        while len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]
        return list(waiting)

    def appeared(self, name: str) -> list[Waiter]:
        """The table has a route for a name: who has waited for one. Others wait on for what is newer than theirs."""
        question = self._questions.get(name)
        found = [] if question is None else [waiter for waiter, client in question.waiting.items() if client]
        for waiter in found:
            self.leave(waiter, name)
        return found

    def end(self) -> list[str]:
        """Nobody can be asked any more, so no stream waits from now on; the names that some may wait for still."""
        self._ask = None
        return list(self._questions)

    def _is_lost(self, question: _Question[Waiter], now: float) -> bool:
        return now - question.asked > self.patience
