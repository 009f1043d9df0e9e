"""What the relay did, as plain data: cheap to note, easy to send from a worker process to its parent."""

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind

# Upper bounds in seconds. A connection within a host takes well under a millisecond, across an ocean 0.3 s.
CONNECT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# How long streams live, in seconds: a request of its own, a kept connection, a database's pool, a day.
STREAM_BUCKETS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

Destination = tuple[RouteKind, str]
Carried = dict[Destination, tuple[int, int]]
"""Bytes received from clients and sent to them, by kind and destination of the route."""


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
    `bytes_sent` went to them. `learned` counts the streams that waited until Consul was asked about their name.
    `connect_counts` has one slot for each of CONNECT_BUCKETS and one above them. `stream_counts` has those of
    STREAM_BUCKETS, for routed streams that have ended; `ends` has how they ended, by Envoy's letters, "" in order,
    and `carried` their bytes. `failed` has those that had a route and were refused.
    """

    accepted: int = 0
    active: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    idle_timeouts: int = 0
    learned: int = 0
    internal_errors: int = 0
    connect_sum: float = 0.0
    connect_counts: list[int] = field(default_factory=lambda: [0] * (len(CONNECT_BUCKETS) + 1))
    connections: dict[tuple[RouteKind, str], int] = field(default_factory=dict)
    refused: dict[Reason, int] = field(default_factory=dict)
    stream_sum: float = 0.0
    stream_counts: list[int] = field(default_factory=lambda: [0] * (len(STREAM_BUCKETS) + 1))
    ends: dict[str, int] = field(default_factory=dict)
    carried: Carried = field(default_factory=dict)
    failed: dict[tuple[RouteKind, str, Reason], int] = field(default_factory=dict)

    def copy(self) -> "Counters":
        """The numbers of this moment."""
        return replace(
            self,
            connect_counts=list(self.connect_counts),
            connections=dict(self.connections),
            refused=dict(self.refused),
            stream_counts=list(self.stream_counts),
            ends=dict(self.ends),
            carried=dict(self.carried),
            failed=dict(self.failed),
        )

    def since(self, earlier: "Counters") -> "Counters":
        """What came to pass since an earlier copy; `active` is what it is now."""
        return Counters(
            accepted=self.accepted - earlier.accepted,
            active=self.active,
            bytes_received=self.bytes_received - earlier.bytes_received,
            bytes_sent=self.bytes_sent - earlier.bytes_sent,
            idle_timeouts=self.idle_timeouts - earlier.idle_timeouts,
            learned=self.learned - earlier.learned,
            internal_errors=self.internal_errors - earlier.internal_errors,
            connect_sum=self.connect_sum - earlier.connect_sum,
            connect_counts=[now - then for now, then in zip(self.connect_counts, earlier.connect_counts, strict=True)],
            connections=_since(self.connections, earlier.connections),
            refused=_since(self.refused, earlier.refused),
            stream_sum=self.stream_sum - earlier.stream_sum,
            stream_counts=[now - then for now, then in zip(self.stream_counts, earlier.stream_counts, strict=True)],
            ends=_since(self.ends, earlier.ends),
            carried=_carried_since(self.carried, earlier.carried),
            failed=_since(self.failed, earlier.failed),
        )

    def add(self, more: "Counters") -> None:
        """Add increments. `active` stays: it is nobody's sum but the caller's business."""
        self.accepted += more.accepted
        self.bytes_received += more.bytes_received
        self.bytes_sent += more.bytes_sent
        self.idle_timeouts += more.idle_timeouts
        self.learned += more.learned
        self.internal_errors += more.internal_errors
        self.connect_sum += more.connect_sum
        for slot, count in enumerate(more.connect_counts):
            self.connect_counts[slot] += count
        _add(self.connections, more.connections)
        _add(self.refused, more.refused)
        self.stream_sum += more.stream_sum
        for slot, count in enumerate(more.stream_counts):
            self.stream_counts[slot] += count
        _add(self.ends, more.ends)
        _add(self.failed, more.failed)
        self.add_carried(more.carried)

    def add_carried(self, more: Mapping[Destination, tuple[int, int]]) -> None:
        """Add bytes to those of their destinations."""
        for key, (received, sent) in more.items():
            before = self.carried.get(key, (0, 0))
            self.carried[key] = (before[0] + received, before[1] + sent)

    def count_connect(self, seconds: float) -> None:
        """Note how long a connection to an endpoint took to stand."""
        self.connect_sum += seconds
        self.connect_counts[bisect_left(CONNECT_BUCKETS, seconds)] += 1

    def count_refused(self, reason: Reason) -> None:
        """Note a stream that was not carried."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_failed(self, kind: RouteKind, destination: str, reason: Reason) -> None:
        """Note a stream that had a route and was refused all the same."""
        key = (kind, destination, reason)
        self.failed[key] = self.failed.get(key, 0) + 1

    def count_ended(self, destination: Destination, seconds: float, carried: tuple[int, int], flag: str) -> None:
        """Note the end of a routed stream: how long it lived, the bytes each way, and Envoy's letters for its end."""
        self.stream_sum += seconds
        self.stream_counts[bisect_left(STREAM_BUCKETS, seconds)] += 1
        self.ends[flag] = self.ends.get(flag, 0) + 1
        self.add_carried({destination: carried})

    def count_routed(self, kind: RouteKind, destination: str) -> None:
        """Note a stream whose connection to an endpoint stands."""
        key = (kind, destination)
        self.connections[key] = self.connections.get(key, 0) + 1


Key = TypeVar("Key", bound=Hashable)


def _add(totals: dict[Key, int], more: Mapping[Key, int]) -> None:
    for key, count in more.items():
        totals[key] = totals.get(key, 0) + count


def _carried_since(now: Carried, then: Carried) -> Carried:
    none = (0, 0)
    return {
        key: (both[0] - before[0], both[1] - before[1])
        for key, both in now.items()
        if both != (before := then.get(key, none))
    }


def _since(now: Mapping[Key, int], then: Mapping[Key, int]) -> dict[Key, int]:
    return {key: count - then.get(key, 0) for key, count in now.items() if count != then.get(key, 0)}
