"""The metrics page: plain numbers in, Prometheus text out.

The gateway counts as it likes and hands over a `GatewayStats`; nothing is counted here and no state is kept, so a page
can be made in a thread. Label values are bounded by construction: kinds and reasons are enumerations, destinations are
Consul's names for routes and at most `MAX_DESTINATIONS` of a family, the rest is summed up under `other`. No server
name that a client sent is anywhere in `GatewayStats`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

import prometheus_client
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind, RouteTable

from .messages import Request, Response

MAX_DESTINATIONS: Final = 5000
OTHER: Final = "other"


class Destination(NamedTuple):
    """What a routed stream counts for: the kind and the destination of its route."""

    kind: RouteKind
    name: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long. `counts` has one slot for each of `bounds` (seconds) and one above them."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("a histogram has one count more than bounds")


@dataclass(frozen=True, slots=True)
class GatewayStats:
    """All numbers of the gateway at one moment.

    Attributes:
        version: of the product.
        connections: routed streams since the start.
        connections_active: streams open now.
        bytes_received: bytes from clients.
        bytes_sent: bytes to clients.
        refused: streams not carried, by reason; a missing reason counts 0.
        connect_seconds: how long connections to endpoints took to stand.
        watch_age_seconds: time since each watch of Consul last heard anything, by its name.
        consul_errors: failed requests to Consul, by HTTP status or kind of failure.
        endpoints: known endpoints, by destination and state; `endpoint_counts` makes it.
        catalog_stale: whether the last known good catalog is served, because Consul is not heard.
        ca_root_expiry: when the CA root that ends first ends, in Unix time; None while no root is known.
        ca_intermediate_expiry: when the CA intermediate that signs ends, in Unix time; None where the root signs.
        draining: whether the gateway is on its way out.
        ready: whether new streams are served.
        routes: routes in the table.
        connections_limit: how many streams may be open at once.
        idle_timeouts: streams that were closed because nothing moved.
        internal_errors: streams that were ended by a fault of the gateway's own.
        watches: watches of Consul by state, `working` or `failing`.
        token_problem: whether Consul refuses the token somewhere, or its file cannot be used.
        log_lines_dropped: lines that were not written, by log: `process` or `access`.
    """

    version: str
    connections: Mapping[Destination, int] = field(default_factory=dict)
    connections_active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: Mapping[Reason, int] = field(default_factory=dict)
    connect_seconds: Histogram = Histogram((), (0,), 0.0)
    watch_age_seconds: Mapping[str, float] = field(default_factory=dict)
    consul_errors: Mapping[str, int] = field(default_factory=dict)
    endpoints: Mapping[tuple[str, str], int] = field(default_factory=dict)
    catalog_stale: bool = False
    ca_root_expiry: float | None = None
    ca_intermediate_expiry: float | None = None
    draining: bool = False
    ready: bool = False
    routes: int = 0
    connections_limit: int = 0
    idle_timeouts: int = 0
    internal_errors: int = 0
    watches: Mapping[str, int] = field(default_factory=dict)
    token_problem: bool = False
    log_lines_dropped: Mapping[str, int] = field(default_factory=dict)


def endpoint_counts(table: RouteTable) -> dict[tuple[str, str], int]:
    """How many endpoints each destination has in the states `healthy` and `unhealthy`; zeros included."""
    counts: Counter[tuple[str, str]] = Counter()
    for route in table:
        healthy = sum(endpoint.healthy for endpoint in route.endpoints)
        counts[route.destination, "healthy"] += healthy
        counts[route.destination, "unhealthy"] += len(route.endpoints) - healthy
    return dict(counts)


class Metrics:
    """Makes metrics pages: the gateway's numbers, and those of its process and interpreter."""

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._process)
        prometheus_client.PlatformCollector(registry=self._process)
        prometheus_client.GCCollector(registry=self._process)

    def render(self, stats: GatewayStats, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics where `accept` (the request's header) asks for it."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (ValueError, TypeError):  # it names a version that is none
            encoder, content_type = choose_encoder("")
        return encoder(_Page(self._process, stats)), content_type

    async def response(self, stats: GatewayStats, request: Request) -> Response:
        """The answer to a scrape. Rendering thousands of series takes tens of milliseconds, so a thread does it."""
        body, content_type = await trio.to_thread.run_sync(self.render, stats, request.headers.get("accept", ""))
        return Response(200, body, content_type)


class _Page(Collector):
    def __init__(self, process: CollectorRegistry, stats: GatewayStats) -> None:
        self._process = process
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._stats)
        yield from self._process.collect()


def _families(stats: GatewayStats) -> Iterator[Metric]:
    yield _gauge("build_info", "The version that runs.", {(stats.version,): 1}, ("version",))
    yield _counter(
        "connections", "Streams that were routed.", _by_destination(stats.connections), ("kind", "destination")
    )
    yield _gauge("connections_active", "Streams that are open.", {(): stats.connections_active})
    yield _counter(
        "bytes",
        "Bytes relayed: received from clients, sent to clients.",
        {("received",): stats.bytes_received, ("sent",): stats.bytes_sent},
        ("direction",),
    )
    refused = dict.fromkeys(Reason, 0) | {Reason(reason): count for reason, count in stats.refused.items()}
    yield _counter(
        "refused",
        "Streams that were not carried.",
        {(reason.value,): count for reason, count in refused.items()},
        ("reason",),
    )
    yield _histogram("connect_seconds", "Time for a connection to an endpoint to stand.", stats.connect_seconds)
    yield _gauge(
        "watch_age_seconds",
        "Time since a watch of Consul last got an answer.",
        {(watch,): age for watch, age in stats.watch_age_seconds.items()},
        ("watch",),
    )
    yield _counter(
        "consul_errors",
        "Requests to Consul that failed.",
        {(status,): count for status, count in stats.consul_errors.items()},
        ("status",),
    )
    yield _gauge("endpoints", "Known endpoints.", _endpoints(stats.endpoints), ("destination", "state"))
    yield _gauge("catalog_stale", "1 while the last known good catalog is served.", {(): stats.catalog_stale})
    yield _gauge("draining", "1 while the gateway drains.", {(): stats.draining})
    yield _gauge(
        "ca_root_expiry_timestamp_seconds",
        "When the first CA root expires.",
        {} if stats.ca_root_expiry is None else {(): stats.ca_root_expiry},
    )
    yield _gauge(
        "ca_intermediate_expiry_timestamp_seconds",
        "When the CA intermediate that signs expires.",
        {} if stats.ca_intermediate_expiry is None else {(): stats.ca_intermediate_expiry},
    )
    yield from _more_families(stats)


def _more_families(stats: GatewayStats) -> Iterator[Metric]:
    """What the gateway has beside the streams and the catalog."""
    yield _gauge("ready", "1 while new streams are served.", {(): stats.ready})
    yield _gauge("routes", "Routes in the table.", {(): stats.routes})
    yield _gauge("connections_limit", "Streams that may be open at once.", {(): stats.connections_limit})
    yield _counter("idle_timeouts", "Streams that were closed because nothing moved.", {(): stats.idle_timeouts})
    yield _counter("internal_errors", "Streams that a fault of the gateway ended.", {(): stats.internal_errors})
    watches = {"working": 0, "failing": 0} | dict(stats.watches)
    yield _gauge("watches", "Watches of Consul.", {(state,): count for state, count in watches.items()}, ("state",))
    yield _gauge(
        "token_problem", "1 while Consul refuses the token, or its file cannot be used.", {(): stats.token_problem}
    )
    yield _counter(
        "log_lines_dropped",
        "Log lines that were not written.",
        {(log,): count for log, count in stats.log_lines_dropped.items()},
        ("log",),
    )


Samples = Mapping[tuple[str, ...], float]


def _gauge(name: str, help_: str, samples: Samples, labels: Iterable[str] = ()) -> Metric:
    family = GaugeMetricFamily(f"meshgate_{name}", help_, labels=list(labels))
    for values, number in samples.items():
        family.add_metric(list(values), float(number))
    return family


def _counter(name: str, help_: str, samples: Samples, labels: Iterable[str] = ()) -> Metric:
    family = CounterMetricFamily(f"meshgate_{name}", help_, labels=list(labels))
    for values, number in samples.items():
        family.add_metric(list(values), float(number))
    return family


def _histogram(name: str, help_: str, histogram: Histogram) -> Metric:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
    family = HistogramMetricFamily(f"meshgate_{name}", help_)
    family.add_metric([], buckets, sum_value=histogram.sum)
    return family


def _by_destination(connections: Mapping[Destination, int]) -> Samples:
    samples: Counter[tuple[str, ...]] = Counter()
    for (kind, destination), count in connections.items():
        known = len(samples) < MAX_DESTINATIONS
        samples[RouteKind(kind).value, destination if known else OTHER] += count
    return samples


def _endpoints(endpoints: Mapping[tuple[str, str], int]) -> Samples:
    samples: Counter[tuple[str, ...]] = Counter()
    for (destination, state), count in endpoints.items():
        # A destination has two states.
        known = len(samples) < 2 * MAX_DESTINATIONS
        samples[destination if known else OTHER, state] += count
    return samples
