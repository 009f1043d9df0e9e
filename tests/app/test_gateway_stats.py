import trio
import trio.testing

from meshgate.adapters.admin.stats import Destination, StreamEnd, Worker
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay import Counters, Limits
from meshgate.app.admin.gateway_stats import StatsSource
from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind

from .gateway_double import GatewayDouble

WEB = (RouteKind.SERVICE, "web")


async def test_the_numbers_of_relay_and_catalog_come_together(autojump_clock: trio.testing.MockClock) -> None:
    now = trio.current_time()
    states = [
        WatchState("health", "web", now - 9, last_success=now - 4),
        WatchState("health", "api", now - 9),
        WatchState("services", "services", now, error="no", status="403"),
    ]
    gateway = GatewayDouble(states=states, dropped=7, limits=Limits(max_connections=77))
    gateway.numbers.count_routed(*WEB)
    gateway.numbers.count_connect(0.0002)
    gateway.numbers.count_failed(*WEB, Reason.CONNECT_FAILED)
    for flag in ("", "", "DC", "UC", "SI", "odd"):
        gateway.numbers.count_ended(WEB, 0.5, (1, 2), flag)
    stats = await StatsSource(gateway, lambda: 5).gather()
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
    gateway = GatewayDouble()
    source = StatsSource(gateway, lambda: 0)
    seen = []
    for received, sent in ((100, 200), (40, 300), (150, 250)):
        gateway.numbers = Counters(bytes_received=received, bytes_sent=sent, carried={WEB: (received, sent)})
        stats = await source.gather()
        seen.append((stats.bytes_received, stats.bytes_sent, stats.destination_bytes[Destination(*WEB)]))
    assert seen == [(100, 200, (100, 200)), (100, 300, (100, 300)), (150, 300, (150, 300))]
