"""What the parent and its relay workers tell each other: msgpack over a stream socket, each message with its length.

Only the two ends of one gateway of one version ever speak this, over a socket that nobody else can open.
"""

from typing import Final, Generic, TypeVar

import msgspec
import trio

from meshgate.core.balance import Policy
from meshgate.core.changes import TableChange
from meshgate.core.routes import Endpoint, Route, RouteKind

from .counters import Counters, OpenStream, Refused, StreamRecord
from .limits import Limits

_LENGTH_BYTES: Final = 4
_CHUNK_BYTES: Final = 1 << 16


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message to a worker: who it is, and the descriptors that it inherited."""

    worker: int
    workers: int
    limits: Limits
    listeners: list[tuple[str, int]]
    counts: int
    drain_seconds: float
    records: bool


class RouteRecord(msgspec.Struct, array_like=True, frozen=True):
    """A route without what can be derived from it."""

    name: str
    kind: RouteKind
    destination: str
    endpoints: list[Endpoint]
    suffix: bool
    connect_timeout: float | None
    panic_threshold: int
    policy: Policy
    choices: int


class Change(msgspec.Struct, tag=True, frozen=True):
    """A change of the route table."""

    datacenter: str
    trust_domain: str
    partition: str
    routes: list[RouteRecord]
    removed: list[str]

    @classmethod
    def of(cls, change: TableChange) -> "Change":
        """The message for a change. Conflicts stay behind: they concern nobody who places streams."""
        routes = [
            RouteRecord(
                route.name,
                route.kind,
                route.destination,
                list(route.endpoints),
                route.suffix,
                route.connect_timeout,
                route.panic_threshold,
                route.policy,
                route.choices,
            )
            for route in change.routes
        ]
        return cls(change.datacenter, change.trust_domain, change.partition, routes, list(change.removed))

    def table_change(self) -> TableChange:
        """The change that was meant."""
        routes = tuple(
            Route(
                each.name,
                each.kind,
                each.destination,
                tuple(each.endpoints),
                each.suffix,
                each.connect_timeout,
                panic_threshold=each.panic_threshold,
                policy=each.policy,
                choices=each.choices,
            )
            for each in self.routes
        )
        return TableChange(self.datacenter, self.trust_domain, self.partition, routes, tuple(self.removed))


class Limit(msgspec.Struct, tag=True, frozen=True):
    """Other timeouts and bounds, for streams that come from now on."""

    limits: Limits


class Listen(msgspec.Struct, tag=True, frozen=True):
    """Accept clients from now on."""


class StopListening(msgspec.Struct, tag=True, frozen=True):
    """Accept the clients that wait, then no more."""


class Quit(msgspec.Struct, tag=True, frozen=True):
    """End now: streams that are open are reset."""


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Send a `Beat` at once, and the open streams with it if wanted."""

    question: int
    streams: bool


class Beat(msgspec.Struct, tag=True, frozen=True):
    """I am alive, and this came to pass since the last beat.

    `counters` are increments, but for `active`, which is the number itself. `dropped` counts refusals and records that
    were too many to tell. A beat that answers a question also has the bytes of the streams still open.
    """

    counters: Counters
    refused: list[Refused]
    ended: list[StreamRecord]
    dropped: int
    question: int = 0
    open_received: int = 0
    open_sent: int = 0
    streams: list[OpenStream] = []


class LogLine(msgspec.Struct, tag=True, frozen=True):
    """Something for the log; `level` is that of Python's logging."""

    level: int
    text: str


ToWorker = Setup | Change | Limit | Listen | StopListening | Quit | Ask
ToParent = Beat | LogLine


Incoming = TypeVar("Incoming")


def encode(message: ToWorker | ToParent) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES) + body


class Receiver(Generic[Incoming]):
    """The messages of the other end. Cancelling `next` loses nothing."""

    def __init__(self, stream: trio.SocketStream, decoder: "msgspec.msgpack.Decoder[Incoming]") -> None:
        self._stream = stream
        self._decoder = decoder
        self._buffer = bytearray()

    async def next(self) -> Incoming | None:
        """The next message; None when the other end has closed or died.

        Raises:
            msgspec.DecodeError: the other end is not of this version.
        """
        buffer = self._buffer
        while True:
            end = _LENGTH_BYTES + int.from_bytes(buffer[:_LENGTH_BYTES])
            if _LENGTH_BYTES <= len(buffer) >= end:
                message = bytes(buffer[_LENGTH_BYTES:end])
                del buffer[:end]
                return self._decoder.decode(message)
            try:
                data = await self._stream.receive_some(_CHUNK_BYTES)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            buffer += data


TO_WORKER: Final = msgspec.msgpack.Decoder[ToWorker](ToWorker)
TO_PARENT: Final = msgspec.msgpack.Decoder[ToParent](ToParent)
_encoder = msgspec.msgpack.Encoder()
