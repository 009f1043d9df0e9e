"""The two legs of a stream, and the pump that moves bytes from one to the other.

Try first: read, write at once, and wait only when the kernel says so. Light streams are copied, and own no memory while
they are idle. A stream whose reads are large several times in a row is spliced: its bytes go socket -> pipe -> socket
inside the kernel.

What always holds: bytes leave in the order they came; bytes that could not be written are kept with the leg they are
for (`held`, or in its `pipe`), and while there are any, nothing more is read for that leg. So a stream holds at most a
read or a pipe of bytes in each direction; and once all streams together hold HELD_BYTES, bytes are taken from a socket
only when the other one has taken them. Thousands of stalled readers add nothing then, and make nobody's reads small.

A pipe belongs to a stream only while it holds bytes of it; an empty one goes back at once. So the number of pipes
follows the number of heavy streams that are blocked at the same moment. A leg that has stalled for a while gives its
pipe to a stream that moves.

An end of stream is believed when `read` says so. `splice` says 0 or EAGAIN at an urgent mark as well (tcp(7)), behind
which there may be more, and a read ends short there. EPOLLPRI tells of the mark, and bytes that come after an event
raise another one; so a leg without that flag is not asked twice. The urgent byte itself is out of band: it is dropped,
as by every receiver that does not ask for it.
"""

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from enum import IntEnum
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from socket import MSG_MORE, MSG_PEEK, MSG_TRUNC
from typing import Final, NamedTuple, Protocol

from . import sockets
from .hand_over import HandedLeg
from .reactor import Accountable, Reactor

READ_BYTES: Final = 1 << 14  # Of a stream that has not proved heavy: a TLS record, and little to allocate.
HEAVY_READ_BYTES: Final = 1 << 16
TURN_BYTES: Final = 1 << 18  # What one stream may move before the others get their turn.
LARGE_READS_TO_SPLICE: Final = 4
HELD_BYTES: Final = 32 << 20
STALLED_SECONDS: Final = 1.0  # For so long a pipe of bytes waits for its leg before somebody else may have it.
_MESSAGE_BYTES: Final = 1 << 12  # A spliced turn that moved less is a message: the stream is light again.
_SPLICE_FLAGS: Final = SPLICE_F_MOVE | SPLICE_F_NONBLOCK

PIPE_BYTES: Final = 1 << 20
USEFUL_PIPE_BYTES: Final = 1 << 16  # The kernel's default. A smaller pipe (quota used up) is slower than copying.
_PIPES_KEPT: Final = 32

_NOT_ALL_BYTES: Final = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
READABLE: Final = EPOLLIN | _NOT_ALL_BYTES
BROKEN: Final = EPOLLHUP | EPOLLERR
_IN_OUT: Final = EPOLLIN | EPOLLOUT  # Of a leg that blocked once, or was dialed.
_EVENTS: Final = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET


class Moved(IntEnum):
    """How a turn ended."""

    DRY = 0  # The source has nothing more for now; its next bytes raise an event.
    BLOCKED = 1  # The destination takes no more for now.
    AGAIN = 2  # The budget is used up; more is there.
    EOF = 3  # The source has ended, and all of its bytes are in the destination's socket.
    SOURCE_BROKEN = 4
    DESTINATION_BROKEN = 5


# An enum's members are slow to get at (measured: a fifth of a round trip's instructions).
DRY, BLOCKED, AGAIN, EOF, SOURCE_BROKEN, DESTINATION_BROKEN = Moved


class Pipe:
    """A pipe and how many bytes are inside."""

    __slots__ = ("capacity", "inside", "reader", "writer")

    def __init__(self, ends: tuple[int, int] | None = None, inside: int = 0) -> None:
        """A new one; or one that another process has made, with so many bytes inside.

        Raises:
            OSError: there is none to be had, or it is none.
        """
        if ends is None:
            ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        elif _inside(ends[0]) != inside or not inside:
            raise OSError("a pipe that does not hold what was said")
        self.reader, self.writer = ends
        self.inside = inside
        if not inside:
            # Unprivileged users have a quota of large pipes; past it the kernel refuses and the default size stays.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.capacity = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends; bytes inside are gone."""
        os.close(self.reader)
        os.close(self.writer)


