"""When a stream is copied and when it is spliced, what stalled readers take from others, and what a closed leg does."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshgate.adapters.relay.pump import (
    HEAVY_READ_BYTES,
    HELD_BYTES,
    KERNEL,
    LARGE_READS_TO_SPLICE,
    READ_BYTES,
    STALLED_SECONDS,
    Leg,
    Moved,
    PipePool,
    Pump,
    SystemCalls,
)
from meshgate.adapters.relay.reactor import Reactor

CLOCK = Reactor()
CLOCK.close()  # Nothing but the time is asked of it.
CLOCK.now = 0.0
NOBODY: Any = SimpleNamespace(context=SimpleNamespace(reactor=CLOCK))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled = socket.create_connection(server.getsockname())
        return dialled, server.accept()[0]


class Stream:
    """One direction of a stream: what `sender` sends is to reach `receiver`."""

    def __init__(
        self, pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair, pump: Pump | None = None
    ) -> None:
        self.sender, incoming = pair()
        outgoing, self.receiver = pair()
        self.splices = 0
        self.pool = PipePool(4)
        self.pump = pump or Pump(self.pool, KERNEL._replace(splice=self._splice))
        for sock in (incoming, outgoing):
            sock.setblocking(False)
        self.source, self.destination = Leg(NOBODY, incoming), Leg(NOBODY, outgoing)
        self.source.flows = True  # What it says is nobody's business here.

    def send(self, count: int) -> bool:
        """Send so many bytes and see that they arrive; whether they were spliced."""
        before = self.splices
        data = os.urandom(count)
        self.sender.sendall(data)
        assert self.turn() is Moved.DRY
        assert self.receiver.recv(count, socket.MSG_WAITALL) == data
        return self.splices > before

    def _splice(self, *arguments: int, flags: int) -> int:
        self.splices += 1
        return KERNEL.splice(*arguments, flags=flags)

    def turn(self) -> Moved:
        return self.pump.move(self.source, self.destination)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.source.close()
        self.destination.close()
        self.pool.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


@pytest.fixture
def tcp() -> Iterator[Stream]:
    made = Stream(tcp_pair)
    yield made
    made.close()


def make_heavy(stream: Stream) -> None:
    assert not any(stream.send(READ_BYTES) for _ in range(LARGE_READS_TO_SPLICE))


def test_stream_with_several_large_reads_in_a_row_is_spliced(stream: Stream) -> None:
    make_heavy(stream)
    assert all(stream.send(count) for count in (READ_BYTES, 100_000, 5_000))


def test_stream_of_messages_is_never_spliced(stream: Stream) -> None:
    assert not any(stream.send(count) for count in (READ_BYTES, READ_BYTES, READ_BYTES, 64) * 5)


def test_message_makes_a_heavy_stream_light_again(stream: Stream) -> None:
    make_heavy(stream)
    assert stream.send(64)
    assert not stream.send(64)


def test_turn_that_finds_nothing_leaves_a_heavy_stream_heavy(stream: Stream) -> None:
    make_heavy(stream)
    assert stream.turn() is Moved.DRY
    assert stream.send(READ_BYTES)


def test_closed_leg_touches_no_descriptor(stream: Stream) -> None:
    """The kernel gives a closed socket's number to the next one; nothing may be read from or written to that."""
    stream.sender.sendall(b"bytes")
    stream.destination.close()
    stranger, other = socket.socketpair()
    with stranger, other:
        assert stream.turn() is Moved.DESTINATION_BROKEN
        stream.source.close()
        assert stream.turn() is Moved.SOURCE_BROKEN
        stream.pump.hold(stream.destination, b"bytes")
        assert stream.pump.flush(stream.destination) is None
        for sock in (stranger, other):
            with pytest.raises(BlockingIOError):
                sock.recv(1, socket.MSG_DONTWAIT)


def test_last_bytes_leave_together_with_the_end_behind_them(tcp: Stream) -> None:
    """A caller that has its answer, and not the end, may ask again in between."""
    tcp.sender.sendall(b"answer")
    tcp.sender.shutdown(socket.SHUT_WR)
    tcp.source.until_eagain = True
    assert tcp.turn() is Moved.EOF
    with pytest.raises(BlockingIOError):
        tcp.receiver.recv(1, socket.MSG_DONTWAIT)
    tcp.destination.sock.shutdown(socket.SHUT_WR)
    assert [tcp.receiver.recv(100), tcp.receiver.recv(100)] == [b"answer", b""]


def test_bytes_before_a_reset_are_sent_before_the_stream_is_reset(tcp: Stream) -> None:
    tcp.sender.sendall(b"answer")
    tcp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.sender.close()
    tcp.source.until_eagain = True
    assert tcp.turn() is Moved.SOURCE_BROKEN
    assert tcp.receiver.recv(100, socket.MSG_DONTWAIT) == b"answer"


