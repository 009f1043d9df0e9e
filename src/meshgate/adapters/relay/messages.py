"""What the parent and its relay workers tell each other: msgpack over a stream socket, each message with its length.

Only the two ends of one gateway ever speak this, over a socket that nobody else can open. They are of one version, but
for the time after an upgrade, in which workers of the version before live on: VERSION says whether they are understood.
Workers believe their parent. The parent believes no worker, because what strangers send is read there: a message to it
has at most LARGEST bytes and TOLD_AT_ONCE entries, every number and text in it has bounds, and what is out of them is
refused by the decoder.
"""

import contextlib
import os
import signal
import socket
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
import trio
from msgspec import Meta

from meshgate.core.routes import TableChange

from .counters import BY_DESTINATION, Counters, Number, OpenStream, Refused, StreamRecord, Text
from .limits import Limits

# The parent's business. Workers begin with them blocked, and ignore them.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
VERSION: Final = 2
"""Of what is said here. It grows where a message goes or changes its meaning, not with a field that has a default."""
TOLD_AT_ONCE: Final = 1000
MOST_STREAMS: Final = 100_000
"""That a worker tells of where it is asked for its open streams."""
LARGEST: Final = 1 << 24
"""Bytes of a message to the parent. The largest honest one has TOLD_AT_ONCE records of 11 kB, with the worst ALPN."""
LONGEST_LINE: Final = 8192
_LENGTH_BYTES: Final = 4
_CHUNK_BYTES: Final = 1 << 16
HAND_OVER_FORMAT: Final = 1
"""Of the streams that one worker hands over to another (`hand_over`)."""


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message to a worker: who it is, and the descriptors that it inherited.

    `row` says which of `counts` is its own.
    """

    worker: int
    row: int
    limits: Limits
    listeners: list[tuple[str, int]]
    counts: list[int]
    counts_key: bytes
    drain_seconds: float
    drain_quiet: float
    records: bool


class Change(msgspec.Struct, tag=True, frozen=True):
    """A change of the route table."""

    change: TableChange


class SetLimits(msgspec.Struct, tag=True, frozen=True):
    """Other timeouts and bounds, for streams that come from now on."""

    limits: Limits


class Listen(msgspec.Struct, tag=True, frozen=True):
    """Accept clients from now on."""


class AddListener(msgspec.Struct, tag=True, frozen=True):
    """Another address. Its descriptor travels beside this message, and counts as listening if it is to listen."""

    name: str
    listening: bool


class RemoveListener(msgspec.Struct, tag=True, frozen=True):
    """Accept the clients that wait at an address, then give it back."""

    host: str
    port: int


class WantRecords(msgspec.Struct, tag=True, frozen=True):
    """Tell of each stream that has ended, from now on, or tell no more of them."""

    wanted: bool


class StopListening(msgspec.Struct, tag=True, frozen=True):
    """Accept the clients that wait, then no more."""


class Drain(msgspec.Struct, tag=True, frozen=True):
    """End streams at quiet moments: after `quiet` seconds without a byte, less and less as `seconds` run out."""

    quiet: float
    seconds: float


class EndpointState(msgspec.Struct, tag=True, frozen=True):
    """An endpoint is ejected after so many failures, or is well again (0)."""

    address: str
    port: int
    failures: int


class AddCounts(msgspec.Struct, tag=True, frozen=True):
    """Another worker counts, too. The descriptor of its counts travels beside this message."""


class HandOver(msgspec.Struct, tag=True, frozen=True):
    """Hand so many open streams over to another worker, over the socket that travels beside this message.

    The worker accepts no more clients, and ends when it has no stream left; one that `stays` goes on as before. Only
    streams that have been open for so many `seconds` are handed over.
    """

    streams: int
    stays: bool = False
    seconds: float = 0.0


class TakeOver(msgspec.Struct, tag=True, frozen=True):
    """Take streams over from another worker, over the socket that travels beside this message."""


class Quit(msgspec.Struct, tag=True, frozen=True):
    """End now: streams that are open are reset."""


class StatsRequest(msgspec.Struct, tag=True, frozen=True):
    """Send a `StatsReport` at once, and the open streams with it if wanted."""

    question: int
    streams: bool


class LookupDone(msgspec.Struct, tag=True, frozen=True):
    """The streams of these clients that wait for a name are to be placed: the table has what Consul has of it."""

    name: str
    clients: tuple[str, ...]


class Lookup(msgspec.Struct, tag=True, frozen=True):
    """A stream waits until this name is known as Consul has it now. It has a stale route, or none: then for whom."""

    name: Annotated[str, Meta(max_length=255)]
    client: Annotated[str, Meta(max_length=64)]


# What of the counters grows with the mesh.
_GROWING: Final = (*BY_DESTINATION, "endpoints")


class StatsReport(msgspec.Struct, tag=True, frozen=True):
    """I am alive, and this came to pass since the last report.

    `counters` are increments, but for the streams that are open, which are the numbers themselves. `dropped` counts
    refusals and records that were too many to tell. `settled` are streams that may live long: their ends are always
    told, now or later. A report that answers a question also has the bytes of streams still open, which are not told
    again when these end, and how many are open by destination. Where there is `more` to come, another report goes on
    with it.
    """

    counters: Counters
    refused: Annotated[list[Refused], Meta(max_length=TOLD_AT_ONCE)]
    ended: Annotated[list[StreamRecord], Meta(max_length=TOLD_AT_ONCE)]
    dropped: Number
    question: Number = 0
    streams: Annotated[list[OpenStream], Meta(max_length=TOLD_AT_ONCE)] = []
    settled: Annotated[list[StreamRecord], Meta(max_length=TOLD_AT_ONCE)] = []
    more: bool = False

    @property
    def entries(self) -> int:
        """What it tells of, one by one."""
        return len(self.refused) + len(self.settled) + len(self.ended) + len(self.streams)

    def pieces(self) -> Iterator["StatsReport"]:
        """The same in reports that are small enough to be sent, `more` in all but the last."""
        counters = self.counters
        numbers = sum(len(getattr(counters, name)) for name in _GROWING)
        if self.entries + numbers <= TOLD_AT_ONCE:
            yield self
            return
        blank = Counters(active=counters.active, of_servers=counters.of_servers)
        nothing = StatsReport(blank, [], [], 0, self.question, more=True)
        for name in ("refused", "settled", "ended", "streams"):
            for part in _parts(getattr(self, name)):
                yield msgspec.structs.replace(nothing, **{name: part})
        for name in _GROWING:
            for part in _parts(getattr(counters, name)):
                yield msgspec.structs.replace(nothing, counters=replace(blank, **{name: part}))
        without: dict[str, Any] = {name: {} for name in _GROWING}
        rest = replace(counters, **without)
        yield msgspec.structs.replace(self, counters=rest, refused=[], settled=[], ended=[], streams=[])


class EndpointNews(msgspec.Struct, tag=True, frozen=True):
    """A connection to an endpoint of a route could not be had, and why, or one to an ejected endpoint stands."""

    sni: Text
    address: Text
    port: Number
    failed: bool
    why: Text = ""


class HandedOver(msgspec.Struct, tag=True, frozen=True):
    """The hand-over has ended: so many streams are another's, so many are left. `why` not all went, if so."""

    streams: Number
    left: Number
    why: Text


