"""The gateway's numbers as Prometheus families: for the metrics page, and for statsd.

Label values are bounded by construction: kinds, reasons and ends are enumerations, destinations are Consul's names for
routes and at most `MAX_DESTINATIONS` of a family (`MAX_HISTOGRAMS` where each has a dozen numbers), the rest is summed
up under `other`. A server name that a client sent is never one. What grows with the catalog is made in a thread, so
that nothing waits for it.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Final

import prometheus_client
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from meshgate import __version__
from meshgate.adapters.admin.http_server import Request, Response
from meshgate.adapters.relay import CONNECT_BUCKETS, FIRST_BYTE_BUCKETS, STREAM_BUCKETS, Counters, Destination
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.logs import logs
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind, RouteTable
from meshgate.core.text import printable

MAX_DESTINATIONS: Final = 5000
MAX_HISTOGRAMS: Final = 500
OTHER: Final = "other"

Key = tuple[RouteKind, str, *tuple[str, ...]]
"""A destination, and the values of further labels."""
Counts = Mapping[tuple[str, ...], int]
Samples = float | Mapping[str, float] | Mapping[str, int] | Counts
"""A number; or numbers by the value of the one label, or by the values of all labels."""

_DIRECTIONS: Final = ("received", "sent")


class Metrics:
    """Gathers them. `statsd_dropped` says how many datagrams for statsd were not sent."""

    def __init__(self, gateway: GatewayView, statsd_dropped: Callable[[], int] = lambda: 0) -> None:
        self._statsd_dropped = statsd_dropped
        self._gateway = gateway
        self._process = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._process)
        prometheus_client.PlatformCollector(registry=self._process)
        prometheus_client.GCCollector(registry=self._process)

    async def families(self) -> list[Metric]:
        """The gateway's own numbers, without those of its process; waits up to half a second for the workers."""
        gateway, counters = self._gateway, await self._gateway.counters()
        few = [*self._of_gateway(), *self._of_streams(counters)]
        table, workers = gateway.table(), gateway.workers()
        ejected = set(gateway.ejected())
        many = await trio.to_thread.run_sync(lambda: [*_of_destinations(counters, table, ejected), *_workers(workers)])
        return few + many

    async def response(self, request: Request) -> Response:
        """The answer to a scrape: OpenMetrics where the request's header `accept` asks for it."""
        families = await self.families()
        try:
            encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        except (ValueError, TypeError):  # it names a version that is none
            encoder, content_type = choose_encoder("")
        page = await trio.to_thread.run_sync(encoder, _Page(families, self._process))
        return Response(200, page, content_type)

    def _of_gateway(self) -> Iterator[Metric]:
        gateway, now = self._gateway, trio.current_time()
        states = gateway.watches()
        yield _gauge("build_info", "The version that runs.", {__version__: 1}, "version")
        yield _gauge("ready", "1 while new streams are served.", gateway.ready)
        yield _gauge("draining", "1 while the gateway drains.", gateway.draining)
        yield _gauge("problems", "What is missing or failing, as /readyz lists it.", len(gateway.problems()))
        yield _gauge("routes", "Routes in the table.", len(gateway.table()))
        yield _gauge("connections_limit", "Streams that may be open at once.", gateway.limits.max_connections)
        yield _gauge("catalog_stale", "1 while the last known good catalog is served.", gateway.catalog_stale)
        ages: dict[str, float] = {}
        for state in states:
            ages[state.key.kind] = max(ages.get(state.key.kind, 0.0), state.age(now))
        yield _gauge("watch_age_seconds", "Time since a watch of Consul last got an answer.", ages, "watch")
        watches = {"working": 0, "failing": 0} | Counter("failing" if it.error else "working" for it in states)
        yield _gauge("watches", "Watches of Consul.", watches, "state")
        help_ = "Upgrades of the running gateway that were asked for, by what came of them."
        yield _counter("upgrades", help_, gateway.upgrades(), "result")
        yield _counter("consul_errors", "Requests to Consul that failed.", gateway.consul_errors(), "status")
        token_problem = bool(gateway.token_problem) or any(state.status == "403" for state in states)
        yield _gauge("token_problem", "1 while Consul refuses the token, or its file cannot be used.", token_problem)
        for name, when in zip(("root", "intermediate"), gateway.ca_expiries(), strict=True):
            help_ = f"When the first CA {name} in use expires."
            yield _gauge(f"ca_{name}_expiry_timestamp_seconds", help_, {} if when is None else when)
        access = gateway.access_lines_dropped()
        dropped = {"process": logs.dropped()} | ({} if access is None else {"access": access})
        yield _counter("log_lines_dropped", "Log lines that were not written.", dropped, "log")
        not_sent = self._statsd_dropped()
        yield _counter("statsd_datagrams_dropped", "Datagrams for statsd that were not sent.", not_sent)

    def _of_streams(self, counters: Counters) -> Iterator[Metric]:
        yield _counter("client_connections", "TCP connections of clients that were accepted.", counters.accepted)
        yield _gauge("connections_active", "Streams that are open.", counters.active)
        both = dict(zip(_DIRECTIONS, (counters.bytes_received, counters.bytes_sent), strict=True))
        yield _counter("bytes", "Bytes relayed: received from clients, sent to clients.", both, "direction")
        refused = {reason.value: counters.refused.get(reason, 0) for reason in Reason}
        yield _counter("refused", "Streams that were not carried.", refused, "reason")
        yield _histogram(
            "connect_seconds",
            "Time for a connection to an endpoint to stand.",
            CONNECT_BUCKETS,
            counters.connect_counts,
            counters.connect_sum,
        )
        yield _histogram(
            "stream_duration_seconds",
            "How long routed streams lived that have ended.",
            STREAM_BUCKETS,
            counters.stream_counts,
            counters.stream_sum,
        )
        # Those that were refused were never routed; `refused` has them, by the reason.
        ends = {end.value: counters.ends.get(end, 0) for end in StreamEnd if end is not StreamEnd.REFUSED}
        yield _counter("stream_ends", "How routed streams ended.", ends, "end")
        yield _counter(
            "on_demand_streams", "Streams that waited while Consul was asked for a name.", counters.on_demand
        )
        restarts = self._gateway.worker_restarts()
        yield _counter("worker_restarts", "Relay processes that ended and were replaced.", restarts, "reason")
        yield _counter("internal_errors", "Streams that a fault of the gateway ended.", counters.internal_errors)


