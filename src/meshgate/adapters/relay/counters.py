"""What the relay did, as plain data: cheap to note, easy to send from a worker process to its parent."""

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

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

    def copy(self) -> "Counters":
        """The numbers of this moment."""
        return replace(
            self,
            connect_counts=list(self.connect_counts),
            connections=dict(self.connections),
            refused=dict(self.refused),
        )

    def since(self, earlier: "Counters") -> "Counters":
        """What came to pass since an earlier copy; `active` is what it is now."""
        return Counters(
            accepted=self.accepted - earlier.accepted,
            active=self.active,
            bytes_received=self.bytes_received - earlier.bytes_received,
            bytes_sent=self.bytes_sent - earlier.bytes_sent,
            idle_timeouts=self.idle_timeouts - earlier.idle_timeouts,
            internal_errors=self.internal_errors - earlier.internal_errors,
            connect_sum=self.connect_sum - earlier.connect_sum,
            connect_counts=[now - then for now, then in zip(self.connect_counts, earlier.connect_counts, strict=True)],
            connections=_since(self.connections, earlier.connections),
            refused=_since(self.refused, earlier.refused),
        )

    def add(self, more: "Counters") -> None:
        """Add increments. `active` stays: it is nobody's sum but the caller's business."""
        self.accepted += more.accepted
        self.bytes_received += more.bytes_received
        self.bytes_sent += more.bytes_sent
        self.idle_timeouts += more.idle_timeouts
        self.internal_errors += more.internal_errors
        self.connect_sum += more.connect_sum
        for slot, count in enumerate(more.connect_counts):
            self.connect_counts[slot] += count
        for key, count in more.connections.items():
            self.connections[key] = self.connections.get(key, 0) + count
        for reason, count in more.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count

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


Key = TypeVar("Key", bound=Hashable)


def _since(now: Mapping[Key, int], then: Mapping[Key, int]) -> dict[Key, int]:
    return {key: count - then.get(key, 0) for key, count in now.items() if count != then.get(key, 0)}