class TookOver(msgspec.Struct, tag=True, frozen=True):
    """The hand-over has ended here, too."""


class Accuse(msgspec.Struct, tag=True, frozen=True):
    """The other side of the hand-over does not go on with it, or makes no sense: end it."""

    why: Text


Level = Literal["debug", "info", "warning", "error", "critical"]


class LogLine(msgspec.Struct, tag=True, frozen=True):
    """Something for the log."""

    level: Level
    text: Annotated[str, Meta(max_length=LONGEST_LINE)]


ToWorker = (
    Setup
    | Change
    | SetLimits
    | Listen
    | AddListener
    | RemoveListener
    | WantRecords
    | StopListening
    | Drain
    | EndpointState
    | AddCounts
    | HandOver
    | TakeOver
    | Quit
    | StatsRequest
    | LookupDone
)
ToParent = StatsReport | LogLine | Lookup | EndpointNews | HandedOver | TookOver | Accuse


Incoming = TypeVar("Incoming")


class FdMessage:
    """A message with a descriptor of its own beside it, a copy of the one that is given."""

    def __init__(self, data: bytes, descriptor: int) -> None:
        self.data = data
        self._descriptor = os.dup(descriptor)

    async def send(self, stream: trio.SocketStream) -> None:
        """Send both, and let the copy go.

        Raises:
            trio.BrokenResourceError: the other end has died.
        """
        try:
            await send_with_descriptors(stream, self.data, [self._descriptor])
        finally:
            self.drop()

    def drop(self) -> None:
        """Let the copy go without sending it."""
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _parts(told: Any) -> Iterator[Any]:  # noqa: ANN401 (a list, or a dictionary)
    """Its entries, so many at once as a message may have."""
    entries = list(told.items() if isinstance(told, dict) else told)
    for start in range(0, len(entries), TOLD_AT_ONCE):
        yield type(told)(entries[start : start + TOLD_AT_ONCE])


