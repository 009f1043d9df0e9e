"""Moves bytes from one leg of a stream to the other.

Try first: read, write at once, and wait only when the kernel says so. Light streams are copied, and own no memory while
they are idle. A stream whose reads are large several times in a row is spliced: its bytes go socket -> pipe -> socket
inside the kernel.

What always holds: bytes leave in the order they came; bytes that could not be written are kept with the leg they are
for (`held`, or in its `pipe`), and while there are any, nothing more is read for that leg. So a stream holds at most a
read or a pipe of bytes in each direction; and once all streams together hold HELD_BYTES, reads become so small that
thousands of stalled readers add little.
"""

from enum import IntEnum
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK, read, splice, write
from typing import TYPE_CHECKING, Final

from .pipes import PipePool

if TYPE_CHECKING:
    from .leg import Leg

READ_BYTES: Final = 1 << 14  # Of a stream that has not proved heavy: a TLS record, and little to allocate.
HEAVY_READ_BYTES: Final = 1 << 16
TURN_BYTES: Final = 1 << 18  # What one stream may move before the others get their turn.
LARGE_READS_TO_SPLICE: Final = 4
HELD_BYTES: Final = 32 << 20
_SMALL_READ_BYTES: Final = 1 << 12
_MESSAGE_BYTES: Final = 1 << 12  # A spliced turn that moved less is a message: the stream is light again.
_SPLICE_FLAGS: Final = SPLICE_F_MOVE | SPLICE_F_NONBLOCK


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


class Pump:
    """The pipes, and the loops that move bytes."""

    def __init__(self, pipes: PipePool) -> None:
        self._pipes = pipes
        self.held = 0  # Bytes of all legs together.

    def move(self, source: "Leg", destination: "Leg") -> Moved:
        """One turn: move what is there, up to TURN_BYTES. The destination must hold nothing back."""
        budget = TURN_BYTES
        while budget > 0:
            size = READ_BYTES
            if source.large_reads:
                if source.large_reads >= LARGE_READS_TO_SPLICE and (pipe := self._pipes.take()) is not None:
                    destination.pipe = pipe
                    return self._splice(source, destination, budget)
                size = HEAVY_READ_BYTES
            if self.held >= HELD_BYTES:
                size = _SMALL_READ_BYTES
            try:
                # Descriptors and os.read, not methods of sockets and a buffer: 14 % of a round trip's instructions.
                data = read(source.descriptor, size)
            except BlockingIOError:
                return DRY
            except OSError:
                return SOURCE_BROKEN
            count = len(data)
            if not count:
                return EOF
            source.received += count
            try:
                sent = write(destination.descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return DESTINATION_BROKEN
            source.large_reads = source.large_reads + 1 if count >= READ_BYTES else 0
            if sent < count:
                self.hold(destination, data[sent:])
                return BLOCKED
            # A short read has emptied the socket, and later bytes raise a new event. An end of stream that came
            # with these bytes raised its event already.
            if count < size and not source.hung_up:
                return DRY
            budget -= count
        return AGAIN

    def hold(self, leg: "Leg", data: bytes) -> None:
        """Keep bytes for a leg that takes no more now."""
        leg.held = data
        self.held += len(data)

    def flush(self, leg: "Leg") -> bool | None:
        """Write what is held back for a leg. True when nothing is left, False when blocked, None when it broke."""
        try:
            if leg.pipe is not None:
                if not self._empty(leg):
                    return False
                self._give_back(leg)
            if leg.held is not None:
                sent = write(leg.descriptor, leg.held)
                self.held -= sent
                leg.held = leg.held[sent:] if sent < len(leg.held) else None
        except BlockingIOError:
            return False
        except OSError:
            return None
        return leg.held is None

    def release(self, leg: "Leg") -> None:
        """Drop what is held back for a leg that ends."""
        if leg.held is not None:
            self.held -= len(leg.held)
            leg.held = None
        if leg.pipe is not None:
            self._give_back(leg)

    def _splice(self, source: "Leg", destination: "Leg", budget: int) -> Moved:
        pipe = destination.pipe
        assert pipe is not None
        moved = 0
        while moved < budget:
            # The pipe is only filled when empty: so EAGAIN can only mean that the socket has nothing.
            try:
                count = splice(source.descriptor, pipe.writer, pipe.capacity, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                if 0 < moved < _MESSAGE_BYTES:
                    source.large_reads = 0
                self._give_back(destination)
                return DRY
            except OSError:
                self._give_back(destination)
                return SOURCE_BROKEN
            if not count:
                self._give_back(destination)
                return EOF
            source.received += count
            pipe.inside = count
            try:
                if not self._empty(destination):
                    return BLOCKED
            except BlockingIOError:
                return BLOCKED
            except OSError:
                return DESTINATION_BROKEN
            moved += count
        self._give_back(destination)
        return AGAIN

    def _empty(self, leg: "Leg") -> bool:
        """Write a leg's pipe out; False when the socket took only a part of it."""
        pipe = leg.pipe
        assert pipe is not None
        while pipe.inside:
            sent = splice(pipe.reader, leg.descriptor, pipe.inside, flags=_SPLICE_FLAGS)
            if not sent:
                return False
            pipe.inside -= sent
        return True

    def _give_back(self, leg: "Leg") -> None:
        if leg.pipe is not None:
            self._pipes.give(leg.pipe)
            leg.pipe = None