def test_nothing_is_kept_back_for_an_end_that_was_another_streams(tcp: Stream) -> None:
    """An event may be left from a socket that had the same number."""
    tcp.sender.sendall(b"bytes")
    tcp.source.until_eagain = True
    assert tcp.turn() is Moved.DRY
    assert tcp.receiver.recv(100, socket.MSG_DONTWAIT) == b"bytes"


class Stalling(Stream):
    """Its receiver reads nothing until it is told to."""

    def __init__(self, pump: Pump) -> None:
        super().__init__(tcp_pair, pump)
        self.sender.setblocking(False)
        self.sent = 0

    def fill(self) -> None:
        """Send until nothing more goes anywhere."""
        while True:
            try:
                self.sent += self.sender.send(self._bytes(1 << 18))
            except BlockingIOError:
                if self.destination.held is not None or self.destination.pipe is not None:
                    return
            if self.destination.held is None and self.destination.pipe is None:
                self.turn()

    def arrives_whole(self) -> bool:
        """Whether all that was sent is there once the receiver reads again."""
        self.sender.shutdown(socket.SHUT_WR)
        self.receiver.setblocking(False)
        got = b""
        while len(got) < self.sent:
            if self.pump.flush(self.destination):
                self.turn()
            try:
                got += self.receiver.recv(1 << 20)
            except BlockingIOError:
                continue
        return got == self._bytes(self.sent, 0)

    def _bytes(self, count: int, at: int | None = None) -> bytes:
        start = (self.sent if at is None else at) % 251
        return (bytes(range(251)) * (count // 251 + 2))[start : start + count]


@pytest.fixture
def stalling() -> Iterator[Callable[[Pump], Stalling]]:
    made: list[Stalling] = []

    def make(pump: Pump) -> Stalling:
        made.append(Stalling(pump))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_once_much_is_held_for_stalled_readers_no_more_is_and_others_are_read_as_before(
    stalling: Callable[[Pump], Stalling],
) -> None:
    sizes: list[int] = []

    def write(descriptor: int, data: bytes | bytearray) -> int:
        sizes.append(len(data))
        return os.write(descriptor, data)

    pump = Pump(PipePool(0), SystemCalls(write=write))
    first = stalling(pump)
    first.fill()
    held = pump.held
    assert 0 < held <= HEAVY_READ_BYTES
    pump.held += HELD_BYTES  # As thousands of its kind would make it.
    others = [stalling(pump) for _ in range(3)]
    for another in others:
        another.fill()
        assert another.destination.held == b""
    assert pump.held == held + HELD_BYTES
    moving = Stream(pump=pump)
    sizes.clear()
    for _ in range(10):
        moving.send(HEAVY_READ_BYTES)
    assert sizes == [READ_BYTES, HEAVY_READ_BYTES - READ_BYTES] + [HEAVY_READ_BYTES] * 9
    moving.close()
    assert all(another.arrives_whole() for another in others)
    pump.held -= HELD_BYTES
    assert first.arrives_whole()
    assert pump.held == 0


def test_leg_that_has_stalled_for_a_while_gives_its_pipe_to_a_stream_that_moves(
    stalling: Callable[[Pump], Stalling],
) -> None:
    pool = PipePool(1)
    pump = Pump(pool)
    stalled, moving = stalling(pump), Stream(pump=pump)
    stalled.fill()
    pipe = stalled.destination.pipe
    assert pipe is not None
    inside = pipe.inside
    make_heavy(moving)
    CLOCK.now += STALLED_SECONDS / 2
    moving.send(READ_BYTES)
    assert stalled.destination.pipe is pipe, "it may only be slow"
    CLOCK.now += STALLED_SECONDS
    moving.send(READ_BYTES)
    assert pump.held == inside
    assert pool.take() is pipe
    pool.give(pipe)
    moving.close()
    assert stalled.arrives_whole()
    assert (pump.held, pump.blocked) == (0, {})


def test_pipe_stays_with_a_stalled_leg_where_its_bytes_would_be_too_many(
    stalling: Callable[[Pump], Stalling],
) -> None:
    pump = Pump(PipePool(1))
    stalled, moving = stalling(pump), Stream(pump=pump)
    stalled.fill()
    make_heavy(moving)
    pump.held += HELD_BYTES
    CLOCK.now += 2 * STALLED_SECONDS
    moving.send(READ_BYTES)
    assert stalled.destination.pipe is not None
    pump.held -= HELD_BYTES
    moving.close()
    assert stalled.arrives_whole()
