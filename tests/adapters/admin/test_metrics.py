import os
from typing import Any, cast

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from meshgate.adapters.admin.messages import Request
from meshgate.adapters.admin.metrics import MAX_DESTINATIONS, Metrics
from meshgate.adapters.admin.stats import Destination, GatewayStats, Histogram, StreamEnd, Worker, endpoint_counts
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
STATS = GatewayStats(
    version="1.2.3",
    connections={Destination(RouteKind.SERVICE, "web"): 5, Destination(RouteKind.DATACENTER, "dc2"): 7},
    connections_active=3,
    bytes_received=1000,
    bytes_sent=1 << 53,
    refused={Reason.UNKNOWN_SNI: 4},
    connect_seconds=Histogram((0.001, 0.5, 5.0), (1, 2, 0, 4), 42.5),
    stream_seconds=Histogram((1.0, 60.0), (2, 0, 1), 3601.5),
    stream_ends={StreamEnd.IN_ORDER: 2, StreamEnd.CLIENT_RESET: 1},
    destination_bytes={Destination(RouteKind.SERVICE, "web"): (11, 22)},
    destination_refused={(Destination(RouteKind.SERVICE, "web"), Reason.CONNECT_FAILED): 3},
    accepted=99,
    workers=(Worker(os.getpid(), 2), Worker(0, 0)),
    watch_age_seconds={"services": 1.5},
    consul_errors={"500": 2, "timeout": 1},
    endpoints={("web", "healthy"): 2, ("web", "unhealthy"): 1},
    catalog_stale=True,
    ca_root_expiry=1_900_000_000.0,
    ca_intermediate_expiry=1_850_000_000.0,
    draining=True,
    ready=True,
    routes=12,
    connections_limit=5000,
    idle_timeouts=6,
    learned=8,
    internal_errors=1,
    watches={"failing": 2},
    token_problem=True,
    log_lines_dropped={"process": 0, "access": 9},
    statsd_dropped=8,
)


def of(destination: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"kind": "service", "destination": destination, **labels}.items()))


def of_web(**labels: str) -> tuple[tuple[str, str], ...]:
    return of("web", **labels)


@pytest.fixture(scope="module")
def metrics() -> Any:
    return Metrics()


