"""The gateway's numbers, gathered for the metrics page and for statsd."""

from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from meshgate import __version__
from meshgate.adapters.admin.stats import Destination, GatewayStats, Histogram, StreamEnd, Worker, endpoint_counts
from meshgate.adapters.relay import CONNECT_BUCKETS, STREAM_BUCKETS
from meshgate.app.logs import logs

if TYPE_CHECKING:
    from meshgate.app.gateway.gateway import Gateway

_ENDS: Final = {"": StreamEnd.IN_ORDER, "DC": StreamEnd.CLIENT_RESET, "UC": StreamEnd.ENDPOINT_RESET}
_ENDS_BY_FLAG: Final = _ENDS | {"SI": StreamEnd.IDLE_TIMEOUT}


class StatsSource:
    """Gathers them. Byte counts never go back, also where a worker was too busy to tell of its open streams."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._bytes = (0, 0)
        self._carried: dict[Destination, tuple[int, int]] = {}

    async def gather(self) -> GatewayStats:
        """The numbers of now; waits up to half a second for the workers."""
        gateway = self._gateway
        counters = await gateway.relay.counters()
        watcher, table = gateway.watcher, gateway.relay_table()
        states = [] if watcher is None else watcher.states()
        ages: dict[str, float] = {}
        for state in states:
            ages[state.kind] = max(ages.get(state.kind, 0.0), state.age(trio.current_time()))
        self._bytes = _later(self._bytes, (counters.bytes_received, counters.bytes_sent))
        for (kind, name), carried in counters.carried.items():
            destination = Destination(kind, name)
            self._carried[destination] = _later(self._carried.get(destination, (0, 0)), carried)
        ends: Counter[StreamEnd] = Counter()
        for flag, count in counters.ends.items():
            ends[_ENDS_BY_FLAG.get(flag, StreamEnd.CUT)] += count
        return GatewayStats(
            version=__version__,
            connections={Destination(kind, name): count for (kind, name), count in counters.connections.items()},
            connections_active=counters.active,
            accepted=counters.accepted,
            bytes_received=self._bytes[0],
            bytes_sent=self._bytes[1],
            refused=counters.refused,
            connect_seconds=Histogram(CONNECT_BUCKETS, tuple(counters.connect_counts), counters.connect_sum),
            stream_seconds=Histogram(STREAM_BUCKETS, tuple(counters.stream_counts), counters.stream_sum),
            stream_ends=ends,
            destination_bytes=dict(self._carried),
            destination_refused={
                (Destination(kind, name), reason): count for (kind, name, reason), count in counters.failed.items()
            },
            workers=tuple(Worker(pid, active) for pid, active in gateway.relay.loads),
            watch_age_seconds=ages,
            consul_errors=gateway.client.errors,
            endpoints=endpoint_counts(table),
            catalog_stale=gateway.catalog_stale,
            ca_root_expiry=None if watcher is None else watcher.ca_root_expiry,
            ca_intermediate_expiry=None if watcher is None else watcher.ca_intermediate_expiry,
            draining=gateway.draining,
            ready=gateway.ready,
            routes=len(table),
            connections_limit=gateway.limits.max_connections,
            idle_timeouts=counters.idle_timeouts,
            learned=counters.learned,
            internal_errors=counters.internal_errors,
            watches=Counter("failing" if state.error else "working" for state in states),
            token_problem=bool(gateway.client.token.problem) or any(state.status == "403" for state in states),
            log_lines_dropped=_lines_dropped(gateway),
            statsd_dropped=gateway.telemetry.statsd.dropped,
        )


def _later(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return max(before[0], now[0]), max(before[1], now[1])


def _lines_dropped(gateway: "Gateway") -> dict[str, int]:
    observer = gateway.observer
    dropped = {"process": logs.dropped()}
    access = observer.dropped + gateway.relay.untold
    if access or observer.wants_records:
        dropped["access"] = access
    return dropped
