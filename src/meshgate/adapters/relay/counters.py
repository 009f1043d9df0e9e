"""What the relay did, as plain data: cheap to note, easy to send from a worker process to its parent."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind

# Upper bounds in seconds. A connection within a host takes well under a millisecond, across an ocean 0.3 s.
CONNECT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Refused:
    """A stream that was not carried, and why.

    `server_name` is a stranger's text; None where the hello had none, was bad, or was not read.
    """

    client: str
    server_name: str | None
    reason: Reason
    detail: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A stream that has ended, as the access log tells it.

    `started` is Unix time, `duration` seconds, `client` an address with its port. `sni` is a stranger's text, None
    where there was none. `route`, `kind` and `endpoint` are None for a stream that was not placed; `endpoint` is the
    last one tried, as host:port. `reason` is None where the stream ended in order. `flags` are Envoy's letters, ""
    where none applies. `bytes_received` came from the client, `bytes_sent` went to it.
    """

    started: float
    duration: float
    client: str
    listener: str
    sni: str | None
    alpn: tuple[str, ...]
    route: str | None
    kind: str | None
    endpoint: str | None
    attempts: int
    bytes_received: int
    bytes_sent: int
    reason: str | None
    flags: str
    worker: int


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream that is open now. `state` is `hello`, `connecting`, `relaying` or `refused`; `age` is in seconds."""

    id: int
    client: str
    sni: str | None
    route: str | None
    endpoint: str | None
    state: str
    age: float
    bytes_received: int
    bytes_sent: int
    worker: int


@dataclass(slots=True)
class Counters:
    """Totals since the start, and the streams open now.

    `connections` counts routed streams by kind and destination of their route. `bytes_received` came from clients,
    `bytes_sent` went to them. `connect_counts` has one slot for each of CONNECT_BUCKETS and one above them.
    """

    accepted: int = 0
    active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    idle_timeouts: int = 0
    internal_errors: int = 0
    connect_sum: float = 0.0
    connect_counts: list[int] = field(default_factory=lambda: [0] * (len(CONNECT_BUCKETS) + 1))
    connections: dict[tuple[RouteKind, str], int] = field(default_factory=dict)
    refused: dict[Reason, int] = field(default_factory=dict)

    def count_connect(self, seconds: float) -> None:
        """Note how long a connection to an endpoint took to stand."""
        self.connect_sum += seconds
        self.connect_counts[bisect_left(CONNECT_BUCKETS, seconds)] += 1

    def count_refused(self, reason: Reason) -> None:
        """Note a stream that was not carried."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_routed(self, kind: RouteKind, destination: str) -> None:
        """Note a stream whose connection to an endpoint stands."""
        key = (kind, destination)
        self.connections[key] = self.connections.get(key, 0) + 1
