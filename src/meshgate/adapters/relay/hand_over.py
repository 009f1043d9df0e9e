"""Open streams go from one worker process to another, which may be of another version: the format, and both sides.

The old worker *hands over*, the new one *takes over*, over a socket pair of their own that the parent gave them. The
streams go in batches, each in two phases:

    old   freezes the streams of a batch: not a byte of them is moved any more. Sends `Batch`, keeps its copies.
    new   rebuilds all of them, moves no byte, answers `Prepared`; or closes its copies and answers `Declined`.
    old   lets go of its copies without a shutdown and counts no end, says `Yours`. Or it thaws them and keeps them.
    new   starts them.

What always holds: exactly one of the two moves a stream's bytes. The old one thaws a batch only when the new one has
declined it or its end of the socket pair is closed, and the new one closes that alive only when it has let go of what
it had prepared. The new one starts a batch when it is told to, or when the old one's end is closed; and the old one
does not close that while it lives and has a batch under way. Whoever waits too long, or hears nonsense, has the parent
end the other one, and then goes by its closed end.

Neither believes the other more than it must: what is out of the bounds of the types is nonsense, descriptors have to be
TCP connections and pipes with as many bytes inside as was said. `docs/hand-over.md` has the format for readers.
"""

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
import trio
from msgspec import Meta

from meshgate.adapters.error_words import words_of
from meshgate.core.routes import RouteKind

from .counters import Number, Seconds, StreamId, Text
from .messages import HAND_OVER_FORMAT, Receiver, encode, send_with_descriptors
from .reactor import Accountable, run_guarded

PATIENCE: Final = 5.0  # Twice: a machine that stood still for so long has used up the first.
BATCH_STREAMS: Final = 64
BATCH_DESCRIPTORS: Final = 240  # No more streams are added then.
BATCH_BYTES: Final = 1 << 20
_MOST_DESCRIPTORS: Final = BATCH_DESCRIPTORS + 6  # The kernel takes 253 beside one message.
_DECLINED_IN_A_ROW: Final = 3  # Then the others would most likely be declined as well.
# The system has no room for so many descriptors on their way, or none at all.
_NO_ROOM: Final = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_LARGEST: Final = 1 << 24
_LARGEST_ANSWER: Final = 1 << 13
_LARGEST_HELLO: Final = 1 << 21
_LARGEST_HELD: Final = 1 << 21  # What a pipe held, at most.

_Message = TypeVar("_Message")
Address = tuple[Text, Annotated[int, Meta(ge=0, le=65535)]]


class HandedLeg(msgspec.Struct, frozen=True, omit_defaults=True):
    """One socket of a stream. `held` is what waits to be written to it, or is in a pipe with `piped` bytes.

    The attributes are those of `pump.Leg`; `touched` is a time of the system's monotonic clock, which all processes of
    a machine share.
    """

    received: Number
    touched: Seconds
    eof: bool = False
    until_eagain: bool = False
    flows: bool = False
    large_reads: Number = 0
    held: Annotated[bytes, Meta(max_length=_LARGEST_HELD)] | None = None
    piped: Annotated[int, Meta(ge=0, le=1 << 30)] = 0


class HandedRoute(msgspec.Struct, frozen=True):
    """Where a relayed stream goes. It stays so, whatever route its name has by now."""

    sni: Text
    kind: RouteKind
    destination: Text
    endpoint: Address


