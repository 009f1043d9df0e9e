"""When a stream is copied and when it is spliced, and that a closed leg can do no harm."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshgate.adapters.relay.pump import LARGE_READS_TO_SPLICE, READ_BYTES, Leg, Moved, Pipe, PipePool, Pump

NOBODY: Any = SimpleNamespace(context=SimpleNamespace(reactor=SimpleNamespace(now=0.0)))


class CountingPool(PipePool):
    def __init__(self) -> None:
        super().__init__(4)
        self.taken = 0

    def take(self) -> Pipe | None:
        self.taken += 1
        return super().take()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled = socket.create_connection(server.getsockname())
        return dialled, server.accept()[0]


class Stream:
    """One direction of a stream: what `sender` sends is to reach `receiver`."""

    def __init__(self, pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair) -> None:
        self.sender, incoming = pair()
        outgoing, self.receiver = pair()
        self.pool = CountingPool()
        self.pump = Pump(self.pool)
        for sock in (incoming, outgoing):
            sock.setblocking(False)
        self.source, self.destination = Leg(NOBODY, incoming), Leg(NOBODY, outgoing)

    def send(self, count: int) -> bool:
        """Send so many bytes and see that they arrive; whether a pipe was taken for them."""
        taken = self.pool.taken
        data = os.urandom(count)
        self.sender.sendall(data)
        assert self.turn() is Moved.DRY
        assert self.receiver.recv(count, socket.MSG_WAITALL) == data
        return self.pool.taken > taken

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
    tcp.source.hung_up = True
    assert tcp.turn() is Moved.EOF
    with pytest.raises(BlockingIOError):
        tcp.receiver.recv(1, socket.MSG_DONTWAIT)
    tcp.destination.sock.shutdown(socket.SHUT_WR)
    assert [tcp.receiver.recv(100), tcp.receiver.recv(100)] == [b"answer", b""]


def test_bytes_before_a_reset_are_sent_before_the_stream_is_reset(tcp: Stream) -> None:
    tcp.sender.sendall(b"answer")
    tcp.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.sender.close()
    tcp.source.hung_up = True
    assert tcp.turn() is Moved.SOURCE_BROKEN
    assert tcp.receiver.recv(100, socket.MSG_DONTWAIT) == b"answer"


def test_nothing_is_kept_back_for_an_end_that_was_another_streams(tcp: Stream) -> None:
    """An event may be left from a socket that had the same number."""
    tcp.sender.sendall(b"bytes")
    tcp.source.hung_up = True
    assert tcp.turn() is Moved.DRY
    assert tcp.receiver.recv(100, socket.MSG_DONTWAIT) == b"bytes"
