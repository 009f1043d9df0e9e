"""A worker's first and last moments: slow starts, signals that come too early, and what it says before it goes."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from meshgate.adapters.relay import Limits, OpenStream
from meshgate.adapters.relay.messages import (
    MOST_STREAMS,
    TO_PARENT,
    Receiver,
    Setup,
    StatsReport,
    StatsRequest,
    TookOver,
)
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.reactor import Reactor
from meshgate.adapters.relay.worker import Worker
from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.core.reasons import StreamEnd

from .streams import WEB, Watcher, backend, echo, endpoint, hello_for, open_descriptors, receive_exactly, table_of
from .test_pool import Pool, pool_of

HELLO = hello_for(WEB)

# What a slow disk does: the interpreter runs, the worker's modules are not there yet.
HELD = """
import os, runpy, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
del sys.argv[1]
runpy.run_module("meshgate.adapters.relay.worker", run_name="__main__")
"""


@asynccontextmanager
async def held_pool(backend_port: int, gate: Path, **seconds: Any) -> AsyncIterator[Pool]:
    """A pool of one worker that goes no further than its interpreter until the file `gate` is there."""
    policy = WorkerPolicy((sys.executable, "-c", HELD, str(gate)), **seconds)
    watcher = Watcher()
    relay = RelayPool(1, Limits(), watcher, drain_seconds=5.0, policy=policy)
    _, port = relay.bind("default", "127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        relay.install(table_of({WEB: [endpoint(backend_port)]}))
        relay.listen()
        with trio.fail_after(20):
            while not relay.workers:
                await trio.sleep(0.01)
        yield Pool(relay, port, watcher, policy)
        nursery.cancel_scope.cancel()


async def test_worker_that_starts_slowly_is_waited_for(tmp_path: Path) -> None:
    async with backend(echo) as port, held_pool(port, tmp_path / "gate", silent=1.0) as pool:
        first = pool.relay.workers
        await trio.sleep(3.5)
        assert pool.relay.workers == first
        pool.policy.silent = 30.0
        (tmp_path / "gate").touch()
        await (await pool.call()).aclose()
        assert pool.relay.workers == first


async def test_worker_that_never_speaks_is_replaced(tmp_path: Path) -> None:
    async with backend(echo) as port, held_pool(port, tmp_path / "gate", starting=1.0) as pool:
        first = pool.relay.workers
        with trio.fail_after(30):
            while pool.relay.workers in ([], first):
                await trio.sleep(0.02)
        pool.policy.starting = 60.0
        (tmp_path / "gate").touch()
        await (await pool.call()).aclose()


async def test_worker_whose_place_is_taken_before_it_has_spoken_has_done_nothing_wrong(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with backend(echo) as port, held_pool(port, tmp_path / "gate") as pool:
            pool.policy.command = WorkerPolicy().command
            await pool.relay.replace(0)
            (tmp_path / "gate").touch()
            with trio.fail_after(30):
                while len(pool.relay._everybody) > 1:
                    await trio.sleep(0.02)
            await (await pool.call()).aclose()
            assert not pool.relay.losses
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_signals_to_the_process_group_do_not_end_a_worker_that_starts(tmp_path: Path) -> None:
    async with backend(echo) as port, held_pool(port, tmp_path / "gate") as pool:
        first = pool.relay.workers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first[0], number)
        (tmp_path / "gate").touch()
        client = await pool.call()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first[0], number)
        await client.send_all(b"alive")
        assert await receive_exactly(client, 5) == b"alive"
        assert pool.relay.workers == first
        # Neither blocked for good, nor the parent's own signals held back.
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()).isdisjoint({signal.SIGINT, signal.SIGTERM})
        await client.aclose()


async def test_how_streams_ended_that_were_cut_at_the_end_is_still_told() -> None:
    async with backend(echo) as port:
        async with pool_of({WEB: [endpoint(port)]}) as pool:
            clients = [await pool.call() for _ in range(12)]
            assert pool.watcher.ended == []
        assert [(record.sni, record.bytes_sent, record.end) for record in pool.watcher.ended] == [
            (WEB, len(HELLO), StreamEnd.DRAIN)
        ] * 12
        for client in clients:
            await client.aclose()


async def test_loss_of_a_worker_is_logged_with_its_reason_and_what_it_cost() -> None:
    with structlog.testing.capture_logs() as logs:
        async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
            clients = [await pool.call() for _ in range(3)]
            with trio.fail_after(20):
                while pool.relay.active < 3:
                    await trio.sleep(0.02)
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            await (await pool.call()).aclose()
            counters = await pool.relay.counters()
            restarts = {end.value: count for end, count in pool.relay.restarts.items() if count}
            for client in clients:
                await client.aclose()
    lost = [entry for entry in logs if "worker ended" in entry["event"]]
    assert [(entry["reason"], entry["streams_lost"], entry["log_level"]) for entry in lost] == [
        ("killed by SIGKILL", 3, "error")
    ]
    assert counters.ends[StreamEnd.WORKER_LOST] == 3
    assert restarts == {"killed": 1}


async def test_each_long_stream_of_a_lost_worker_has_a_record_and_none_that_had_ended() -> None:
    # The first look at a stream, by which it has settled, comes early where a timeout is short.
    limits = Limits(handshake_timeout=1.0)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, limits=limits) as pool:
        clients = [await pool.call() for _ in range(4)]
        with trio.fail_after(30):
            for client in clients:
                await client.send_all(b"x")
            while pool.settled < 4:
                await trio.sleep(0.02)
            ended = clients.pop()
            assert await receive_exactly(ended, 1) == b"x"
            await ended.aclose()
            while not pool.watcher.ended:
                await trio.sleep(0.02)
            assert [record.end for record in pool.watcher.ended] == [StreamEnd.CLOSED]
            assert pool.settled == 3
            for client in clients:
                await client.send_all(b"later")
                assert await receive_exactly(client, 6) == b"xlater"
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            while len(pool.watcher.ended) < 4:
                await trio.sleep(0.02)
        lost = pool.watcher.ended[1:]
        assert {(it.sni, it.endpoint, it.end, it.reason) for it in lost} == {
            (WEB, f"127.0.0.1:{port}", StreamEnd.WORKER_LOST, None)
        }
        # What went through it later is not known any more.
        assert {(record.bytes_received, record.bytes_sent) for record in lost} == {(len(HELLO) + 1, len(HELLO) + 1)}
        ours = {f"127.0.0.1:{client.socket.getsockname()[1]}" for client in clients}
        assert {record.client for record in lost} == ours
        assert all(1.0 <= record.duration < 30 for record in lost)
        assert [(it.worker, it.cause, it.streams, it.known) for it in pool.relay.losses] == [(0, "killed", 3, 3)]
        for client in clients:
            await client.aclose()


async def test_nothing_is_told_of_streams_that_live_while_nobody_wants_records() -> None:
    async with (
        backend(echo) as port,
        pool_of({WEB: [endpoint(port)]}, workers=1, limits=Limits(idle_timeout=0.2)) as pool,
    ):
        pool.watcher.wants_records = False
        pool.relay.want_records(False)
        await pool.until_workers(1)
        async with await pool.call() as client:
            with trio.fail_after(20):
                while not (ends := (await pool.relay.counters()).ends):
                    await trio.sleep(0.05)
            assert await client.receive_some() == b""
        # How it ended is told all the same: not in order.
        assert ends == {StreamEnd.IDLE: 1}
        assert [record.end for record in pool.watcher.ended] == [StreamEnd.IDLE]
        os.kill(pool.relay.workers[0], signal.SIGKILL)
        with trio.fail_after(20):
            while not pool.relay.losses:
                await trio.sleep(0.02)
        assert [loss.known for loss in pool.relay.losses] == [0]


async def test_clients_that_wait_when_listening_stops_are_still_let_in() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        pool.policy.silent = 60.0
        os.kill(pool.relay.workers[0], signal.SIGSTOP)
        clients = [await pool.dial() for _ in range(20)]
        for client in clients:
            await client.send_all(HELLO)
        pool.relay.stop_listening()
        os.kill(pool.relay.workers[0], signal.SIGCONT)
        with trio.fail_after(30):
            for client in clients:
                assert await receive_exactly(client, len(HELLO)) == HELLO
        for client in clients:
            await client.aclose()


# A worker that somebody took over: it sends descriptors, and never a whole message.
HOARDER = """
import array, os, socket, sys
parent = socket.socket(fileno=int(sys.argv[1]))
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 50))]
for _ in range(20):
    parent.sendmsg([b"\\0"], rights)
