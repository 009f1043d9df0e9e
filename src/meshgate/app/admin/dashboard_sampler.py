"""Samples of the relay's numbers for whoever looks at the dashboard: taken when asked for, shared by all who look.

Nothing is sampled while nobody looks, and however many look, the workers are asked twice a second at most. Rates are
taken over `WINDOW` seconds, so that single streams do not make them flicker.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from meshgate.adapters.admin.dashboard_view import Sample, Span
from meshgate.adapters.relay import Counters, OpenStream

WINDOW: Final = 3.0
FRESH: Final = 0.4
# Seconds after which a sample says nothing about now.
STALE: Final = 15.0
# With more open streams the workers are not asked for a list of them.
MOST_STREAMS: Final = 5000


class Sampler:
    """Takes samples and keeps the last few.

    Args:
        counters: asks the relay for its totals.
        connections: asks it for its open streams.
    """

    def __init__(
        self, counters: Callable[[], Awaitable[Counters]], connections: Callable[[], Awaitable[Sequence[OpenStream]]]
    ) -> None:
        self._counters = counters
        self._connections = connections
        self._samples: deque[Sample] = deque()
        self._taking = trio.Lock()

    async def span(self) -> Span:
        """The present sample, and the one before it by which rates are taken."""
        async with self._taking:
            now = trio.current_time()
            if not self._samples or now - self._samples[-1].at >= FRESH:
                while self._samples and now - self._samples[0].at > STALE:
                    self._samples.popleft()
                self._samples.append(await self._take())
            while len(self._samples) > 2 and self._samples[-1].at - self._samples[1].at >= WINDOW:
                self._samples.popleft()
            before = self._samples[0] if len(self._samples) > 1 else None
            return Span(before, self._samples[-1])

    async def _take(self) -> Sample:
        counters = await self._counters()
        opened = None
        if counters.active <= MOST_STREAMS:
            opened = Counter(stream.route for stream in await self._connections() if stream.route is not None)
        return Sample(
            at=trio.current_time(),
            active=counters.active,
            received=counters.bytes_received,
            sent=counters.bytes_sent,
            connections=counters.connections,
            refused=counters.refused,
            connect_counts=counters.connect_counts,
            carried=counters.carried,
            open=opened,
        )
