"""What the relay did, as plain data: cheap to note, easy to send from a worker process to its parent.

The parent believes no worker: each number and text here has the bounds in its type by which the decoder of its messages
judges (`messages.TO_PARENT`).
"""

from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Final, Literal, Protocol

from msgspec import Meta

from meshgate.core.hello import Offer, TlsVersion
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Alert, Reason, StreamEnd
from meshgate.core.routes import RouteKind

# Upper bounds in seconds. A connection within a host takes well under a millisecond, across an ocean 0.3 s.
CONNECT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# How long streams live, in seconds: a request of its own, a kept connection, a database's pool, a day.
STREAM_BUCKETS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

# From the hello's departure to the endpoint's first byte, in seconds: its TLS stack answers after a round trip and a
# signature. Each destination has these, so they are few.
FIRST_BYTE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_CONNECT_SLOTS: Final = len(CONNECT_BUCKETS) + 1
_STREAM_SLOTS: Final = len(STREAM_BUCKETS) + 1

LONGEST_TEXT: Final = 1024
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Number = Annotated[int, Meta(ge=0, le=1 << 53)]
# Up to the year 2286, which every clock and calendar here can show. Not a number is in no range.
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
StreamId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]

Destination = tuple[RouteKind, Text]
Carried = dict[Destination, tuple[Number, Number]]
"""Bytes received from clients and sent to them, by kind and destination of the route."""
FirstBytes = Annotated[
    list[Number], Meta(min_length=len(FIRST_BYTE_BUCKETS) + 2, max_length=len(FIRST_BYTE_BUCKETS) + 2)
]
"""One slot for each of FIRST_BYTE_BUCKETS and one above them; the last one is the sum, in microseconds."""
Sender = Literal["client", "endpoint"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A stream that was not carried, and why.

    `server_name` is a stranger's text; None where the hello had none, was bad, or was not read.
    """

    client: Text
    server_name: Text | None
    reason: Reason
    detail: Text
    attempts: Number = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """A stream that has ended, as the access log tells it. By default it got no further than the listener.

    `started` is Unix time, `duration` seconds, `client` an address with its port. `sni` is a stranger's text, None
    where there was none. `route`, `kind` and `endpoint` are None for a stream that was not placed; `endpoint` is the
    last one tried, as host:port. `reason` is None where it was not refused. `flags` are Envoy's letters, ""
    where none applies. `bytes_received` came from the client, `bytes_sent` went to it. `id` is the one of `OpenStream`
    for a stream that has settled (`RelayObserver.on_settled`), 0 for all others.
    """

    started: Seconds
    duration: Seconds = 0.0
    client: Text
    listener: Text
    sni: Text | None = None
    alpn: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    route: Text | None = None
    kind: Text | None = None
    endpoint: Text | None = None
    attempts: Number = 0
    bytes_received: Number = 0
    bytes_sent: Number = 0
    reason: Text | None
    end: StreamEnd
    flags: Text
    worker: Number
    id: StreamId = 0


class Observer(Protocol):
    """Who is told what happens to streams. Nothing of it may block."""

    @property
    def wants_records(self) -> bool:
        """Whether `on_ended` is to be called for all streams."""

    def on_refused(self, refused: Refused) -> None:
        """A stream was not carried."""

    def on_ended(self, record: StreamRecord) -> None:
        """A stream has ended, a refused one too. Without `wants_records`, some of those that did not end in order."""


class RelayObserver(Observer, Protocol):
    """Who is told by a relay itself, in its process."""

    def on_settled(self, record: StreamRecord) -> None:
        """A stream has lived for some seconds; the record as it is now. Only called with `wants_records`."""


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream that is open now. `state` is `hello`, `connecting`, `relaying` or `refused`; `age` is in seconds."""

    id: StreamId
    client: Text
    sni: Text | None
    route: Text | None
    endpoint: Text | None
    state: Text
    age: Seconds
    bytes_received: Number
    bytes_sent: Number
    worker: Number


@dataclass(slots=True)
class EndpointCounts:
    """What came of the streams of an endpoint.

    `answered` got a byte of it, after `waited` seconds together; `unanswered` ended without one; `failures` are
    connections that could not be had.
    """

    answered: Number = 0
    unanswered: Number = 0
    failures: Number = 0
    waited: Seconds = 0.0


@dataclass(slots=True)
class Counters:
    """Totals since the start, and the streams open now.

    `connections` counts routed streams by kind and destination of their route. `bytes_received` came from clients,
    `bytes_sent` went to them. `on_demand` counts the streams that waited until Consul was asked about their name.
    `connect_counts` has one slot for each of CONNECT_BUCKETS and one above them. `stream_counts` has those of
    STREAM_BUCKETS, for routed streams that have ended; `ends` has how they ended, and `carried` their bytes.
    `failed` has those that had a route and were refused; `connect_failures` the attempts that failed, also where
    another endpoint took the stream. `hellos` has what the clients of placed streams offered. `first_bytes` has those
    that got a byte from their endpoint, `unanswered` those that ended without one, `alerts` what either side sent in
    the clear. `endpoints` is what was not told yet, by endpoint. `of_servers` are those of the open streams that carry
    Consul's own servers, `open` those that are relayed, by destination, where somebody has asked for that.
    """

    accepted: Number = 0
    taken_over: Number = 0
    handed_over: Number = 0
    active: Number = 0
    of_servers: Number = 0
    bytes_received: Number = 0
    bytes_sent: Number = 0
    on_demand: Number = 0
    internal_errors: Number = 0
    connect_sum: Seconds = 0.0
    connect_counts: Annotated[list[Number], Meta(min_length=_CONNECT_SLOTS, max_length=_CONNECT_SLOTS)] = field(
        default_factory=lambda: [0] * _CONNECT_SLOTS
    )
    connections: dict[Destination, Number] = field(default_factory=dict)
    refused: dict[Reason, Number] = field(default_factory=dict)
    stream_sum: Seconds = 0.0
    stream_counts: Annotated[list[Number], Meta(min_length=_STREAM_SLOTS, max_length=_STREAM_SLOTS)] = field(
        default_factory=lambda: [0] * _STREAM_SLOTS
    )
    ends: dict[StreamEnd, Number] = field(default_factory=dict)
    carried: Carried = field(default_factory=dict)
    failed: dict[tuple[RouteKind, Text, Reason], Number] = field(default_factory=dict)
    connect_failures: dict[Destination, Number] = field(default_factory=dict)
    hellos: dict[tuple[RouteKind, Text, TlsVersion, bool], Number] = field(default_factory=dict)
    first_bytes: dict[Destination, FirstBytes] = field(default_factory=dict)
    unanswered: dict[Destination, Number] = field(default_factory=dict)
    alerts: dict[tuple[RouteKind, Text, Sender, Alert], Number] = field(default_factory=dict)
    endpoints: dict[tuple[Text, Number], EndpointCounts] = field(default_factory=dict)
    open: dict[Destination, Number] = field(default_factory=dict)

    def copy(self) -> "Counters":
        """The numbers of this moment."""
        copied = Counters(**{each.name: copy(getattr(self, each.name)) for each in fields(self)})
        copied.first_bytes = {key: counts[:] for key, counts in self.first_bytes.items()}
        return copied

    def since(self, earlier: "Counters") -> "Counters":
        """What came to pass since an earlier copy; gauges are what they are now."""
        return replace(self, **{each: _difference(getattr(self, each), getattr(earlier, each)) for each in _TOTALS})

    def check(self, destinations: Container[Destination]) -> None:
        """Let nothing invented into totals that are kept for ever.

        Raises:
            ValueError: there are numbers of something that is none of `destinations`.
        """
        for name in BY_DESTINATION:
            if not all(each[:2] in destinations for each in getattr(self, name)):
                raise ValueError("numbers of a destination that no route has")

    def add(self, more: "Counters") -> None:
        """Add increments. Gauges stay: they are nobody's sum but the caller's business."""
        for each in _TOTALS:
            setattr(self, each, _sum(getattr(self, each), getattr(more, each)))

    def count_carried(self, destination: Destination, received: int, sent: int) -> None:
        """Note bytes of routed streams; fewer than none where they are another worker's to count."""
        before = self.carried.get(destination, (0, 0))
        self.carried[destination] = before[0] + received, before[1] + sent

    def tell_no_less(self, told: "Counters") -> None:
        """Have no fewer bytes than were told before, when streams that are not in these were still open."""
        self.bytes_received = max(self.bytes_received, told.bytes_received)
        self.bytes_sent = max(self.bytes_sent, told.bytes_sent)
        changed = dict(told.carried)
        for key, now in self.carried.items():
            before = told.carried.get(key, (0, 0))
            if now != before:
                changed[key] = max(now[0], before[0]), max(now[1], before[1])
        self.carried = changed

    def count_connect(self, seconds: float) -> None:
        """Note how long a connection to an endpoint took to stand."""
        self.connect_sum += seconds
        self.connect_counts[bisect_left(CONNECT_BUCKETS, seconds)] += 1

    def count_refused(self, reason: Reason) -> None:
        """Note a stream that was not carried."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_failed(self, destination: Destination, reason: Reason) -> None:
        """Note a stream that had a route and was refused all the same."""
        key = (*destination, reason)
        self.failed[key] = self.failed.get(key, 0) + 1

    def count_connect_failure(self, destination: Destination) -> None:
        """Note an endpoint that could not be reached."""
        self.connect_failures[destination] = self.connect_failures.get(destination, 0) + 1

    def count_ended(self, destination: Destination, seconds: float, carried: tuple[int, int], end: StreamEnd) -> None:
        """Note the end of a routed stream: how long it lived in seconds, and the bytes each way."""
        self.stream_sum += seconds
        self.stream_counts[bisect_left(STREAM_BUCKETS, seconds)] += 1
        self.ends[end] = self.ends.get(end, 0) + 1
        before = self.carried.get(destination, (0, 0))
        self.carried[destination] = (before[0] + carried[0], before[1] + carried[1])

    def count_hello(self, destination: Destination, offer: Offer) -> None:
        """Note what the client of a placed stream offers."""
        key = (*destination, *offer)
        self.hellos[key] = self.hellos.get(key, 0) + 1

    def count_first_byte(self, destination: Destination, address: Address, seconds: float) -> None:
        """Note that an endpoint has answered, so long after the hello was sent."""
        counts = self.first_bytes.get(destination)
        if counts is None:
            counts = self.first_bytes[destination] = [0] * (len(FIRST_BYTE_BUCKETS) + 2)
        counts[bisect_left(FIRST_BYTE_BUCKETS, seconds)] += 1
        counts[-1] += int(seconds * 1e6)
        endpoint = self.endpoint(address)
        endpoint.answered += 1
        endpoint.waited += seconds

    def count_unanswered(self, destination: Destination, address: Address) -> None:
        """Note a stream that ended before its endpoint had sent a byte."""
        self.unanswered[destination] = self.unanswered.get(destination, 0) + 1
        self.endpoint(address).unanswered += 1

    def count_alert(self, destination: Destination, sender: Sender, alert: Alert) -> None:
        """Note an alert in the clear."""
        key = (*destination, sender, alert)
        self.alerts[key] = self.alerts.get(key, 0) + 1

    def endpoint(self, address: Address) -> EndpointCounts:
        """What was not told yet of an endpoint."""
        found = self.endpoints.get(address)
        if found is None:
            host, port = address
            found = self.endpoints[host[:LONGEST_TEXT], port] = EndpointCounts()
        return found

    def count_routed(self, destination: Destination) -> None:
        """Note a stream whose connection to an endpoint stands."""
        self.connections[destination] = self.connections.get(destination, 0) + 1


# What grows with the mesh. The keys begin with a destination.
BY_DESTINATION: Final = (
    "connections", "carried", "failed", "connect_failures", "hellos", "first_bytes", "unanswered", "alerts", "open",
)  # fmt: skip


@dataclass(slots=True)
class EndpointRecord:
    """What became of the streams of an endpoint, as long as it is remembered.

    `streams` had their first byte from it, `unanswered` ended without one, `failures` are connections that could not be
    had. `first_byte` is the time to the first byte in seconds, of about its last ten streams; None before there was
    one. `last_success` is when it last answered a stream, `last_failure` when it last could not be reached, in Unix
    time, and `last_error` why.
    """

    streams: int = 0
    unanswered: int = 0
    failures: int = 0
    first_byte: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_error: str = ""


class EndpointHistory:
    """Keeps the records of the MOST endpoints that were last heard of. Any thread may ask."""

    MOST: Final = 20_000
    _LATELY: Final = 10

    def __init__(self, records: Iterable[tuple[Address, EndpointRecord]] = ()) -> None:
        self._records = dict(records)

    def left(self) -> list[tuple[Address, EndpointRecord]]:
        """All records, from which another one can begin."""
        return list(self._records.items())

    def of(self, address: Address) -> EndpointRecord | None:
        return self._records.get(address)

    def add(self, told: Mapping[Address, EndpointCounts], now: float) -> None:
        """Add what a worker tells, at a Unix time."""
        for address, counts in told.items():
            record = self._record(address)
            record.streams += counts.answered
            record.unanswered += counts.unanswered
            record.failures += counts.failures
            if counts.answered:
                record.last_success = now
                mean = counts.waited / counts.answered
                before = mean if record.first_byte is None else record.first_byte
                record.first_byte = before + (mean - before) * min(1.0, counts.answered / self._LATELY)

    def note_failure(self, address: Address, why: str, now: float) -> None:
        """Note why it could not be reached, at a Unix time; it is counted by `add`."""
        record = self._record(address)
        record.last_failure, record.last_error = now, why

    def _record(self, address: Address) -> EndpointRecord:
        record = self._records.pop(address, None) or EndpointRecord()
        if len(self._records) >= self.MOST:
            del self._records[next(iter(self._records))]
        self._records[address] = record
        return record


_GAUGES: Final = ("active", "of_servers", "open", "endpoints")
_TOTALS: Final = tuple(each.name for each in fields(Counters) if each.name not in _GAUGES)


def _sum(one: Any, other: Any) -> Any:  # noqa: ANN401  (generic over the fields)
    """The sum of two numbers, lists, tuples or dictionaries of them, a key that is missing being nothing."""
    if isinstance(one, dict):
        both = dict(one)
        for key, value in other.items():
            both[key] = _sum(both[key], value) if key in both else value
        return both
    if isinstance(one, list | tuple):
        return type(one)(map(_sum, one, other))
    return one + other


def _difference(now: Any, then: Any) -> Any:  # noqa: ANN401
    """What makes `now` of `then`; keys with the same value are left out."""
    if isinstance(now, dict):
        changed = {key: value for key, value in now.items() if value != then.get(key)}
        return {key: _difference(value, then[key]) if key in then else value for key, value in changed.items()}
    if isinstance(now, list | tuple):
        return type(now)(map(_difference, now, then))
    return now - then