parent.recv(1)
parent.shutdown(socket.SHUT_WR)
"""


async def test_worker_cannot_use_up_its_parents_descriptors() -> None:
    policy = WorkerPolicy((sys.executable, "-c", HOARDER))
    relay = RelayPool(1, Limits(), Watcher(), drain_seconds=5.0, policy=policy)
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        with structlog.testing.capture_logs() as logs, trio.fail_after(30):
            while not any("worker ended" in entry["event"] for entry in logs):
                assert open_descriptors() < before + 100
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


BABBLER = """
import socket, sys
parent = socket.socket(fileno=int(sys.argv[1]))
parent.sendall(b"\\0\\0\\0\\4" + b"\\xc1" * 4)
parent.recv(1 << 20)
parent.recv(1 << 20)
"""


async def test_worker_that_talks_nonsense_is_replaced_and_harms_no_other() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        _, other = pool.relay.workers
        with structlog.testing.capture_logs() as logs:
            sane, pool.policy.command = pool.policy.command, (sys.executable, "-c", BABBLER)
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            with trio.fail_after(30):
                while not any("made no sense" in entry.get("reason", "") for entry in logs):
                    await trio.sleep(0.01)
            pool.policy.command = sane
            assert other in pool.relay.workers
            await (await pool.call()).aclose()
        await pool.until_workers(2)


async def test_a_worker_takes_no_module_from_the_folder_that_the_gateway_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ipaddress", "trio", "structlog"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w').close()\n")
    policy = WorkerPolicy(starting=5.0)
    monkeypatch.chdir(tmp_path)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        await (await pool.call()).aclose()
    assert not (tmp_path / "taken").exists()


@pytest.fixture
def worker() -> Iterator[tuple[Worker, trio.SocketStream]]:
    """A worker without a process of its own, and its parent's end."""
    ours, theirs = trio.socket.socketpair()
    reactor = Reactor()
    setup = Setup(0, 0, Limits(), [], [], b"", drain_seconds=1.0, drain_quiet=0.1, records=False)
    with ours, theirs:
        yield Worker(reactor, setup, trio.SocketStream(theirs)), trio.SocketStream(ours)
    reactor.close()