def _inside(reader: int) -> int:
    """The bytes in a pipe.

    Raises:
        OSError: it is none.
    """
    fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)  # Not by fstat: the C library asks by a call that workers may not use.
    return int(struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0])


class SystemCalls(NamedTuple):
    """What moves bytes and opens sockets: those of the kernel, or of a model of one."""

    read: Callable[[int, int], bytes] = os.read
    write: Callable[[int, bytes | bytearray], int] = os.write
    splice: Callable[..., int] = os.splice
    dial: Callable[[str, int], tuple[socket.SocketType, int]] = sockets.dial


KERNEL: Final = SystemCalls()


class PipePool:
    """Lends pipes, at most `limit` at a time; `make` makes one, or raises OSError; `discard` closes one."""

    def __init__(
        self, limit: int, make: Callable[[], Pipe] = Pipe, discard: Callable[[Pipe], None] = Pipe.close
    ) -> None:
        self._limit = limit
        self._new = make
        self.discard = discard
        self._lent = 0
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there is none to be had: then copy."""
        if self._lent >= self._limit:
            return None
        pipe = self._idle.pop() if self._idle else self._make()
        if pipe is not None:
            self._lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back. One that still holds bytes is closed: they must never reach another stream."""
        self._lent -= 1
        if pipe.inside or len(self._idle) >= _PIPES_KEPT:
            self.discard(pipe)
        else:
            self._idle.append(pipe)

    def adopt(self) -> None:
        """Count a pipe as lent that came with a stream from another process."""
        self._lent += 1

    def close(self) -> None:
        """Close the idle pipes."""
        while self._idle:
            self.discard(self._idle.pop())

    def _make(self) -> Pipe | None:
        try:
            pipe = self._new()
        except OSError:
            return None
        if pipe.capacity < USEFUL_PIPE_BYTES:
            self.discard(pipe)
            return None
        return pipe


class LegContext(Protocol):
    """What a leg needs of what all streams share."""

    @property
    def reactor(self) -> Reactor:
        """Reports on its socket."""

    @property
    def pump(self) -> "Pump":
        """Moves its bytes."""


class LegOwner(Accountable, Protocol):
    """The stream that a leg is of. `relaying` says that both legs are there."""

    relaying: bool

    @property
    def context(self) -> LegContext:
        """What all streams share."""

    def on_early_event(self, leg: "Leg", events: int) -> None:
        """An event while the stream is not relaying."""

    def forward(self, source: "Leg") -> None:
        """Move what a leg has to the other one."""

    def on_moved(self, source: "Leg", moved: Moved) -> None:
        """A turn of the pump has ended so."""

    def on_heard(self, source: "Leg", data: bytes) -> None:
        """These bytes of a leg that does not flow were read, and are not counted yet."""

    def ends_with_more_of(self, source: "Leg") -> bool:
        """Whether it will be ended behind the next bytes that come from a leg."""

    def on_bytes(self, source: "Leg", *, hurry: bool) -> None:
        """A draining pump has moved bytes that came from a leg; in a hurry, it may end behind them."""

    def resume(self, leg: "Leg") -> None:
        """A leg that blocked takes bytes again."""

    def on_broken(self, leg: "Leg") -> None:
        """A leg seems to have been reset behind its end."""


