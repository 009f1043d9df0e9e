"""The last hour by the minute, kept by the gateway itself: who comes after an outage still sees it.

It is bounded: MINUTES minutes, and of each the BUSIEST destinations. It is made of totals that the relay processes tell
anyway, so nobody is asked for it, and it costs a look at them once a minute. Streams that ended are the observer's.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio
from msgspec import structs

from meshgate.adapters.relay import FIRST_BYTE_BUCKETS, Counters, Destination
from meshgate.app.admin import answers
from meshgate.app.gateway.upgrade_record import Lived, Minute
from meshgate.core.reasons import Reason

MINUTES: Final = 60
BUSIEST: Final = 200
_EVERY: Final = 60.0
_SLOTS: Final = len(FIRST_BYTE_BUCKETS) + 1


class History:
    """`minutes` are the last ones, the newest at the end."""

    def __init__(self) -> None:
        self.minutes: deque[Minute] = deque(maxlen=MINUTES)
        self._before = Counters()

    async def run(self, totals: Callable[[], Counters]) -> None:
        """Keep it until cancelled."""
        self._before = totals().copy()
        while True:
            await trio.sleep(_EVERY)
            self.note(totals(), time.time())

    def remember(self, left: Iterable[Minute]) -> None:
        """Go on with what the version before has kept, which may have had other slots for first bytes."""
        for minute in left:
            lived = [each for each in minute.destinations if len(each[1][2]) == _SLOTS]
            self.minutes.append(structs.replace(minute, destinations=lived))

    def note(self, totals: Counters, now: float) -> None:
        """Take what came to pass since the last time as a minute."""
        new, self._before = totals.since(self._before), totals.copy()
        failed: Counter[Destination] = Counter()
        for (kind, name, reason), count in new.failed.items():
            if reason is not Reason.DRAINING:
                failed[kind, name] += count
        lived: dict[Destination, Lived] = {
            key: (new.connections.get(key, 0), failed[key], new.first_bytes.get(key, [0] * _SLOTS)[:_SLOTS])
            for key in {*new.connections, *failed, *new.first_bytes}
        }
        busiest = sorted(lived.items(), key=lambda each: -each[1][0] - each[1][1])[:BUSIEST]
        refused = sum(new.refused.values()) - sum(new.failed.values())
        streams = sum(new.connections.values())
        self.minutes.append(Minute(now, streams, failed.total(), max(0, refused), busiest))


def history_view(minutes: Iterable[Minute]) -> answers.History:
    """Numbers by the minute, the oldest first; and those of the destinations that were busiest in all of it."""
    listed = list(minutes)
    lived = [dict(minute.destinations) for minute in listed]
    totals: Counter[Destination] = Counter()
    for minute in listed:
        for key, (streams, failed, _) in minute.destinations:
            totals[key] += streams + failed
    return answers.History(
        ends=[round(minute.ends, 1) for minute in listed],
        streams=[minute.streams for minute in listed],
        failed=[minute.failed for minute in listed],
        refused=[minute.refused for minute in listed],
        first_byte_bounds=list(FIRST_BYTE_BUCKETS),
        destinations=[_destination(key, lived) for key, _ in totals.most_common(BUSIEST)],
    )


def _destination(key: Destination, minutes: Iterable[Mapping[Destination, Lived]]) -> answers.DestinationHistory:
    nothing: Lived = (0, 0, [0] * _SLOTS)
    streams, failed, first_bytes = zip(*(minute.get(key, nothing) for minute in minutes), strict=True)
    routed, lost = sum(streams), sum(failed)
    return answers.DestinationHistory(
        kind=key[0],
        name=key[1],
        streams=list(streams),
        failed=list(failed),
        success=round(routed / (routed + lost), 6) if routed + lost else None,
        first_bytes=[sum(slot) for slot in zip(*first_bytes, strict=True)],
    )