async def test_worker_that_is_told_to_end_as_it_lists_its_streams_leaves_no_half_message_behind(
    worker: tuple[Worker, trio.SocketStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, parent = worker
    name = "n" * 255  # So long that the kernel takes a message in pieces.
    stream = OpenStream(1, "192.0.2.1:1", name, name, "192.0.2.2:2", "relaying", 1.0, 1, 1, 0)
    monkeypatch.setattr(it._relay, "connections", lambda: iter([stream] * MOST_STREAMS))
    receiver, heard = Receiver(parent, TO_PARENT), []

    async def hear() -> None:
        while (message := await receiver.next()) is not None:
            heard.append(message)

    async with trio.open_nursery() as hearing:
        async with trio.open_nursery() as ending:
            ending.start_soon(it._tell_streams, StatsRequest(1, streams=True))
            await trio.testing.wait_all_tasks_blocked()  # The parent is busy, and there is no more room for it.
            ending.cancel_scope.cancel()
            hearing.start_soon(hear)
        await it._channel.aclose()
    assert heard
    assert receiver.begun == b""


async def test_worker_tells_why_it_did_not_take_streams_over(
    worker: tuple[Worker, trio.SocketStream], caplog: pytest.LogCaptureFixture
) -> None:
    it, parent = worker
    await it._take_over(-1)
    assert "no descriptor left" in caplog.text
    receiver = Receiver(parent, TO_PARENT)
    assert isinstance(await receiver.next(), StatsReport)
    assert await receiver.next() == TookOver()
