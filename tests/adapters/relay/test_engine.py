"""The loop and what it keeps apart: listeners that others have too, defects, and streams that are many."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay import engine as engine_module
from meshgate.adapters.relay.connection import Connection
from meshgate.adapters.relay.engine import Engine
from meshgate.adapters.relay.leg import Leg
from meshgate.adapters.relay.shared import SharedCounts
from meshgate.core.reasons import Reason

from .streams import (
    WEB,
    Watcher,
    backend,
    echo,
    endpoint,
    hello_for,
    receive_all,
    receive_exactly,
    running,
    table_of,
)

HELLO = hello_for(WEB)


async def test_listener_that_another_process_keeps_raises_no_events_here_once_it_is_closed() -> None:
    """Closing a descriptor takes a socket out of epoll only when it was the last one."""
    async with running({}) as gateway:
        (listener,) = gateway.relay._listeners
        with socket.socket(fileno=os.dup(listener.sock.fileno())):
            gateway.relay.close_listener("127.0.0.1", gateway.port)
            with socket.create_connection(("127.0.0.1", gateway.port), 20):
                assert gateway.relay._engine._epoll.poll(0.2) == []


async def test_clients_that_wait_when_the_relay_is_cancelled_are_no_internal_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running({}) as gateway:
        await trio.testing.wait_all_tasks_blocked(0.05)
        clients = [socket.create_connection(("127.0.0.1", gateway.port), 20) for _ in range(3)]
    try:
        assert gateway.relay.counters().internal_errors == 0
        assert gateway.relay.counters().accepted == 0
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
            gateway.relay._engine.now -= 3600.0  # As after an hour in which nothing happened.
            gateway.relay.stop_listening()
            assert gateway.relay.connections()[0].age < 60.0
            await trio.sleep(0.3)
            client.sendall(HELLO)
            await gateway.until(lambda: [stream.state for stream in gateway.relay.connections()] == ["relaying"])
        assert gateway.refused == []


async def test_defect_at_a_deadline_ends_its_stream_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Connection) -> None:
        raise RuntimeError("a defect")

    async with running({}, Limits(hello_timeout=0.2)) as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "on_deadline", fail)
            async with await gateway.dial() as client:
                with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                    await receive_all(client)
        assert gateway.relay.active == 0
        assert gateway.relay.counters().internal_errors == 1
        async with await gateway.dial() as client:
            with trio.fail_after(20):
                await receive_all(client)  # The next one has its deadline as ever.
        assert [refused.reason for refused in gateway.refused] == [Reason.HELLO_TIMEOUT]


@contextmanager
def an_engine() -> Iterator[Engine]:
    engine = Engine(table_of({}), Limits(), SharedCounts(-1, 1, 0), Watcher())
    try:
        yield engine
    finally:
        engine._epoll.close()


async def test_turns_stop_for_the_others_and_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand heavy streams take a tenth of a second and more for a turn of each."""
    with an_engine() as engine:
        time = [0.0]
        engine.clock = lambda: time[0]
        given: list[int] = []
        legs = [Leg.__new__(Leg) for _ in range(10)]

        def on_turn(leg: Leg) -> None:
            time[0] += engine_module.CHECKPOINT_SECONDS * 0.3
            given.append(legs.index(leg))
            engine.promise_turn(leg)

        monkeypatch.setattr(Leg, "on_turn", on_turn)
        for leg in legs:
            engine.promise_turn(leg)
        engine._give_turns()
        assert given == [0, 1, 2, 3]
        engine._give_turns()
        engine._give_turns()
        assert given == [*range(10), 0, 1]


async def test_idle_timeout_that_is_switched_off_ends_no_stream() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            gateway.relay.limit(Limits(idle_timeout=0.0))
            (connection,) = gateway.relay._engine.connections()
            connection.on_deadline()  # The one that was set before.
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
        assert gateway.relay.counters().idle_timeouts == 0