class _Page(Collector):
    def __init__(self, families: Sequence[Metric], process: CollectorRegistry) -> None:
        self._families = families
        self._process = process

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from self._process.collect()


def _of_destinations(counters: Counters, table: RouteTable, ejected: Container[Address]) -> Iterator[Metric]:
    def counter(name: str, help_: str, counts: Iterable[tuple[Key, int]], *labels: str) -> Metric:
        return _counter(name, help_, _bounded(counts), "kind", "destination", *labels)

    def gauge(name: str, help_: str, counts: Iterable[tuple[Key, int]], *labels: str) -> Metric:
        return _gauge(name, help_, _bounded(counts), "kind", "destination", *labels)

    yield counter("connections", "Streams that were routed.", counters.connections.items())
    open_ = ((destination, counters.open.get(destination, 0)) for destination in counters.connections)
    yield gauge("destination_connections_active", "Streams to a destination that are open.", open_)
    both = (
        ((*destination, direction), count)
        for destination, bytes_ in counters.carried.items()
        for direction, count in zip(_DIRECTIONS, bytes_, strict=True)
    )
    help_ = "Bytes relayed for a destination: received from clients, sent to clients."
    yield counter("destination_bytes", help_, both, "direction")
    failed = (((kind, name, reason.value), count) for (kind, name, reason), count in counters.failed.items())
    yield counter("destination_refused", "Streams for a destination that were not carried.", failed, "reason")
    help_ = "Endpoints that could not be reached, also where another one took the stream."
    yield counter("connect_failures", help_, counters.connect_failures.items())
    yield _first_bytes(counters)
    unanswered = ((each, counters.unanswered.get(each, 0)) for each in counters.connections)
    help_ = "Routed streams that ended before their endpoint had sent a byte."
    yield counter("unanswered_streams", help_, unanswered)
    hellos = (
        ((kind, name, version, "offered" if resumption else "none"), count)
        for (kind, name, version, resumption), count in counters.hellos.items()
    )
    help_ = (
        "Streams that had a route, by the newest TLS version that the client offers, and whether it offers to resume."
    )
    yield counter("client_hellos", help_, hellos, "version", "resumption")
    alerts = (((kind, name, by, alert.value), count) for (kind, name, by, alert), count in counters.alerts.items())
    yield counter("tls_alerts", "TLS alerts in the clear, by who sent them.", alerts, "sender", "alert")
    out = (
        ((route.kind, route.destination), sum((each.address, each.port) in ejected for each in route.endpoints))
        for route in table
    )
    yield gauge("ejected_endpoints", "Endpoints that failed and get no streams while others are left.", out)
    endpoints = (
        ((route.kind, route.destination, state), count)
        for route in table
        for healthy in (sum(endpoint.healthy for endpoint in route.endpoints),)
        for state, count in (("healthy", healthy), ("unhealthy", len(route.endpoints) - healthy))
    )
    yield gauge("endpoints", "Known endpoints.", endpoints, "state")