class Leg:
    """One socket of a stream, and what is kept for it.

    `held` and `pipe` are bytes that wait to be written to this leg; `held` is empty where they wait in the kernel, with
    the other leg. `readable` says the kernel may have bytes of this leg, `eof` that all of them were read.
    `until_eagain` says that a short read does not mean an empty socket: an end of stream, a reset or an urgent mark may
    be behind it, so it is read until EAGAIN.
    `flows` says that its bytes only move: both legs are there, and nobody listens to what it says any more.
    `large_reads` counts those in a row. `reports_writable` says that epoll tells when the leg takes bytes. `touched` is
    when bytes of this leg last came.
    """

    __slots__ = (
        "descriptor",
        "eof",
        "flows",
        "held",
        "large_reads",
        "other",
        "pipe",
        "readable",
        "received",
        "reports_writable",
        "sock",
        "stream",
        "touched",
        "until_eagain",
    )

    other: "Leg"

    def __init__(self, stream: LegOwner, sock: socket.SocketType) -> None:
        self.stream = stream
        self.sock = sock
        self.descriptor = sock.fileno()
        self.held: bytes | None = None
        self.pipe: Pipe | None = None
        self.readable = True
        self.until_eagain = False
        self.eof = False
        self.flows = False
        self.large_reads = 0
        self.received = 0
        self.reports_writable = False
        self.touched = stream.context.reactor.now

    def watch(self) -> None:
        """Report what comes on this leg's socket from now on; what has come already is reported at once."""
        self.stream.context.reactor.watch(self, _EVENTS)

    def watch_writable(self) -> None:
        """As `watch`, and report also that the leg takes bytes (again). Few ever block, so few pay for this."""
        if not self.reports_writable:
            self.reports_writable = True
            self.stream.context.reactor.watch(self, _EVENTS | EPOLLOUT)

    def send(self, data: bytes | bytearray) -> int:
        """Write at once what the kernel takes; how much that was.

        Raises:
            BlockingIOError: it takes nothing now, because the connection does not stand yet for instance.
            OSError: the leg is broken.
        """
        return self.stream.context.pump.write(self.descriptor, data)

    def on_event(self, events: int) -> None:
        """What epoll says about this leg's socket."""
        stream = self.stream
        context = stream.context
        if (events == EPOLLIN or (events == _IN_OUT and self.held is None and self.pipe is None)) and self.flows:
            # Nearly all events: straight to the pump, past all that follows (11 % of a round trip's instructions).
            destination = self.other
            self.touched = context.reactor.now
            if destination.held is None and destination.pipe is None and not self.eof:
                moved = context.pump.move(self, destination)
                if moved is not DRY:
                    self.readable = True
                    stream.on_moved(self, moved)
            else:
                self.readable = True
            return
        if events & _NOT_ALL_BYTES:
            self.until_eagain = True
        if events & READABLE:
            self.readable = True
            self.touched = context.reactor.now
        if not stream.relaying:
            stream.on_early_event(self, events)
            return
        if events & EPOLLOUT and (self.held is not None or self.pipe is not None):
            self.other.touched = context.reactor.now
            stream.resume(self)
        if events & BROKEN and self.eof:
            stream.on_broken(self)
        elif events & READABLE:
            stream.forward(self)

    def on_turn(self) -> None:
        """The turn that was promised when the last one used up its budget."""
        self.touched = self.stream.context.reactor.now
        self.stream.forward(self)

    def on_defect(self) -> None:
        """An error while an event or a turn was handled is the stream's."""
        self.stream.on_defect()

    def freeze(self) -> HandedLeg:
        """Let nothing more happen to it; what it is like."""
        context = self.stream.context
        context.reactor.unwatch(self)
        context.pump.blocked.pop(self, None)  # Nobody may take its pipe.
        self.reports_writable = False
        return HandedLeg(
            received=self.received,
            touched=self.touched,
            eof=self.eof,
            until_eagain=self.until_eagain,
            flows=self.flows,
            large_reads=self.large_reads,
            held=self.held,
            piped=0 if self.pipe is None else self.pipe.inside,
        )

    def restore(self, was: HandedLeg, pipe: Pipe | None) -> None:
        """Be like a leg that was frozen in another process."""
        self.received, self.touched, self.eof = was.received, was.touched, was.eof
        self.until_eagain, self.flows, self.large_reads = was.until_eagain, was.flows, was.large_reads
        self.held, self.pipe = was.held, pipe

    def thaw(self) -> None:
        """Go on after `freeze` or `restore`: what has come meanwhile is reported as an event."""
        context = self.stream.context
        self.readable = True
        if self.pipe is not None:
            context.pump.blocked[self] = context.reactor.now
        if self.held is not None or self.pipe is not None:
            self.watch_writable()
        else:
            self.watch()

    def close(self) -> None:
        """Close the socket. Its number may soon be another stream's, so nothing may use it any more."""
        self.descriptor = -1
        self.sock.close()

    def reset(self) -> None:
        """Close the socket with a reset."""
        self.descriptor = -1
        sockets.reset(self.sock)