class HandedStream(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream. Without `route` it has no endpoint yet, and its setup begins again with what came of its `hello`.

    Its descriptors, in this order: client, endpoint; of the pipe to the client, and of the one to the endpoint, the
    end to read and the end to write. What there is not is left out.

    Attributes:
        id: the one of `counters.OpenStream`, which it keeps.
        client: address and port.
        listener: the name of the listener that it came by.
        started: when, on the system's monotonic clock.
        from_client, from_endpoint: its two legs.
        per_client: it counts against the limit of its client.
        charged: the SNI of the route against whose limits it counts.
        attempts: connections to endpoints that were tried, without one that was under way.
        looked_up: it was waiting for the lookup of its name, and has been counted as such.
        departed: when its hello was sent to the endpoint, on that clock.
        opening: bytes that the client had sent when its endpoint was settled.
        asked_at: bytes that the endpoint had sent when the client spoke last, as far as a drain has looked.
        settled: the kernel looks whether its endpoint is still there.
    """

    id: StreamId
    client: Address
    listener: Text
    started: Seconds
    from_client: HandedLeg
    per_client: bool = False
    charged: Text = ""
    attempts: Number = 0
    hello: Annotated[bytes, Meta(max_length=_LARGEST_HELLO)] = b""
    looked_up: bool = False
    route: HandedRoute | None = None
    from_endpoint: HandedLeg | None = None
    server_name: Text | None = None
    alpn: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    departed: Seconds = 0.0
    opening: Number = 0
    asked_at: Number = 0
    settled: bool = False

    @property
    def descriptors(self) -> int:
        """How many come with it."""
        if self.from_endpoint is None:
            return 1
        return 2 + 2 * bool(self.from_client.piped) + 2 * bool(self.from_endpoint.piped)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        legs = (self.from_client, self.from_endpoint)
        return len(self.hello) + sum(len(leg.held) for leg in legs if leg is not None and leg.held) + 512


class Batch(msgspec.Struct, tag=True, frozen=True):
    """These streams are frozen. Prepare all of them, or decline."""

    format: Annotated[int, Meta(ge=1, le=HAND_OVER_FORMAT)]
    number: Number
    streams: Annotated[list[HandedStream], Meta(min_length=1, max_length=_MOST_DESCRIPTORS)]


class Yours(msgspec.Struct, tag=True, frozen=True):
    """The old worker has let go of a batch: start it."""

    number: Number


class Over(msgspec.Struct, tag=True, frozen=True):
    """No more batch comes."""


class Prepared(msgspec.Struct, tag=True, frozen=True):
    """All streams of a batch are rebuilt, and none is started."""

    number: Number


class Declined(msgspec.Struct, tag=True, frozen=True):
    """A batch stays with the old worker; nothing of it is left here."""

    number: Number
    why: Text


TO_NEW: Final = msgspec.msgpack.Decoder[Batch | Yours | Over](Batch | Yours | Over)
TO_OLD: Final = msgspec.msgpack.Decoder[Prepared | Declined](Prepared | Declined)


class Handed(Accountable, Protocol):
    """A stream, as the old worker hands it over."""

    def freeze(self) -> tuple[HandedStream, list[int]] | None:
        """Stop it: no byte of it is moved from now on. None: it is as good as over, and is not handed over."""

    def thaw(self) -> None:
        """Go on with it, as if nothing had been."""

    def let_go(self) -> None:
        """Forget it: it lives on elsewhere."""


class Taken(Accountable, Protocol):
    """A stream, as the new worker takes it over: rebuilt, and not started."""

    def take_over(self) -> None:
        """Count it in and start it."""

    def drop(self) -> None:
        """Forget it: it lives on elsewhere."""


class HandsOver:
    """The old worker's side. `handed` counts streams, `why` says what went wrong, "" if nothing did.

    Args:
        channel: to the new worker; it is closed in the end.
        accuse: has the parent end the new worker; called with what it has done.
    """

    def __init__(self, channel: trio.SocketStream, accuse: Callable[[str], Awaitable[None]]) -> None:
        self.handed = 0
        self.why = ""
        self._channel = channel
        self._receiver = Receiver(channel, TO_OLD, largest=_LARGEST_ANSWER)
        self._accuse = accuse
        self._number = 0

    async def run(self, streams: Iterable[Handed], most: int) -> None:
        """Hand over so many of these streams. When cancelled what is frozen stays frozen."""
        todo, declined = iter(streams), 0
        alive = True
        while alive and self.handed < most and declined < _DECLINED_IN_A_ROW:
            batch, records, descriptors = _frozen(todo, most - self.handed)
            if not batch:
                break
            answer = await self._offer(records, descriptors)
            if isinstance(answer, Prepared):
                for stream in batch:
                    run_guarded(stream, stream.let_go)
                self.handed += len(batch)
                declined = 0
                alive = await self._say(Yours(self._number))
                if not alive:
                    self.why = "it ended when it had prepared streams"
                continue
            for stream in batch:
                run_guarded(stream, stream.thaw)
            declined += 1
            self.why = self.why or (answer.why if answer is not None else "it ended")
            alive = answer is not None
        if alive:
            await self._say(Over())
        self._channel.socket.close()

    async def _offer(self, records: list[HandedStream], descriptors: list[int]) -> Prepared | Declined | None:
        """Send a batch and wait for the answer; None: the new worker has ended, or let go of all."""
        self._number += 1
        try:
            data = encode(Batch(HAND_OVER_FORMAT, self._number, records))
        except (ValueError, TypeError, MemoryError) as error:
            return Declined(self._number, f"cannot be written: {words_of(error)}"[:200])
        try:
            with trio.move_on_after(2 * PATIENCE) as sending:
                await send_with_descriptors(self._channel, data, descriptors)
            if sending.cancelled_caught:
                raise ValueError("it does not read")  # noqa: TRY301
            answer = await _patiently(self._receiver.next, self._accuse)
            if answer is not None and answer.number != self._number:
                raise ValueError("an answer about another batch")  # noqa: TRY301
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
                return Declined(self._number, words_of(cause))  # Nothing of it was sent.
            return None
        except Exception as error:  # noqa: BLE001 (nonsense, or want of memory: nobody knows what the new one has)
            self.why = f"it made no sense: {words_of(error)}"[:200]
            await self._accuse(self.why)
            await _until_closed(self._channel)
            return None
        return answer

    async def _say(self, message: Yours | Over) -> bool:
        try:
            await self._channel.send_all(encode(message))
        except trio.BrokenResourceError:
            return False
        return True


class TakesOver:
    """The new worker's side. `why` says what went wrong, "" if nothing did.

    Args:
        channel: to the old worker; it is closed in the end.
        rebuild: makes a stream of its record and descriptors, which are then its own to close. Where it raises they are
            the caller's.
        accuse: has the parent end the old worker; called with what it has done.
    """

    def __init__(
        self,
        channel: trio.SocketStream,
        rebuild: Callable[[HandedStream, Sequence[int]], Taken],
        accuse: Callable[[str], Awaitable[None]],
    ) -> None:
        self.why = ""
        self._channel = channel
        self._receiver = Receiver(channel, TO_NEW, descriptors=_MOST_DESCRIPTORS, largest=_LARGEST)
        self._rebuild = rebuild
        self._accuse = accuse
        self._prepared: list[Taken] = []
        self._number = 0

    async def run(self) -> None:
        """Take over what comes, until no more does or the old worker has ended."""
        try:
            while await self._step():
                pass
        except Exception as error:  # noqa: BLE001 (nonsense, or want of memory)
            # It has let go of nothing that it was not told to be prepared here.
            self.why = f"the old worker made no sense: {words_of(error)}"[:200]
        finally:
            self._drop()
            _close(self._receiver.descriptors)
            self._channel.socket.close()

    async def _step(self) -> bool:
        if self._prepared:
            message = await _patiently(self._receiver.next, self._accuse)
        else:
            message = await self._receiver.next()
        if isinstance(message, Batch):
            if self._prepared:
                raise ValueError("a batch before the last one was given")
            self._number = message.number
            # Where it cannot be sent the old worker has ended, and is heard to have.
            with contextlib.suppress(trio.BrokenResourceError):
                await self._channel.send_all(encode(self._prepare(message)))
            return True
        if isinstance(message, Yours) and (message.number != self._number or not self._prepared):
            raise ValueError("something is given that was not prepared")
        if message is None:
            self.why = "the old worker ended"
        if isinstance(message, Over) and self._prepared:
            raise ValueError("the end before a batch was given")
        prepared, self._prepared = self._prepared, []
        for stream in prepared:
            run_guarded(stream, stream.take_over)
        return isinstance(message, Yours)

    def _prepare(self, batch: Batch) -> Prepared | Declined:
        descriptors = list(self._receiver.descriptors)
        self._receiver.descriptors.clear()
        try:
            if -1 in descriptors or len(descriptors) != sum(record.descriptors for record in batch.streams):
                raise OSError("descriptors are missing: there may be none left")  # noqa: TRY301
            for record in batch.streams:
                self._prepared.append(self._rebuild(record, descriptors[: record.descriptors]))
                del descriptors[: record.descriptors]
        except Exception as error:  # noqa: BLE001 (whatever it is, the old worker has the streams still)
            _close(descriptors)
            self._drop()
            return Declined(batch.number, words_of(error)[:200])
        return Prepared(batch.number)

    def _drop(self) -> None:
        while self._prepared:
            stream = self._prepared.pop()
            run_guarded(stream, stream.drop)


async def _patiently(next_: Callable[[], Awaitable[_Message]], accuse: Callable[[str], Awaitable[None]]) -> _Message:
    """The next message. Where it takes too long its sender is accused, and then has ended, which is waited for."""
    for _ in range(2):
        with trio.move_on_after(PATIENCE):
            return await next_()
    await accuse("it does not go on with the hand-over")
    return await next_()


async def _until_closed(channel: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while await channel.receive_some():
            pass


def _frozen(todo: Iterator[Handed], most: int) -> tuple[list[Handed], list[HandedStream], list[int]]:
    """The next batch, frozen: the streams, their records and descriptors."""
    streams: list[Handed] = []
    records: list[HandedStream] = []
    descriptors: list[int] = []
    size = 0
    while len(streams) < min(most, BATCH_STREAMS) and len(descriptors) < BATCH_DESCRIPTORS and size < BATCH_BYTES:
        stream = next(todo, None)
        if stream is None:
            break
        try:
            frozen = stream.freeze()
        except Exception:  # noqa: BLE001
            stream.on_defect()
            continue
        if frozen is not None:
            streams.append(stream)
            records.append(frozen[0])
            descriptors += frozen[1]
            size += frozen[0].size
    return streams, records, descriptors


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
