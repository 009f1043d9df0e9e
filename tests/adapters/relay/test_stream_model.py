"""The real stream in every order of what its ends and the kernel may do, to a stated depth. See `stream_model`."""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshgate.adapters.relay import pump
from meshgate.adapters.relay.circuit_breakers import Ticket
from meshgate.adapters.relay.stream import Stream
from meshgate.adapters.relay.stream_setup import StreamSetup

from .stream_model import SCENES, BrokenPromiseError, Choices, Scene, World, explore, play
from .test_pump import tcp_pair

DEPTH = 3
DEPTH_WITH_INTERRUPTIONS = 2  # A peer acts between any two system calls of a step, too.


def named(name: str) -> Scene:
    return next(each for each in SCENES if each.name == name)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_in_every_order_of_steps_no_byte_end_or_count_is_lost_and_nothing_waits_for_ever(scene: Scene) -> None:
    """Handed over at any moment, or not at all: whoever may hand over may also let it be."""
    explored = explore(replace(scene, interruptions=0, hand_overs=2), DEPTH)
    assert explored.states > 200
    explored = explore(replace(scene, hand_overs=1), DEPTH_WITH_INTERRUPTIONS)
    assert explored.states > 50


def test_a_stream_that_is_carried_to_its_end_is_seen_to_be() -> None:
    world = World(named("light"), Choices(()))
    play(world)
    assert world.upstream is not None
    assert world.upstream.delivered > 0
    assert (world.stream.relaying, world.context.counters.active) == (True, 1)
    world.settle()
    world.end()
    assert world.stream.closed


def _forgets(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("scene", "where", "name", "wrong", "told"),
    [
        ("light", pump, "_NOT_ALL_BYTES", pump.BROKEN, "bytes of .* wait for ever|the end of .* was not passed on"),
        ("much held", pump, "_dropped", lambda _source, count: count, "got other bytes"),
        ("heavy", pump.PipePool, "give", _forgets, "a pipe is not given back"),
        ("dialled", pump.Leg, "watch_writable", _forgets, "bytes are held for nobody"),
        ("light", Stream, "on_broken", _forgets, "the reset of .* was not passed on"),
        ("drain", Stream, "_is_empty", lambda _: True, "told of an end before all bytes that were read"),
        ("light", pump.Leg, "thaw", _forgets, "does not end with its ends|wait for ever"),
        ("light and blocked", pump.Leg, "restore", _forgets, "got other bytes|wait for ever"),
        ("heavy and blocked", pump.PipePool, "adopt", _forgets, "a pipe is given back that was not lent"),
        ("dialled", StreamSetup, "give_up", _forgets, "a frozen stream is watched|stays open|still watched"),
        ("light", Ticket, "count_in", _forgets, "given back, or twice|invalid value"),
    ],
)
def test_a_stream_that_breaks_a_promise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, scene: str, where: object, name: str, wrong: object, told: str
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(BrokenPromiseError, match=told):
        explore(replace(named(scene), hand_overs=1), 3)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of this machine's kernel: the peer's end, and the relay's."""
    peer, own = tcp_pair()
    own.setblocking(False)
    with peer, own:
        yield peer, own


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def events(poll: select.epoll) -> int:
    return dict(poll.poll(5)).popitem()[1]


def test_this_kernel_tells_of_a_reset_once_and_then_of_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, own = pair
    peer.send(b"bytes before it")
    resets(peer)
    assert own.recv(100) == b"bytes before it"
    with pytest.raises(ConnectionResetError):
        own.recv(1, socket.MSG_PEEK)
    assert own.recv(1) == b""


def test_this_kernel_tells_of_a_reset_behind_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, own = pair
    with select.epoll() as poll:
        poll.register(own, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        peer.shutdown(socket.SHUT_WR)
        assert events(poll) == select.EPOLLIN | select.EPOLLRDHUP
        assert own.recv(1) == b""
        resets(peer)
        assert events(poll) & pump.BROKEN
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        assert own.recv(1) == b""


def test_this_kernel_resets_where_bytes_are_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, own = pair
    peer.send(b"unread")
    own.close()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_this_kernel_stops_before_an_urgent_mark(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, own = pair
    with select.epoll() as poll:
        poll.register(own, select.EPOLLIN | select.EPOLLPRI | select.EPOLLET)
        peer.send(b"!", socket.MSG_OOB)
        assert events(poll) == select.EPOLLPRI
        peer.send(b"bytes behind it")
        assert events(poll) == select.EPOLLIN | select.EPOLLPRI
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        os.splice(own.fileno(), writer, 100, flags=os.SPLICE_F_NONBLOCK)
    peer.shutdown(socket.SHUT_WR)
    while select.select([own], [], [], 5)[0] and own.recv(100, socket.MSG_PEEK) and _splice(own, writer) is None:
        pass  # The end is on its way.
    assert _splice(own, writer) == 0
    os.close(reader)
    os.close(writer)
    assert own.recv(100) == b"bytes behind it"


def _splice(sock: socket.socket, writer: int) -> int | None:
    try:
        return os.splice(sock.fileno(), writer, 100, flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return None