async def send_with_descriptors(stream: trio.SocketStream, data: bytes, descriptors: Sequence[int]) -> None:
    """Send a message and copies of descriptors beside it.

    Raises:
        trio.BrokenResourceError: the other end has died, or the system has no room for so many on their way.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
    try:
        sent = await stream.socket.sendmsg([data], rights)
    except OSError as error:
        raise trio.BrokenResourceError from error
    await stream.send_all(data[sent:])


def encode(message: msgspec.Struct) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES) + body


class Receiver(Generic[Incoming]):
    """The messages of the other end. Cancelling `next` loses nothing.

    `descriptors` are those that came with the messages so far, in their order; they are the caller's to take and close.
    One that got lost, because this process has none left, is -1. `size` is that of the last message, in bytes.

    Args:
        stream: to the other end.
        decoder: of its messages.
        descriptors: how many it may send with a message; the kernel closes what is more, so that none can pile up here.
        largest: bytes that a message of it may have; 0: no limit.
        begun: what was read of it before, by somebody else.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        decoder: "msgspec.msgpack.Decoder[Incoming]",
        *,
        descriptors: int = 0,
        largest: int = 0,
        begun: bytes = b"",
    ) -> None:
        self.descriptors: deque[int] = deque()
        self._stream = stream
        self._decoder = decoder
        self._buffer = bytearray(begun)
        self._largest = largest
        self.size = 0
        # The kernel never joins what came with two messages.
        self._ancillary_bytes = socket.CMSG_SPACE(descriptors * array("i").itemsize) if descriptors else 0

    @property
    def begun(self) -> bytes:
        """What was read and is no message yet, or was not taken."""
        return bytes(self._buffer)

    async def skip(self) -> bool:
        """Read a piece of what comes and forget it; False when the other end has closed or died."""
        self._buffer.clear()
        try:
            return bool(await self._stream.socket.recv(_CHUNK_BYTES))
        except OSError:
            return False

    async def next(self) -> Incoming | None:
        """The next message; None when the other end has closed or died.

        Raises:
            ValueError: the message is too large, or none of this version (msgspec.DecodeError).
            RecursionError: the message is nested too deeply.
        """
        buffer = self._buffer
        while True:
            size = int.from_bytes(buffer[:_LENGTH_BYTES])
            if len(buffer) >= _LENGTH_BYTES:
                if 0 < self._largest < size:
                    raise ValueError(f"a message of {size} bytes, of which {self._largest} are allowed")
                if len(buffer) >= _LENGTH_BYTES + size:
                    self.size = size
                    message = bytes(memoryview(buffer)[_LENGTH_BYTES : _LENGTH_BYTES + size])
                    del buffer[: _LENGTH_BYTES + size]
                    return self._decoder.decode(message)
            try:
                data, ancillary, flags, _ = await self._stream.socket.recvmsg(_CHUNK_BYTES, self._ancillary_bytes)
            except ConnectionError:
                return None
            if not data:
                return None
            buffer += data
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.descriptors += array("i", content)
            if flags & socket.MSG_CTRUNC and self._ancillary_bytes:
                self.descriptors.append(-1)


TO_WORKER: Final = msgspec.msgpack.Decoder[ToWorker](ToWorker)
TO_PARENT: Final = msgspec.msgpack.Decoder[ToParent](ToParent)
_encoder = msgspec.msgpack.Encoder()
