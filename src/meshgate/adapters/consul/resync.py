"""What has changed of services that are only read: told by summaries where Consul gives them, found by a sweep.

One held query, for the summaries of all services that Consul's web pages are made of, tells which have changed
(instances, their nodes, their health); those are read at once. It is answered every `SUMMARY_PACE` seconds at most, for
its answer is large. What summaries do not show, such as another port on the same node, is found by the sweep: all
services, one after the other, slowly; less slowly where Consul gives no summaries.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio

from .api import ConsulError
from .health_query import SIDECAR, HealthQuery, OneShotReads
from .scope import Scope
from .watch_registry import WatchKey

SUMMARY_PACE: Final = 30.0
# Seconds between two reads of the sweep, with summaries and without: a pass over 5,000 services takes 3 hours, or 4
# minutes.
SWEEP_PAUSE: Final = 2.0
SWEEP_PAUSE_ALONE: Final = 0.05
SUMMARIES: Final = WatchKey("summaries", "summaries of services")


class Resync:
    """Has read what has changed.

    Args:
        scope: where Consul is asked.
        reads: reads.
        followed: all queries that there are.
        changed: called with the lower-case names of services that have probably changed.
    """

    def __init__(
        self,
        scope: Scope,
        reads: OneShotReads,
        followed: Callable[[], Iterable[HealthQuery]],
        changed: Callable[[Iterable[str]], None],
    ) -> None:
        self._scope = scope
        self._reads = reads
        self._followed = followed
        self._changed = changed
        self._wanted = False
        self._begin = trio.Event()
        self._round: deque[HealthQuery] = deque()
        self._summaries: Mapping[str, int] = {}
        self._summarized = True

    def want(self, wanted: bool) -> None:
        """Whether there is anything that is only read. Not at first."""
        self._wanted = wanted
        if wanted:
            self._begin.set()
        elif self._begin.is_set():
            self._begin = trio.Event()

    async def run(self) -> None:
        """Do so until cancelled, whenever it is wanted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_summaries)
            while True:
                await trio.sleep(SWEEP_PAUSE if self._summarized else SWEEP_PAUSE_ALONE)
                if not self._wanted:
                    self._round.clear()
                    await self._begin.wait()
                    continue
                if not self._round:
                    self._round.extend(query for query in self._followed() if not query.expects_nothing)
                if self._round:
                    await self._reads.read(self._round.popleft())

    async def _follow_summaries(self) -> None:
        while True:
            await self._begin.wait()
            await self._scope.watch(
                SUMMARIES,
                lambda reader, cursor: reader.summaries(cursor),
                self._summarize,
                on_error=self._no_summaries,
                dedicated=True,
                wanted=lambda: self._wanted,
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
        self._changed(changed | {name.removesuffix(SIDECAR) for name in changed} | self._odd(changed))

    def _odd(self, changed: set[str]) -> set[str]:
        """The services whose sidecars have names of their own, and are among those that have changed."""
        own = {query.service for query in self._followed() if query.held.value}
        names = {name for name in changed if name.removesuffix(SIDECAR) not in own}
        if not names:
            return set()
        return {
            query.service
            for query in self._followed()
            if any(instance.service.lower() in names for instance in query.held.value)
        }
