"""The metrics page: plain numbers in, Prometheus text out.

No state is kept, so a page can be made in a thread. Label values are bounded by construction: kinds and reasons are
enumerations, destinations are Consul's names for routes and at most `MAX_DESTINATIONS` of a family, the rest is summed
up under `other`. No server name that a client sent is anywhere in `GatewayStats`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import prometheus_client
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind

from .messages import Request, Response
from .processes import usage_of
from .stats import Destination, GatewayStats, Histogram, StreamEnd, Worker

MAX_DESTINATIONS: Final = 5000
OTHER: Final = "other"


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
        yield from families(self._stats)
        yield from self._process.collect()


def families(stats: GatewayStats) -> Iterator[Metric]:
    """The gateway's own numbers, without those of its process."""
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
    yield from _stream_families(stats)
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


def _stream_families(stats: GatewayStats) -> Iterator[Metric]:
    """What became of streams, all together and by destination."""
    yield _counter("accepted", "Connections of clients that were taken.", {(): stats.accepted})
    yield _histogram("stream_seconds", "How long routed streams lived that have ended.", stats.stream_seconds)
    ends = dict.fromkeys(StreamEnd, 0) | {StreamEnd(end): count for end, count in stats.stream_ends.items()}
    yield _counter(
        "stream_ends", "How routed streams ended.", {(end.value,): count for end, count in ends.items()}, ("end",)
    )
    carried: Counts = {
        (destination, (direction,)): count
        for destination, both in stats.destination_bytes.items()
        for direction, count in zip(("received", "sent"), both, strict=True)
    }
    yield _counter(
        "destination_bytes",
        "Bytes relayed for a destination: received from clients, sent to clients.",
        _bounded(carried),
        ("kind", "destination", "direction"),
    )
    refused: Counts = {
        (destination, (Reason(reason).value,)): count
        for (destination, reason), count in stats.destination_refused.items()
    }
    yield _counter(
        "destination_refused",
        "Streams for a destination that were not carried.",
        _bounded(refused),
        ("kind", "destination", "reason"),
    )


def _worker_families(workers: Iterable[Worker]) -> Iterator[Metric]:
    """The relay processes one by one; `process_*` of the page is their parent."""
    numbered = {str(number): worker for number, worker in enumerate(workers)}
    usages = {number: usage_of(worker.pid) for number, worker in numbered.items()}
    known = {number: usage for number, usage in usages.items() if usage is not None}
    up: Samples = {(number,): number in known for number in numbered}
    yield _gauge("worker_up", "1 while the relay process lives.", up, ("worker",))
    yield _gauge(
        "worker_connections_active",
        "Streams that are open in a relay process.",
        {(number,): worker.active for number, worker in numbered.items()},
        ("worker",),
    )
    yield _gauge(
        "worker_resident_memory_bytes",
        "Resident memory of a relay process.",
        {(number,): usage.resident_bytes for number, usage in known.items()},
        ("worker",),
    )
    yield _counter(
        "worker_cpu_seconds",
        "User and system CPU time of a relay process.",
        {(number,): usage.cpu_seconds for number, usage in known.items()},
        ("worker",),
    )
    yield _gauge(
        "worker_open_fds",
        "Open descriptors of a relay process.",
        {(number,): usage.open_fds for number, usage in known.items() if usage.open_fds is not None},
        ("worker",),
    )
    yield _gauge(
        "worker_max_fds",
        "Descriptors that a relay process may have open.",
        {(number,): usage.max_fds for number, usage in known.items() if usage.max_fds is not None},
        ("worker",),
    )


def _more_families(stats: GatewayStats) -> Iterator[Metric]:
    """What the gateway has beside the streams and the catalog."""
    yield _gauge("ready", "1 while new streams are served.", {(): stats.ready})
    yield _gauge("routes", "Routes in the table.", {(): stats.routes})
    yield _gauge("connections_limit", "Streams that may be open at once.", {(): stats.connections_limit})
    yield _counter("idle_timeouts", "Streams that were closed because nothing moved.", {(): stats.idle_timeouts})
    yield _counter("learned", "Streams that waited until Consul was asked about their name.", {(): stats.learned})
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
    yield _counter("statsd_datagrams_dropped", "Datagrams for statsd that were not sent.", {(): stats.statsd_dropped})
    yield from _worker_families(stats.workers)


Samples = Mapping[tuple[str, ...], float]
Counts = Mapping[tuple[Destination, tuple[str, ...]], int]


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
    return _bounded({(destination, ()): count for destination, count in connections.items()})


def _bounded(counts: Counts) -> Samples:
    """Samples by kind, destination and what else they have; the destinations past the bound are summed up."""
    samples: Counter[tuple[str, ...]] = Counter()
    known: set[Destination] = set()
    for (destination, more), count in counts.items():
        if len(known) < MAX_DESTINATIONS:
            known.add(destination)
        samples[RouteKind(destination[0]).value, destination[1] if destination in known else OTHER, *more] += count
    return samples


def _endpoints(endpoints: Mapping[tuple[str, str], int]) -> Samples:
    samples: Counter[tuple[str, ...]] = Counter()
    for (destination, state), count in endpoints.items():
        # A destination has two states.
        known = len(samples) < 2 * MAX_DESTINATIONS
        samples[destination if known else OTHER, state] += count
    return samples
