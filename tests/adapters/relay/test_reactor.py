"""The loop and what it keeps apart: listeners that others have too, defects, and streams that are many."""

import logging
import os
import socket
from collections.abc import Callable
from select import EPOLLOUT
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from meshgate.adapters.relay import Limits, reactor as reactor_module
from meshgate.adapters.relay.reactor import Reactor, Turning
from meshgate.adapters.relay.stream import Stream
from meshgate.core.reasons import Reason, StreamEnd
from tests.core.hellos import records

from .streams import (
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    receive_all,
    receive_exactly,
    running,
)

HELLO = hello_for(WEB)


async def test_listener_that_another_process_keeps_raises_no_events_here_once_it_is_closed() -> None:
    """Closing a descriptor takes a socket out of epoll only when it was the last one."""
    async with running({}) as gateway:
        (listener,) = gateway.relay._listeners
        with socket.socket(fileno=os.dup(listener.sock.fileno())):
            gateway.relay.close_listener("127.0.0.1", gateway.port)
            with socket.create_connection(("127.0.0.1", gateway.port), 20):
                assert gateway.relay.context.reactor._epoll.poll(0.2) == []


async def test_clients_that_wait_when_the_relay_is_cancelled_are_no_internal_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running({}) as gateway:
        await trio.testing.wait_all_tasks_blocked(0.05)
        clients = [socket.create_connection(("127.0.0.1", gateway.port), 20) for _ in range(3)]
    try:
        assert gateway.counters().internal_errors == 0
        assert gateway.counters().accepted == 0
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    finally:
        for client in clients:
            client.close()


async def test_deadlines_of_clients_that_are_let_in_at_the_end_count_from_then() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, Limits(hello_timeout=60.0)) as gateway:
        await trio.testing.wait_all_tasks_blocked(0.05)
        with socket.create_connection(("127.0.0.1", gateway.port), 20) as client:
            gateway.relay.context.reactor.now -= 3600.0  # As after an hour in which nothing happened.
            gateway.relay.stop_listening()
            assert next(gateway.relay.connections()).age < 60.0
            await trio.sleep(0.3)
            client.sendall(HELLO)
            await gateway.until(lambda: [stream.state for stream in gateway.relay.connections()] == ["relaying"])
        assert gateway.refused == []


async def test_defect_at_a_deadline_ends_its_stream_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Stream) -> None:
        raise RuntimeError("a defect")

    async with running({}, Limits(hello_timeout=0.2)) as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "on_deadline", fail)
            async with await gateway.dial() as client:
                with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                    await receive_all(client)
        assert gateway.active == 0
        assert gateway.counters().internal_errors == 1
        async with await gateway.dial() as client:
            with trio.fail_after(20):
                await receive_all(client)  # The next one has its deadline as ever.
        assert [refused.reason for refused in gateway.refused] == [Reason.HELLO_TIMEOUT]


class Heavy:
    """Takes as many turns as it gets, each of them long."""

    def __init__(self, sock: socket.socket, on_turn: Callable[["Heavy"], None]) -> None:
        self.descriptor = sock.fileno()
        self._on_turn = on_turn

    def on_event(self, events: int) -> None: ...

    def on_defect(self) -> None: ...

    def on_turn(self) -> None:
        self._on_turn(self)


async def test_turns_stop_for_the_others_and_go_on_where_they_stopped() -> None:
    """A thousand heavy streams take a tenth of a second and more for a turn of each."""
    reactor = Reactor()
    time = [0.0]
    reactor.clock = lambda: time[0]
    given: list[int] = []

    def on_turn(one: Heavy) -> None:
        time[0] += reactor_module.CHECKPOINT_SECONDS * 0.3
        given.append(heavy.index(one))
        reactor.promise_turn(one)

    with socket.socket() as sock:
        heavy = [Heavy(sock, on_turn) for _ in range(10)]
        for one in heavy:
            reactor.promise_turn(one)
        reactor._give_turns()
        assert given == [0, 1, 2, 3]
        reactor._give_turns()
        reactor._give_turns()
        assert given == [*range(10), 0, 1]
    reactor.close()


async def test_a_turn_that_is_promised_twice_is_given_once() -> None:
    """An event promises one, too, while another one is awaited."""
    reactor = Reactor()
    given: list[Heavy] = []
    with socket.socket() as sock:
        one = Heavy(sock, given.append)
        for _ in range(3):
            reactor.promise_turn(one)
        reactor._give_turns()
        assert given == [one]
        reactor.promise_turn(one)
        reactor._give_turns()
        assert given == [one, one]
    reactor.close()


async def test_what_was_postponed_gets_one_turn_after_each_batch_of_events_and_more_when_there_are_none() -> None:
    reactor = Reactor()
    time = [0.0]
    reactor.clock = lambda: time[0]
    order: list[str] = []

    class Busy(Heavy):
        """Always has something to tell, until it has told three times."""

        def on_event(self, events: int) -> None:
            order.append("event")
            if order.count("event") == 3:
                reactor.unwatch(self)

    def late(_one: Heavy) -> None:
        time[0] += reactor_module.LATE_SECONDS * 0.4
        order.append("late")
        if len(order) == 9:
            reactor.stop()

    with socket.socket() as sock:
        reactor.watch(Busy(sock, late), EPOLLOUT)
        for _ in range(6):
            reactor.postpone(Heavy(sock, late))
        reactor.serve()
        reactor.close()
    assert order == ["event", "late"] * 3 + ["late"] * 3


async def test_flood_of_hellos_that_are_cut_delays_no_stream_whose_hello_is_whole() -> None:
    """None of them is read before it; that they are read in the end shows that the relay has forgotten none."""
    flood = records(hello_for("no.such.name")[5:], [1])
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        reactor = gateway.relay.context.reactor
        with pytest.MonkeyPatch.context() as patch:
            held: list[Turning] = []
            patch.setattr(reactor, "postpone", held.append)
            hostile = [await gateway.dial() for _ in range(20)]
            for stream in hostile:
                await stream.send_all(flood)
            async with await gateway.dial() as honest:
                await honest.send_all(HELLO)
                assert await receive_exactly(honest, len(HELLO)) == HELLO
            await gateway.until(lambda: len(held) == len(hostile))
        assert gateway.refused == []
        for each in held:
            reactor.postpone(each)
        for stream in hostile:
            with trio.fail_after(20):
                assert await receive_all(stream) != b""
            await stream.aclose()
        assert {refused.reason for refused in gateway.refused} == {Reason.HELLO_TOO_LARGE}


def test_what_the_system_does_not_watch_is_not_taken_for_watched() -> None:
    reactor = Reactor()
    closed: Any = SimpleNamespace(descriptor=1 << 20)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor"):
            reactor.watch(closed, EPOLLOUT)
    reactor.unwatch(closed)
    reactor.close()


async def test_idle_timeout_that_is_switched_off_ends_no_stream() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            gateway.relay.context.limits = Limits(idle_timeout=0.0)
            (stream,) = gateway.relay.context.streams
            assert isinstance(stream, Stream)
            stream.on_deadline()  # The one that was set before.
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
        assert StreamEnd.IDLE not in gateway.counters().ends