def samples(page: Any, parse: Any = parse_text) -> Any:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(page.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_every_number_has_its_promised_name_and_labels(metrics: Metrics, accept: str, parse: Any) -> None:
    got = samples(metrics.render(STATS, accept)[0], parse)
    expected = {
        ("meshgate_build_info", (("version", "1.2.3"),)): 1,
        ("meshgate_connections_total", (("destination", "web"), ("kind", "service"))): 5,
        ("meshgate_connections_total", (("destination", "dc2"), ("kind", "datacenter"))): 7,
        ("meshgate_connections_active", ()): 3,
        ("meshgate_bytes_total", (("direction", "received"),)): 1000,
        ("meshgate_bytes_total", (("direction", "sent"),)): 1 << 53,
        ("meshgate_refused_total", (("reason", "unknown_sni"),)): 4,
        ("meshgate_refused_total", (("reason", "not_tls"),)): 0,
        ("meshgate_connect_seconds_bucket", (("le", "0.001"),)): 1,
        ("meshgate_connect_seconds_bucket", (("le", "0.5"),)): 3,
        ("meshgate_connect_seconds_bucket", (("le", "5.0"),)): 3,
        ("meshgate_connect_seconds_bucket", (("le", "+Inf"),)): 7,
        ("meshgate_connect_seconds_count", ()): 7,
        ("meshgate_connect_seconds_sum", ()): 42.5,
        ("meshgate_stream_seconds_bucket", (("le", "1.0"),)): 2,
        ("meshgate_stream_seconds_bucket", (("le", "60.0"),)): 2,
        ("meshgate_stream_seconds_bucket", (("le", "+Inf"),)): 3,
        ("meshgate_stream_seconds_count", ()): 3,
        ("meshgate_stream_seconds_sum", ()): 3601.5,
        ("meshgate_stream_ends_total", (("end", "in_order"),)): 2,
        ("meshgate_stream_ends_total", (("end", "client_reset"),)): 1,
        ("meshgate_stream_ends_total", (("end", "idle_timeout"),)): 0,
        ("meshgate_destination_bytes_total", of_web(direction="received")): 11,
        ("meshgate_destination_bytes_total", of_web(direction="sent")): 22,
        ("meshgate_destination_refused_total", of_web(reason="connect_failed")): 3,
        ("meshgate_accepted_total", ()): 99,
        ("meshgate_worker_up", (("worker", "0"),)): 1,
        ("meshgate_worker_up", (("worker", "1"),)): 0,
        ("meshgate_worker_connections_active", (("worker", "0"),)): 2,
        ("meshgate_watch_age_seconds", (("watch", "services"),)): 1.5,
        ("meshgate_consul_errors_total", (("status", "500"),)): 2,
        ("meshgate_consul_errors_total", (("status", "timeout"),)): 1,
        ("meshgate_endpoints", (("destination", "web"), ("state", "healthy"))): 2,
        ("meshgate_endpoints", (("destination", "web"), ("state", "unhealthy"))): 1,
        ("meshgate_catalog_stale", ()): 1,
        ("meshgate_ca_root_expiry_timestamp_seconds", ()): 1_900_000_000,
        ("meshgate_ca_intermediate_expiry_timestamp_seconds", ()): 1_850_000_000,
        ("meshgate_draining", ()): 1,
        ("meshgate_ready", ()): 1,
        ("meshgate_routes", ()): 12,
        ("meshgate_connections_limit", ()): 5000,
        ("meshgate_idle_timeouts_total", ()): 6,
        ("meshgate_learned_total", ()): 8,
        ("meshgate_internal_errors_total", ()): 1,
        ("meshgate_watches", (("state", "failing"),)): 2,
        ("meshgate_watches", (("state", "working"),)): 0,
        ("meshgate_token_problem", ()): 1,
        ("meshgate_log_lines_dropped_total", (("log", "process"),)): 0,
        ("meshgate_log_lines_dropped_total", (("log", "access"),)): 9,
        ("meshgate_statsd_datagrams_dropped_total", ()): 8,
    }
    assert {key: got.get(key) for key in expected} == expected
    used = {
        "meshgate_worker_resident_memory_bytes",
        "meshgate_worker_cpu_seconds_total",
        "meshgate_worker_open_fds",
        "meshgate_worker_max_fds",
    }
    ours = {key[0] for key in got if key[0].startswith("meshgate_")}
    assert ours == {key[0] for key in expected} | used
    for name in used:
        assert got[name, (("worker", "0"),)] > 0
        assert (name, (("worker", "1"),)) not in got
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= {key[0] for key in got}
    assert any(name.startswith("python_gc_") for name, _ in got)


def test_types_are_declared(metrics: Metrics) -> None:
    types = {family.name: family.type for family in parse_text(metrics.render(STATS)[0].decode())}
    assert types["meshgate_connections"] == types["meshgate_refused"] == "counter"
    assert types["meshgate_connections_active"] == "gauge"
    assert types["meshgate_connect_seconds"] == types["meshgate_stream_seconds"] == "histogram"


def test_the_content_type_is_negotiated(metrics: Metrics) -> None:
    assert metrics.render(STATS)[1].startswith("text/plain; version=0.0.4")
    assert metrics.render(STATS, "text/html,*/*")[1].startswith("text/plain; version=0.0.4")
    page, content_type = metrics.render(STATS, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    for odd in ("version=x.y", "version=1.0.0\x80", "version=", "escaping=\n"):
        assert "\n" not in metrics.render(STATS, f"application/openmetrics-text; {odd}")[1]


def test_every_reason_is_there_from_the_start(metrics: Metrics) -> None:
    got = samples(metrics.render(GatewayStats("1"))[0])
    for reason in Reason:
        assert got["meshgate_refused_total", (("reason", reason.value),)] == 0


def test_a_gateway_that_knows_nothing_yet_has_a_page(metrics: Metrics) -> None:
    got = samples(metrics.render(GatewayStats("1"))[0])
    assert got["meshgate_connections_active", ()] == 0
    assert got["meshgate_connect_seconds_count", ()] == 0
    assert ("meshgate_ca_root_expiry_timestamp_seconds", ()) not in got
    assert ("meshgate_ca_intermediate_expiry_timestamp_seconds", ()) not in got


@pytest.mark.parametrize(
    "hostile", ["evil.example", 'a"} 1\nmeshgate_draining 1', "x" * 255, "x.default.dc2.internal.td.consul", "\u202e"]
)
def test_a_strangers_server_name_is_never_a_label(metrics: Metrics, hostile: str) -> None:
    """What the gateway counts for a stream is made from the route or the reason, never from the name it sent."""
    routes = [Route("dc2.internal.td.consul", RouteKind.DATACENTER, "dc2", (), suffix=True)]
    table = RouteTable.of("dc1", "td.consul", "default", iter(routes))
    route = table.find(hostile)
    stats = (
        GatewayStats("1", connections={Destination(route.kind, route.destination): 1}, endpoints=endpoint_counts(table))
        if route
        else GatewayStats("1", refused={Reason.UNKNOWN_SNI: 1}, endpoints=endpoint_counts(table))
    )
    page = metrics.render(stats)[0].decode()
    labels = {value for _, pairs in samples(page.encode()) for _, value in pairs}
    assert hostile not in labels
    assert hostile not in page


def test_what_is_no_reason_or_kind_cannot_be_rendered(metrics: Metrics) -> None:
    for stats in (
        GatewayStats("1", refused={cast("Reason", "evil.example"): 1}),
        GatewayStats("1", connections={Destination(cast("RouteKind", "evil.example"), "x"): 1}),
    ):
        with pytest.raises(ValueError, match=r"evil\.example"):
            metrics.render(stats)


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_an_odd_service_name_of_consul_stays_in_its_label(metrics: Metrics, accept: str, parse: Any) -> None:
    odd = 'we"b\n} \\ 1'
    stats = GatewayStats("1", connections={Destination(RouteKind.SERVICE, odd): 2})
    got = samples(metrics.render(stats, accept)[0], parse)
    assert got["meshgate_connections_total", (("destination", odd), ("kind", "service"))] == 2


def test_destinations_are_bounded(metrics: Metrics) -> None:
    surplus = 10
    connections = {Destination(RouteKind.SERVICE, f"s{n}"): 1 for n in range(MAX_DESTINATIONS + surplus)}
    endpoints = {(f"s{n}", state): 1 for n in range(MAX_DESTINATIONS + surplus) for state in ("healthy", "unhealthy")}
    stats = GatewayStats(
        "1",
        connections=connections,
        endpoints=endpoints,
        destination_bytes=dict.fromkeys(connections, (1, 2)),
        destination_refused={(each, reason): 1 for each in connections for reason in (Reason.DRAINING, Reason.NO_SNI)},
    )
    got = samples(metrics.render(stats)[0])
    assert got["meshgate_destination_bytes_total", of("other", direction="sent")] == 2 * surplus
    assert got["meshgate_destination_refused_total", of("other", reason="draining")] == surplus
    assert sum(name == "meshgate_destination_bytes_total" for name, _ in got) == 2 * MAX_DESTINATIONS + 2
    assert sum(name == "meshgate_destination_refused_total" for name, _ in got) == 2 * MAX_DESTINATIONS + 2
    assert got["meshgate_connections_total", (("destination", "other"), ("kind", "service"))] == surplus
    assert got["meshgate_endpoints", (("destination", "other"), ("state", "unhealthy"))] == surplus
    assert sum(name == "meshgate_connections_total" for name, _ in got) == MAX_DESTINATIONS + 1
    assert sum(name == "meshgate_endpoints" for name, _ in got) == 2 * MAX_DESTINATIONS + 2


def test_endpoints_are_counted_by_destination_and_state() -> None:
    def endpoint(number: Any, healthy: Any) -> Any:
        return Endpoint(f"10.0.0.{number}", 1, healthy, 1, "n", "i")

    routes = [
        Route("web.td", RouteKind.SERVICE, "web", (endpoint(1, True), endpoint(2, False), endpoint(3, True))),
        Route("web.other-namespace.td", RouteKind.SERVICE, "web", (endpoint(4, False),)),
        Route("dc2.td", RouteKind.DATACENTER, "dc2", (), suffix=True),
    ]
    assert endpoint_counts(RouteTable.of("dc1", "td", "default", iter(routes))) == {
        ("web", "healthy"): 2,
        ("web", "unhealthy"): 2,
        ("dc2", "healthy"): 0,
        ("dc2", "unhealthy"): 0,
    }


def test_a_histogram_needs_a_count_above_its_bounds() -> None:
    with pytest.raises(ValueError, match="one count more"):
        Histogram((1.0,), (1,), 0.0)


async def test_a_scrape_is_rendered_without_holding_up_the_loop(metrics: Metrics) -> None:
    connections = {Destination(RouteKind.SERVICE, f"s{n}"): 1 for n in range(MAX_DESTINATIONS)}
    endpoints = {(f"s{n}", "healthy"): 1 for n in range(MAX_DESTINATIONS)}
    request = Request("GET", "/metrics", {}, {"accept": OPENMETRICS})
    longest, done = 0.0, False

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal longest
        task_status.started()
        while not done:
            before = trio.current_time()
            await trio.sleep(0.001)
            longest = max(longest, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        started = trio.current_time()
        response = await metrics.response(GatewayStats("1", connections=connections, endpoints=endpoints), request)
        took = trio.current_time() - started
        done = True
    assert response.content_type.startswith("application/openmetrics-text")
    assert b"meshgate_connections_total" in response.body
    assert longest < took / 2
