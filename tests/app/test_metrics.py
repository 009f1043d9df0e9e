"""The metrics page: each number under its promised name, bounded labels, and no text of a stranger."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from meshgate import __version__
from meshgate.adapters.admin.http_server import Request, Response
from meshgate.adapters.consul import WatchKey, WatchState
from meshgate.adapters.relay import CONNECT_BUCKETS, FIRST_BYTE_BUCKETS, STREAM_BUCKETS, Limits
from meshgate.app.admin.metrics import MAX_DESTINATIONS, MAX_HISTOGRAMS, Metrics, usage_of
from meshgate.core.hello import Offer
from meshgate.core.reasons import Alert, Reason, StreamEnd
from meshgate.core.routes import Endpoint, Route, RouteKind

from .gateway_double import GatewayDouble, route

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
WEB = (RouteKind.SERVICE, "web")


def full_gateway() -> GatewayDouble:
    """One with something of everything."""
    states = [
        WatchState(WatchKey("services", "services"), 0.0, last_success=1.5),
        WatchState(WatchKey("health", "web"), 0.0, error="no", status="403"),
        WatchState(WatchKey("health", "api"), 0.0, error="no"),
    ]
    gateway = GatewayDouble(
        route("web", healthy=2, unhealthy=1),
        route("dc2", RouteKind.DATACENTER, healthy=0),
        states=states,
        errors={"500": 2, "timeout": 1},
        expiries=(1_900_000_000.0, 1_850_000_000.0),
        loads=[(os.getpid(), 2), (0, 0)],
        limits=Limits(max_connections=5000),
        dropped=9,
        catalog_stale=True,
        draining=True,
    )
    numbers = gateway.numbers
    numbers.accepted, numbers.active, numbers.bytes_received, numbers.bytes_sent = 99, 3, 1000, 1 << 53
    numbers.on_demand, numbers.internal_errors = 8, 1
    numbers.connections = {WEB: 5, (RouteKind.DATACENTER, "dc2"): 7}
    numbers.refused = {Reason.UNKNOWN_SNI: 4}
    for seconds in (0.0002, 0.4, 0.4, 50.0):
        numbers.count_connect(seconds)
    numbers.count_failed(WEB, Reason.CONNECT_FAILED)
    for end in ("closed", "closed", "client_reset", "endpoint_reset", "idle", "internal_error"):
        numbers.count_ended(WEB, 0.5, (1, 2), StreamEnd(end))
    numbers.count_connect_failure(WEB)
    for seconds in (0.002, 0.03, 7.5):
        numbers.count_first_byte(WEB, ("10.0.0.7", 20000), seconds)
    numbers.count_unanswered(WEB, ("10.0.0.7", 20000))
    numbers.count_hello(WEB, Offer("TLSv1.3", resumption=True))
    numbers.count_hello(WEB, Offer("TLSv1.2", resumption=False))
    numbers.count_alert(WEB, "endpoint", Alert.UNKNOWN_CA)
    gateway.restarts = {"hung": 2, "killed": 0}
    gateway.wrong = ["something is missing"]
    gateway.numbers.open = {(RouteKind.SERVICE, "web"): 2}
    gateway.out = {("10.0.0.7", 20000): 3}
    return gateway


def of(destination: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"kind": "service", "destination": destination, **labels}.items()))


async def scraped(gateway: GatewayDouble, accept: str = "", dropped: int = 8) -> Response:
    return await Metrics(gateway, lambda: dropped).response(Request("GET", "/metrics", {}, {"accept": accept}))


async def samples(gateway: GatewayDouble, accept: str = "", parse: Any = parse_text) -> dict[Any, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse((await scraped(gateway, accept)).body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
async def test_every_number_has_its_promised_name_and_labels(
    accept: str, parse: Any, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = full_gateway()
    for state in gateway.states:
        state.started += trio.current_time() - 3
        if state.last_success is not None:
            state.last_success += trio.current_time() - 3
    got = await samples(gateway, accept, parse)
    expected = {
        ("meshgate_build_info", (("version", __version__),)): 1,
        ("meshgate_connections_total", of("web")): 5,
        ("meshgate_connections_total", (("destination", "dc2"), ("kind", "datacenter"))): 7,
        ("meshgate_connections_active", ()): 3,
        ("meshgate_destination_connections_active", of("web")): 2,
        ("meshgate_destination_connections_active", (("destination", "dc2"), ("kind", "datacenter"))): 0,
        ("meshgate_bytes_total", (("direction", "received"),)): 1000,
        ("meshgate_bytes_total", (("direction", "sent"),)): 1 << 53,
        ("meshgate_connect_seconds_count", ()): 4,
        ("meshgate_connect_seconds_sum", ()): 50.8002,
        ("meshgate_stream_duration_seconds_count", ()): 6,
        ("meshgate_stream_duration_seconds_sum", ()): 3.0,
        ("meshgate_stream_ends_total", (("end", "closed"),)): 2,
        ("meshgate_stream_ends_total", (("end", "client_reset"),)): 1,
        ("meshgate_stream_ends_total", (("end", "endpoint_reset"),)): 1,
        ("meshgate_stream_ends_total", (("end", "idle"),)): 1,
        ("meshgate_stream_ends_total", (("end", "shed"),)): 0,
        ("meshgate_stream_ends_total", (("end", "drain"),)): 0,
        ("meshgate_stream_ends_total", (("end", "worker_lost"),)): 0,
        ("meshgate_worker_restarts_total", (("reason", "hung"),)): 2,
        ("meshgate_worker_restarts_total", (("reason", "killed"),)): 0,
        ("meshgate_connect_failures_total", of("web")): 1,
        ("meshgate_ejected_endpoints", of("web")): 1,
        ("meshgate_ejected_endpoints", (("destination", "dc2"), ("kind", "datacenter"))): 0,
        ("meshgate_first_byte_seconds_count", of("web")): 3,
        ("meshgate_first_byte_seconds_sum", of("web")): 7.532,
        ("meshgate_unanswered_streams_total", of("web")): 1,
        ("meshgate_unanswered_streams_total", (("destination", "dc2"), ("kind", "datacenter"))): 0,
        ("meshgate_client_hellos_total", of("web", version="TLSv1.3", resumption="offered")): 1,
        ("meshgate_client_hellos_total", of("web", version="TLSv1.2", resumption="none")): 1,
        ("meshgate_tls_alerts_total", of("web", sender="endpoint", alert="unknown_ca")): 1,
        ("meshgate_problems", ()): 1,
        ("meshgate_upgrades_total", (("result", "done"),)): 0,
        ("meshgate_stream_ends_total", (("end", "internal_error"),)): 1,
        ("meshgate_destination_bytes_total", of("web", direction="received")): 6,
        ("meshgate_destination_bytes_total", of("web", direction="sent")): 12,
        ("meshgate_destination_refused_total", of("web", reason="connect_failed")): 1,
        ("meshgate_client_connections_total", ()): 99,
        ("meshgate_worker_up", (("worker", "0"),)): 1,
        ("meshgate_worker_up", (("worker", "1"),)): 0,
        ("meshgate_worker_connections_active", (("worker", "0"),)): 2,
        ("meshgate_worker_connections_active", (("worker", "1"),)): 0,
        ("meshgate_watch_age_seconds", (("watch", "services"),)): 1.5,
        ("meshgate_watch_age_seconds", (("watch", "health"),)): 3,
        ("meshgate_consul_errors_total", (("status", "500"),)): 2,
        ("meshgate_consul_errors_total", (("status", "timeout"),)): 1,
        ("meshgate_endpoints", of("web", state="healthy")): 2,
        ("meshgate_endpoints", of("web", state="unhealthy")): 1,
        ("meshgate_endpoints", (("destination", "dc2"), ("kind", "datacenter"), ("state", "healthy"))): 0,
        ("meshgate_endpoints", (("destination", "dc2"), ("kind", "datacenter"), ("state", "unhealthy"))): 0,
        ("meshgate_catalog_stale", ()): 1,
        ("meshgate_ca_root_expiry_timestamp_seconds", ()): 1_900_000_000,
        ("meshgate_ca_intermediate_expiry_timestamp_seconds", ()): 1_850_000_000,
        ("meshgate_draining", ()): 1,
        ("meshgate_ready", ()): 1,
        ("meshgate_routes", ()): 2,
        ("meshgate_connections_limit", ()): 5000,
        ("meshgate_on_demand_streams_total", ()): 8,
        ("meshgate_internal_errors_total", ()): 1,
        ("meshgate_watches", (("state", "failing"),)): 2,
        ("meshgate_watches", (("state", "working"),)): 1,
        ("meshgate_token_problem", ()): 1,
        ("meshgate_log_lines_dropped_total", (("log", "process"),)): 0,
        ("meshgate_log_lines_dropped_total", (("log", "access"),)): 9,
        ("meshgate_statsd_datagrams_dropped_total", ()): 8,
    }
    expected |= {
        ("meshgate_refused_total", (("reason", reason),)): 4 * (reason is Reason.UNKNOWN_SNI) for reason in Reason
    }
    for name, bounds, counts in (
        ("connect", CONNECT_BUCKETS, {0.0005: 1, 0.5: 3}),
        ("stream_duration", STREAM_BUCKETS, {1.0: 6}),
    ):
        below = 0
        for bound in bounds:
            below = counts.get(bound, below)
            expected[f"meshgate_{name}_seconds_bucket", (("le", str(bound)),)] = below
    expected["meshgate_connect_seconds_bucket", (("le", "+Inf"),)] = 4
    expected["meshgate_stream_duration_seconds_bucket", (("le", "+Inf"),)] = 6
    for bound in FIRST_BYTE_BUCKETS:
        below = (bound >= 0.0025) + (bound >= 0.05)
        expected["meshgate_first_byte_seconds_bucket", of("web", le=str(bound))] = below
    expected["meshgate_first_byte_seconds_bucket", of("web", le="+Inf")] = 3
    used = {
        "meshgate_worker_resident_memory_bytes",
        "meshgate_worker_cpu_seconds_total",
        "meshgate_worker_open_fds",
        "meshgate_worker_max_fds",
    }
    ours = {key: value for key, value in got.items() if key[0].startswith("meshgate_")}
    assert {key: value for key, value in ours.items() if key[0] not in used} == pytest.approx(expected)
    for name in used:
        assert got[name, (("worker", "0"),)] > 0
        assert (name, (("worker", "1"),)) not in got
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= {key[0] for key in got}
    assert any(name.startswith("python_gc_") for name, _ in got)


async def test_types_are_declared() -> None:
    page = (await scraped(full_gateway())).body.decode()
    types = {family.name: family.type for family in parse_text(page)}
    assert types["meshgate_connections"] == types["meshgate_refused"] == "counter"
    assert types["meshgate_connections_active"] == "gauge"
    assert types["meshgate_connect_seconds"] == types["meshgate_stream_duration_seconds"] == "histogram"


async def test_the_content_type_is_negotiated() -> None:
    gateway = GatewayDouble()
    assert (await scraped(gateway)).content_type.startswith("text/plain; version=0.0.4")
    assert (await scraped(gateway, "text/html,*/*")).content_type.startswith("text/plain; version=0.0.4")
    response = await scraped(gateway, OPENMETRICS)
    assert response.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert response.body.endswith(b"# EOF\n")
    for odd in ("version=x.y", "version=1.0.0\x80", "version=", "escaping=\n"):
        assert "\n" not in (await scraped(gateway, f"application/openmetrics-text; {odd}")).content_type


async def test_a_gateway_that_knows_nothing_yet_has_a_page() -> None:
    gateway = GatewayDouble(expiries=(None, None), consul_found=False, catalog_known=False, ready=False)
    got = await samples(gateway)
    assert got["meshgate_connections_active", ()] == got["meshgate_ready", ()] == 0
    assert got["meshgate_connect_seconds_count", ()] == 0
    assert all(got["meshgate_refused_total", (("reason", reason),)] == 0 for reason in Reason)
    assert ("meshgate_ca_root_expiry_timestamp_seconds", ()) not in got
    assert ("meshgate_log_lines_dropped_total", (("log", "access"),)) not in got


@pytest.mark.parametrize("problem", ["", "it cannot be read"])
async def test_a_token_problem_is_one_of_the_file_or_of_a_watch(problem: str) -> None:
    assert (await samples(GatewayDouble(token_problem=problem)))["meshgate_token_problem", ()] == bool(problem)


@pytest.mark.parametrize(
    "hostile", ["evil.example", 'a"} 1\nmeshgate_draining 1', "x" * 255, "x.default.dc2.internal.td.consul", "\u202e"]
)
async def test_a_strangers_server_name_is_never_a_label(hostile: str) -> None:
    """What the gateway counts for a stream is made from the route or the reason, never from the name it sent."""
    there = Route("dc2.internal.td.consul", RouteKind.DATACENTER, "dc2", (), suffix=True)
    gateway = GatewayDouble(there)
    route = gateway.table().find(hostile)
    if route:
        gateway.numbers.count_routed((route.kind, route.destination))
    else:
        gateway.numbers.count_refused(Reason.UNKNOWN_SNI)
    assert hostile not in (await scraped(gateway)).body.decode()
    assert hostile not in {value for _, pairs in await samples(gateway) for _, value in pairs}


async def test_what_is_no_reason_or_kind_cannot_be_rendered() -> None:
    gateway = GatewayDouble()
    gateway.numbers.refused = {cast("Reason", "evil.example"): 1}
    assert b"evil" not in (await scraped(gateway)).body
    gateway.numbers.connections = {(cast("RouteKind", "evil.example"), "x"): 1}
    with pytest.raises(AttributeError):
        await scraped(gateway)


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
async def test_an_odd_service_name_of_consul_stays_in_its_label(accept: str, parse: Any) -> None:
    odd = 'we"b\n} \\ 1'
    gateway = GatewayDouble()
    gateway.numbers.connections = {(RouteKind.SERVICE, odd): 2}
    assert (await samples(gateway, accept, parse))["meshgate_connections_total", of(odd)] == 2


async def test_a_name_of_consul_that_a_terminal_would_obey_is_escaped() -> None:
    gateway = GatewayDouble()
    gateway.numbers.connections = {(RouteKind.SERVICE, "we\x9b2Jb\u202e\x7f"): 2}
    body = (await scraped(gateway)).body.decode()
    assert r'destination="we\\x9b2Jb\\u202e\\x7f"' in body
    assert all(line.isprintable() for line in body.splitlines())


async def test_destinations_are_bounded() -> None:
    surplus = 10
    gateway = crowded(MAX_DESTINATIONS + surplus)
    got = await samples(gateway)
    assert got["meshgate_destination_bytes_total", of("other", direction="sent")] == 2 * surplus
    assert got["meshgate_destination_refused_total", of("other", reason="no_sni")] == surplus
    assert got["meshgate_connections_total", of("other")] == surplus
    assert got["meshgate_endpoints", of("other", state="unhealthy")] == surplus
    count = "meshgate_first_byte_seconds_count"
    assert got[count, of("other")] == MAX_DESTINATIONS + surplus - MAX_HISTOGRAMS
    assert sum(found == count for found, _ in got) == MAX_HISTOGRAMS + 1
    assert got["meshgate_first_byte_seconds_bucket", of("other", le="0.1")] == got[count, of("other")]
    for name, each in (("destination_bytes_total", 2), ("destination_refused_total", 2), ("connections_total", 1)):
        assert sum(found == f"meshgate_{name}" for found, _ in got) == each * (MAX_DESTINATIONS + 1)
    assert sum(name == "meshgate_endpoints" for name, _ in got) == 2 * MAX_DESTINATIONS + 2


def crowded(count: int) -> GatewayDouble:
    destinations = [(RouteKind.SERVICE, f"s{number}") for number in range(count)]
    sick = (Endpoint("10.0.0.1", 1, False, 1, "n", "i"),)
    gateway = GatewayDouble(*(Route(f"{name}.td", kind, name, sick) for kind, name in destinations))
    gateway.numbers.connections = dict.fromkeys(destinations, 1)
    gateway.numbers.carried = dict.fromkeys(destinations, (1, 2))
    for it in destinations:
        gateway.numbers.count_first_byte(it, ("10.0.0.1", 1), 0.07)
    gateway.numbers.failed = {(*it, reason): 1 for it in destinations for reason in (Reason.UNKNOWN_SNI, Reason.NO_SNI)}
    return gateway


async def test_endpoints_are_counted_by_kind_destination_and_state() -> None:
    """Also where a service and a datacenter have the same name."""
    gateway = GatewayDouble(
        route("dc2", healthy=0, unhealthy=1),
        Route("dc2.other-namespace.td", RouteKind.SERVICE, "dc2", route("dc2", healthy=1).endpoints),
        route("dc2", RouteKind.DATACENTER, healthy=2),
    )
    got = {key[1]: value for key, value in (await samples(gateway)).items() if key[0] == "meshgate_endpoints"}
    there = {"destination": "dc2", "kind": "datacenter"}
    assert got == {
        of("dc2", state="healthy"): 1,
        of("dc2", state="unhealthy"): 1,
        tuple(sorted({**there, "state": "healthy"}.items())): 2,
        tuple(sorted({**there, "state": "unhealthy"}.items())): 0,
    }


async def test_a_scrape_is_rendered_without_holding_up_the_loop() -> None:
    gateway = crowded(MAX_DESTINATIONS)
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
        response = await scraped(gateway, OPENMETRICS)
        took = trio.current_time() - started
        done = True
    assert response.content_type.startswith("application/openmetrics-text")
    assert b"meshgate_connections_total" in response.body
    assert longest < took / 2


def test_a_process_is_measured() -> None:
    usage = usage_of(os.getpid())
    spent = resource.getrusage(resource.RUSAGE_SELF)
    assert usage["cpu_seconds"] == pytest.approx(spent.ru_utime + spent.ru_stime, rel=0.2, abs=0.5)
    assert 1 << 20 < usage["resident_memory_bytes"] <= spent.ru_maxrss * 1024
    assert usage["max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with Path("/dev/null").open() as first, first:
        assert usage_of(os.getpid())["open_fds"] == usage["open_fds"] + 1


def test_a_program_with_an_odd_name_is_measured() -> None:
    rename = (
        'import ctypes, sys; ctypes.CDLL(None).prctl(15, b") R 1 (x 2", 0, 0, 0); print(flush=True); sys.stdin.read()'
    )
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        usage = usage_of(child.pid)
        child.communicate()
    assert usage["resident_memory_bytes"] > 1 << 20


def test_what_is_no_process_is_not_measured() -> None:
    assert usage_of(0) == usage_of(1 << 30) == {}