class Pump:
    """The pipes, and the loops that move bytes."""

    def __init__(self, pipes: PipePool, calls: SystemCalls = KERNEL) -> None:
        self.pipes = pipes
        self.calls = calls
        self.read, self.write, self._splice = calls.read, calls.write, calls.splice
        self.held = 0  # Bytes of all legs together, without those in pipes.
        self.blocked: dict[Leg, float] = {}  # Those with a pipe, and since when it is not empty; the longest first.

    def move(self, source: Leg, destination: Leg) -> Moved:  # noqa: C901, PLR0912 - all bytes go through here
        """One turn: move what is there, up to TURN_BYTES. The destination must hold nothing back."""
        read, write = self.read, self.write
        budget = TURN_BYTES
        while budget > 0:
            size = READ_BYTES
            if source.large_reads:
                size = HEAVY_READ_BYTES
                many = source.large_reads >= LARGE_READS_TO_SPLICE
                if many and (moved := self._move_by_pipe(source, destination, budget)) is not None:
                    return moved
            if self.held >= HELD_BYTES:
                return self._move_and_hold_nothing(source, destination)
            try:
                # Descriptors and os.read, not methods of sockets and a buffer: 14 % of a round trip's instructions.
                data = read(source.descriptor, size)
            except OSError as error:
                return _read_failed(error, source, destination)
            count = len(data)
            if not count:
                return EOF
            if not source.flows:
                source.stream.on_heard(source, data)
            source.received += count
            try:
                if count < size and source.until_eagain:
                    # The end is behind them, and leaves in one packet with them: whoever has read an answer but not the
                    # end may ask again in between.
                    sent = destination.sock.send(data, MSG_MORE)
                else:
                    sent = write(destination.descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_BROKEN
            source.large_reads = source.large_reads + 1 if count >= READ_BYTES else 0
            if sent < count:
                self.hold(destination, data[sent:])
                return BLOCKED
            # A short read has emptied the socket, and later bytes raise a new event. An end of stream or an urgent mark
            # that came with these bytes raised its event already.
            if count < size and not source.until_eagain:
                return DRY
            budget -= count
        return AGAIN

    def hold(self, leg: Leg, data: bytes) -> None:
        """Keep bytes for a leg that takes no more now."""
        leg.held = data
        self.held += len(data)

    def flush(self, leg: Leg) -> bool | None:
        """Write what is held back for a leg. True when nothing is left, False when blocked, None when it broke."""
        try:
            if leg.pipe is not None:
                if not self._empty(leg, leg.pipe):
                    return False
                self._give_back(leg)
            if leg.held:
                sent = self.write(leg.descriptor, leg.held)
                self.held -= sent
                if sent < len(leg.held):
                    leg.held = leg.held[sent:]
                    return False
        except BlockingIOError:
            return False
        except OSError:
            return None
        leg.held = None
        return True

    def release(self, leg: Leg) -> None:
        """Drop what is held back for a leg that ends."""
        if leg.held is not None:
            self.held -= len(leg.held)
            leg.held = None
        if leg.pipe is not None:
            self._give_back(leg)

    def _move_and_hold_nothing(self, source: Leg, destination: Leg) -> Moved:
        """As `move`, but take only what the destination has taken, which costs a system call more."""
        budget = TURN_BYTES
        while budget > 0:
            size = HEAVY_READ_BYTES if source.large_reads else READ_BYTES
            try:
                data = source.sock.recv(size, MSG_PEEK)
            except OSError as error:
                return _read_failed(error, source, destination)
            count = len(data)
            if not count:
                # An urgent byte may be left, which would make a reset of the close.
                return EOF if _dropped(source, 1) == 0 else SOURCE_BROKEN
            try:
                sent = self.write(destination.descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_BROKEN
            if sent and _dropped(source, sent) != sent:
                return SOURCE_BROKEN
            if sent and not source.flows:
                source.stream.on_heard(source, data[:sent])
            source.received += sent
            source.large_reads = source.large_reads + 1 if count >= READ_BYTES else 0
            if sent < count:
                destination.held = b""
                return BLOCKED
            if count < size and not source.until_eagain:
                return DRY
            budget -= count
        return AGAIN

    def _move_by_pipe(self, source: Leg, destination: Leg, budget: int) -> Moved | None:
        """As `move`, by a pipe. None: there is none to be had, or only a read can say whether there is more."""
        pipe = destination.pipe = self.pipes.take() or self._reclaim()
        if pipe is None:
            return None
        splice, moved = self._splice, 0
        while moved < budget:
            # The pipe is only filled when empty: so EAGAIN can only mean that the socket has nothing, or a mark.
            try:
                count = splice(source.descriptor, pipe.writer, pipe.capacity, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self._give_back(destination)
                if source.until_eagain:
                    return None
                if 0 < moved < _MESSAGE_BYTES:
                    source.large_reads = 0
                return DRY
            except OSError:
                self._give_back(destination)
                return SOURCE_BROKEN
            if not count:
                self._give_back(destination)
                return None
            source.received += count
            pipe.inside = count
            try:
                if not self._empty(destination, pipe):
                    return BLOCKED
            except OSError:
                return DESTINATION_BROKEN
            moved += count
        self._give_back(destination)
        return AGAIN

    def _empty(self, leg: Leg, pipe: Pipe) -> bool:
        """Write a leg's pipe out; False when the socket took only a part of it."""
        while pipe.inside:
            try:
                sent = self._splice(pipe.reader, leg.descriptor, pipe.inside, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                sent = 0
            if not sent:
                self.blocked.setdefault(leg, leg.stream.context.reactor.now)
                return False
            pipe.inside -= sent
        return True

    def _reclaim(self) -> Pipe | None:
        """The pipe of the leg that is blocked for longest, if it has stalled and its bytes may be held in memory."""
        for leg, since in self.blocked.items():
            pipe = leg.pipe
            if (
                pipe is None
                or leg.stream.context.reactor.now - since < STALLED_SECONDS
                or self.held + pipe.inside > HELD_BYTES
            ):
                return None
            self.hold(leg, self.read(pipe.reader, pipe.inside))
            pipe.inside = 0
            leg.pipe = None
            del self.blocked[leg]
            return pipe
        return None

    def _give_back(self, leg: Leg) -> None:
        if leg.pipe is not None:
            self.blocked.pop(leg, None)
            self.pipes.give(leg.pipe)
            leg.pipe = None


def _read_failed(error: OSError, source: Leg, destination: Leg) -> Moved:
    if source.until_eagain:
        sockets.push(destination.sock)  # What was to leave together with the end: there is none.
    return DRY if isinstance(error, BlockingIOError) else SOURCE_BROKEN


def _dropped(source: Leg, count: int) -> int:
    """Throw away bytes that were looked at, without copying them (tcp(7)): how many, or -1."""
    try:
        return len(source.sock.recv(count, MSG_TRUNC))
    except OSError:
        return -1


class DrainingPump(Pump):
    """Takes the place of a pump, and tells the streams of each turn in which bytes came. Only a drain pays for that.

    `hurry` is for whoever drains to set: whether streams are to end behind their answers.
    """

    def __init__(self, other: Pump) -> None:
        super().__init__(other.pipes, other.calls)
        self.held, self.blocked = other.held, other.blocked
        self.hurry = False

    def move(self, source: Leg, destination: Leg) -> Moved:
        """As a pump."""
        received = source.received
        if self.hurry and source.stream.ends_with_more_of(source):
            # The answer and the end in one packet: whoever reads the one before the other may ask again in between.
            sockets.cork(destination.sock, on=True)
        moved = super().move(source, destination)
        if source.received != received:
            source.stream.on_bytes(source, hurry=self.hurry)
        return moved