def _first_bytes(counters: Counters) -> Metric:
    """Of the destinations that had streams first, those past the bound summed up."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, ((kind, name), counts) in enumerate(counters.first_bytes.items()):
        key = kind.value, _shown(name) if number < MAX_HISTOGRAMS else OTHER
        found[key] = [*map(sum, zip(found[key], counts, strict=True))] if key in found else counts
    family = HistogramMetricFamily(
        "meshgate_first_byte_seconds",
        "Time from the hello's departure to the endpoint's first byte.",
        labels=("kind", "destination"),
    )
    for key, (*counts, microseconds) in found.items():
        family.add_metric(key, _buckets(FIRST_BYTE_BUCKETS, counts), sum_value=microseconds / 1e6)
    return family


def _bounded(counts: Iterable[tuple[Key, int]]) -> Counts:
    """Samples by kind, destination and what else they have; the destinations past the bound are summed up."""
    samples: Counter[tuple[str, ...]] = Counter()
    known: set[Destination] = set()
    for (kind, name, *more), count in counts:
        if len(known) < MAX_DESTINATIONS:
            known.add((kind, name))
        samples[(kind.value, _shown(name) if (kind, name) in known else OTHER, *more)] += count
    return samples


def _shown(name: str) -> str:
    """A name of Consul's that a terminal may show. The ends of lines are escaped by the format."""
    return name if name.isprintable() else "\n".join(map(printable, name.split("\n")))


def _workers(loads: Iterable[tuple[int, int]]) -> Iterator[Metric]:
    """The relay processes one by one; `process_*` of the page is their parent."""
    active = {str(number): streams for number, (_, streams) in enumerate(loads)}
    usages = {str(number): usage_of(pid) for number, (pid, _) in enumerate(loads)}
    up = {number: bool(usage) for number, usage in usages.items()}
    yield _gauge("worker_up", "1 while the relay process lives.", up, "worker")
    yield _gauge("worker_connections_active", "Streams that are open in a relay process.", active, "worker")
    for name, help_, family in (
        ("resident_memory_bytes", "Resident memory of a relay process.", _gauge),
        ("cpu_seconds", "User and system CPU time of a relay process.", _counter),
        ("open_fds", "Open descriptors of a relay process.", _gauge),
        ("max_fds", "Descriptors that a relay process may have open.", _gauge),
    ):
        known = {number: usage[name] for number, usage in usages.items() if name in usage}
        yield family(f"worker_{name}", help_, known, "worker")


def usage_of(pid: int) -> dict[str, float]:
    """What a process uses now, by what follows `worker_` in the names; without what may not be seen or has no limit."""
    import psutil  # noqa: PLC0415 - a megabyte that a gateway does without until it is scraped

    reads: dict[str, Callable[[psutil.Process], float]] = {
        "cpu_seconds": lambda process: sum(process.cpu_times()[:2]),  # User and system, of one look.
        "resident_memory_bytes": lambda process: process.memory_info().rss,
        "open_fds": lambda process: process.num_fds(),
        "max_fds": lambda process: process.rlimit(psutil.RLIMIT_NOFILE)[0],
    }
    usage: dict[str, float] = {}
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            for name, read in reads.items():
                with suppress(psutil.AccessDenied, AttributeError):  # the latter where the system has no such limit
                    usage[name] = read(process)
    if usage.get("max_fds") == -1:  # RLIM_INFINITY
        del usage["max_fds"]
    return usage


def _gauge(name: str, help_: str, samples: Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"meshgate_{name}", help_, labels=labels), samples)


def _counter(name: str, help_: str, samples: Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"meshgate_{name}", help_, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for values, number in samples.items() if isinstance(samples, Mapping) else (((), samples),):
        family.add_metric([values] if isinstance(values, str) else values, float(number))
    return family


def _histogram(name: str, help_: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    family = HistogramMetricFamily(f"meshgate_{name}", help_)
    family.add_metric([], _buckets(bounds, counts), sum_value=total)
    return family


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """`counts` has one slot for each of `bounds` and one above them."""
    return list(zip([*map(floatToGoString, bounds), "+Inf"], map(float, accumulate(counts)), strict=True))
