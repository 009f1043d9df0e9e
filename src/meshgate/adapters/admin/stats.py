"""The numbers of the gateway at one moment, as the metrics page and statsd show them.

The gateway counts as it likes and hands over a `GatewayStats`. Nothing in it is a stranger's text: destinations are
Consul's names for routes, reasons and kinds are enumerations.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind, RouteTable


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


class StreamEnd(StrEnum):
    """How a stream ended that was routed."""

    IN_ORDER = "in_order"
    CLIENT_RESET = "client_reset"
    ENDPOINT_RESET = "endpoint_reset"
    IDLE_TIMEOUT = "idle_timeout"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Worker:
    """A relay process: its process id, 0 while it is missing, and the streams that are open in it."""

    pid: int
    active: int


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
        stream_seconds: how long routed streams lived that have ended.
        stream_ends: how many of them ended how.
        destination_bytes: bytes received and sent, by destination.
        destination_refused: streams that had a route and were not carried, by destination and reason.
        accepted: connections of clients that were taken.
        workers: the relay processes, by their number.
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
        learned: streams that waited until Consul was asked about their name.
        internal_errors: streams that were ended by a fault of the gateway's own.
        watches: watches of Consul by state, `working` or `failing`.
        token_problem: whether Consul refuses the token somewhere, or its file cannot be used.
        log_lines_dropped: lines that were not written, by log: `process` or `access`.
        statsd_dropped: datagrams for statsd that were not sent.
    """

    version: str
    connections: Mapping[Destination, int] = field(default_factory=dict)
    connections_active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: Mapping[Reason, int] = field(default_factory=dict)
    connect_seconds: Histogram = Histogram((), (0,), 0.0)
    stream_seconds: Histogram = Histogram((), (0,), 0.0)
    stream_ends: Mapping[StreamEnd, int] = field(default_factory=dict)
    destination_bytes: Mapping[Destination, tuple[int, int]] = field(default_factory=dict)
    destination_refused: Mapping[tuple[Destination, Reason], int] = field(default_factory=dict)
    accepted: int = 0
    workers: tuple[Worker, ...] = ()
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
    learned: int = 0
    internal_errors: int = 0
    watches: Mapping[str, int] = field(default_factory=dict)
    token_problem: bool = False
    log_lines_dropped: Mapping[str, int] = field(default_factory=dict)
    statsd_dropped: int = 0


def endpoint_counts(table: RouteTable) -> dict[tuple[str, str], int]:
    """How many endpoints each destination has in the states `healthy` and `unhealthy`; zeros included."""
    counts: Counter[tuple[str, str]] = Counter()
    for route in table:
        healthy = sum(endpoint.healthy for endpoint in route.endpoints)
        counts[route.destination, "healthy"] += healthy
        counts[route.destination, "unhealthy"] += len(route.endpoints) - healthy
    return dict(counts)
