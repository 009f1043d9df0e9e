"""The gateway's numbers, gathered for the metrics page and for statsd."""

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from meshgate import __version__
from meshgate.adapters.admin.stats import Destination, GatewayStats, Histogram, StreamEnd, Worker, endpoint_counts
from meshgate.adapters.relay import CONNECT_BUCKETS, STREAM_BUCKETS
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.logs import logs

_ENDS: Final = {"": StreamEnd.IN_ORDER, "DC": StreamEnd.CLIENT_RESET, "UC": StreamEnd.ENDPOINT_RESET}
_ENDS_BY_FLAG: Final = _ENDS | {"SI": StreamEnd.IDLE_TIMEOUT}


class StatsSource:
    """Gathers them. Byte counts never go back, also where a worker was too busy to tell of its open streams."""

    def __init__(self, gateway: GatewayView, statsd_dropped: Callable[[], int]) -> None:
        self._gateway = gateway
        self._statsd_dropped = statsd_dropped
        self._bytes = (0, 0)
        self._carried: dict[Destination, tuple[int, int]] = {}

    async def gather(self) -> GatewayStats:
        """The numbers of now; waits up to half a second for the workers."""
        gateway = self._gateway
        counters = await gateway.counters()
        table, states = gateway.table(), gateway.watches()
        root_expiry, intermediate_expiry = gateway.ca_expiries()
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
            workers=tuple(Worker(pid, active) for pid, active in gateway.workers()),
            watch_age_seconds=ages,
            consul_errors=gateway.consul_errors(),
            endpoints=endpoint_counts(table),
            catalog_stale=gateway.catalog_stale,
            ca_root_expiry=root_expiry,
            ca_intermediate_expiry=intermediate_expiry,
            draining=gateway.draining,
            ready=gateway.ready,
            routes=len(table),
            connections_limit=gateway.limits.max_connections,
            idle_timeouts=counters.idle_timeouts,
            learned=counters.learned,
            internal_errors=counters.internal_errors,
            watches=Counter("failing" if state.error else "working" for state in states),
            token_problem=bool(gateway.token_problem) or any(state.status == "403" for state in states),
            log_lines_dropped=_lines_dropped(gateway.access_lines_dropped()),
            statsd_dropped=self._statsd_dropped(),
        )


def _later(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return max(before[0], now[0]), max(before[1], now[1])


def _lines_dropped(access: int | None) -> dict[str, int]:
    dropped = {"process": logs.dropped()}
    return dropped if access is None else dropped | {"access": access}
