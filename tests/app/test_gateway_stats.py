from collections import Counter
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from meshgate.adapters.admin.stats import Destination, StreamEnd, Worker
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay import Counters
from meshgate.app.admin.gateway_stats import StatsSource
from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind, RouteTable

WEB = (RouteKind.SERVICE, "web")


class Gateway:
    """What the numbers are gathered from."""

    def __init__(self) -> None:
        self.numbers = Counters()
        self.relay = self.watcher = self
        self.loads = [(4711, 2), (0, 0)]
        self.untold = 3
        self.client = SimpleNamespace(errors=Counter({"500": 1}), token=SimpleNamespace(problem=""))
        self.observer = SimpleNamespace(dropped=4, wants_records=True)
        self.limits = SimpleNamespace(max_connections=77)
        self.telemetry = SimpleNamespace(statsd=SimpleNamespace(dropped=5))
        self.catalog_stale = self.draining = False
        self.ready = True
        self.ca_root_expiry, self.ca_intermediate_expiry = 1.0, None
        now = trio.current_time()
        self.watches = [
            WatchState("health", "web", now - 9, last_success=now - 4),
            WatchState("health", "api", now - 9),
            WatchState("services", "services", now, error="no", status="403"),
        ]

    async def counters(self) -> Counters:
        await trio.lowlevel.checkpoint()
        return self.numbers.copy()

    def states(self) -> list[WatchState]:
        return self.watches

    def relay_table(self) -> RouteTable:
        return RouteTable.of("dc1", "td", "default", iter(()))


async def test_the_numbers_of_relay_and_catalog_come_together(autojump_clock: trio.testing.MockClock) -> None:
    gateway: Any = Gateway()
    gateway.numbers.count_routed(*WEB)
    gateway.numbers.count_connect(0.0002)
    gateway.numbers.count_failed(*WEB, Reason.CONNECT_FAILED)
    for flag in ("", "", "DC", "UC", "SI", "odd"):
        gateway.numbers.count_ended(WEB, 0.5, (1, 2), flag)
    stats = await StatsSource(gateway).gather()
    web = Destination(*WEB)
    assert stats.connections == {web: 1}
    assert stats.destination_bytes == {web: (6, 12)}
    assert stats.destination_refused == {(web, Reason.CONNECT_FAILED): 1}
    assert stats.stream_ends == {
        StreamEnd.IN_ORDER: 2,
        StreamEnd.CLIENT_RESET: 1,
        StreamEnd.ENDPOINT_RESET: 1,
        StreamEnd.IDLE_TIMEOUT: 1,
        StreamEnd.CUT: 1,
    }
    assert (sum(stats.stream_seconds.counts), stats.stream_seconds.sum) == (6, 3.0)
    assert sum(stats.connect_seconds.counts) == 1
    assert stats.workers == (Worker(4711, 2), Worker(0, 0))
    assert stats.watch_age_seconds == {"health": 9.0, "services": 0.0}
    assert stats.watches == {"working": 2, "failing": 1}
    assert stats.token_problem
    assert stats.log_lines_dropped["access"] == 7
    assert (stats.connections_limit, stats.statsd_dropped) == (77, 5)


async def test_bytes_never_go_back_when_a_worker_is_too_busy_to_tell_of_its_open_streams() -> None:
    gateway: Any = Gateway()
    source = StatsSource(gateway)
    seen = []
    for received, sent in ((100, 200), (40, 300), (150, 250)):
        gateway.numbers = Counters(bytes_received=received, bytes_sent=sent, carried={WEB: (received, sent)})
        stats = await source.gather()
        seen.append((stats.bytes_received, stats.bytes_sent, stats.destination_bytes[Destination(*WEB)]))
    assert seen == [(100, 200, (100, 200)), (100, 300, (100, 300)), (150, 300, (150, 300))]
