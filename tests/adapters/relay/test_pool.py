"""Worker processes: they share the work, die without taking others along, and are replaced."""

import gc
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from meshgate.adapters.relay import Limits, worker_process as process_module
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint

from .streams import (
    WEB,
    Watcher,
    backend,
    echo,
    endpoint,
    hello_for,
    named,
    open_descriptors,
    receive_all,
    receive_exactly,
    table_of,
)

HELLO = hello_for(WEB)
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"


class Pool:
    """A pool that listens."""

    def __init__(self, relay: RelayPool, port: int, watcher: Watcher, policy: WorkerPolicy) -> None:
        self.relay = relay
        self.policy = policy
        self.port = port
        self.watcher = watcher

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def call(self) -> trio.SocketStream:
        """An open stream, through to the echoing endpoint."""
        client = await self.dial()
        await client.send_all(HELLO)
        assert await receive_exactly(client, len(HELLO)) == HELLO
        return client

    async def until_workers(self, count: int) -> None:
        """Wait until so many workers have answered."""
        with trio.fail_after(20):
            while len(await self.relay._ask(streams=False)) < count:
                await trio.sleep(0.02)


@asynccontextmanager
async def pool_of(
    routes: Mapping[str, Sequence[Endpoint]],
    workers: int = 2,
    limits: Limits | None = None,
    policy: WorkerPolicy | None = None,
    **lookups: Any,
) -> AsyncIterator[Pool]:
    watcher, policy = Watcher(), policy or WorkerPolicy()
    policy.answer = 5.0  # A busy machine may take its time.
    relay = RelayPool(workers, limits or Limits(), watcher, drain_seconds=5.0, policy=policy, **lookups)
    _, port = relay.bind("default", "127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        relay.install(table_of(routes))
        relay.listen()
        pool = Pool(relay, port, watcher, policy)
        await pool.until_workers(workers)
        yield pool
        nursery.cancel_scope.cancel()


async def test_streams_of_all_workers_are_carried_counted_and_listed() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        clients = [await pool.call() for _ in range(30)]
        counters = await pool.relay.counters()
        assert counters.active == 30
        assert counters.connections == {("service", "web"): 30}
        assert counters.bytes_received == counters.bytes_sent == 30 * len(HELLO)
        streams = await pool.relay.connections()
        assert len(streams) == 30
        assert {(stream.state, stream.sni, stream.endpoint) for stream in streams} == {
            ("relaying", WEB, f"127.0.0.1:{port}")
        }
        for client in clients:
            await client.aclose()
        with trio.fail_after(20):
            while (counters := await pool.relay.counters()).active:
                await trio.sleep(0.02)
        assert counters.accepted == 30
        assert counters.bytes_received == 30 * len(HELLO)
        assert len(pool.watcher.ended) == 30
        assert {record.reason for record in pool.watcher.ended} == {None}


async def test_refusals_come_up_with_their_reason() -> None:
    async with pool_of({}) as pool:
        async with await pool.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == UNRECOGNIZED_NAME
        assert (await pool.relay.counters()).refused == {Reason.UNKNOWN_SNI: 1}
        assert [(refused.reason, refused.server_name) for refused in pool.watcher.refused] == [
            (Reason.UNKNOWN_SNI, WEB)
        ]


async def test_new_tables_reach_every_worker_as_changes() -> None:
    async with backend(named(b"old")) as old, backend(named(b"new")) as new, pool_of({WEB: [endpoint(old)]}) as pool:
        pool.relay.install(table_of({WEB: [endpoint(new)], "other.name": [endpoint(old)]}))
        await pool.until_workers(2)
        met: Counter[bytes] = Counter()
        for _ in range(20):
            async with await pool.dial() as client:
                await client.send_all(HELLO)
                met[await receive_exactly(client, 3)] += 1
        assert met == {b"new": 20}
        pool.relay.install(table_of({}))
        await pool.until_workers(2)
        async with await pool.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == UNRECOGNIZED_NAME


async def test_worker_that_is_killed_takes_only_its_own_streams_and_is_replaced() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        clients = [await pool.call() for _ in range(40)]
        by_worker = Counter(stream.worker for stream in await pool.relay.connections())
        victim = by_worker.most_common(1)[0][0]
        pid = pool.relay._workers[victim].pid
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(20):
            while len(pool.relay.workers) < 2 or pid in pool.relay.workers:
                await trio.sleep(0.01)
        alive = 0
        for client in clients:
            try:
                await client.send_all(b"ping")
                alive += await receive_exactly(client, 4) == b"ping"
            except trio.BrokenResourceError:
                pass
            await client.aclose()
        assert alive == 40 - by_worker[victim]
        # The new one knows the table and serves; totals have not gone back.
        await pool.until_workers(2)
        for _ in range(10):
            await (await pool.call()).aclose()
        assert (await pool.relay.counters()).connections == {("service", "web"): 50}


async def test_clients_that_wait_for_a_worker_are_served_by_the_next_one() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        os.kill(pool.relay.workers[0], signal.SIGSTOP)
        client = await pool.dial()
        await client.send_all(HELLO)
        os.kill(pool.relay.workers[0], signal.SIGKILL)
        with trio.fail_after(20):
            assert await receive_exactly(client, len(HELLO)) == HELLO
        await client.aclose()


async def test_worker_that_hangs_is_killed_and_replaced() -> None:
    policy = WorkerPolicy(silent=1.5)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        pid = pool.relay.workers[0]
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(20):
            while pool.relay.workers in ([], [pid]):
                await trio.sleep(0.02)
        policy.silent = 60.0
        await pool.until_workers(1)
        await (await pool.call()).aclose()


async def test_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        spawn = process_module._spawn
        failures: list[int] = []

        def no_process(policy: WorkerPolicy, descriptor: int, inherited: Sequence[int], stderr: int) -> object:
            if len(failures) < 3:
                failures.append(descriptor)
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return spawn(policy, descriptor, inherited, stderr)

        monkeypatch.setattr(process_module, "_spawn", no_process)
        assert (pool.relay.works, len(failures)) == (True, 0)
        os.kill(pool.relay.workers[0], signal.SIGKILL)
        with trio.fail_after(20):
            while len(failures) < 3 or not pool.relay.workers:
                # Between two tries there is nobody, and the gateway must not look ready.
                assert not (failures and pool.relay.works and not pool.relay.workers)
                await trio.sleep(0.02)
        await pool.until_workers(1)
        with trio.fail_after(20):
            while not pool.relay.works:
                await trio.sleep(0.02)
        await (await pool.call()).aclose()


async def test_limit_holds_for_all_workers_together() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, limits=Limits(max_connections=10)) as pool:
        clients = [await pool.call() for _ in range(10)]
        for client in clients:
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
        async with await pool.dial() as late:
            assert await receive_all(late) == b""
        assert (await pool.relay.counters()).refused == {Reason.MAX_CONNECTIONS: 1}
        for client in clients:
            await client.aclose()


async def test_limit_per_client_holds_for_all_workers_together() -> None:
    limits = Limits(max_connections_per_client=3)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, limits=limits) as pool:
        clients = [await pool.call() for _ in range(3)]
        async with await pool.dial() as late:
            assert await receive_all(late) == b""
        await clients.pop().aclose()
        with trio.fail_after(20):
            while (await pool.relay.counters()).active > 2:
                await trio.sleep(0.02)
        await (await pool.call()).aclose()
        for client in clients:
            await client.aclose()


async def test_when_listening_stops_open_streams_live_on_and_new_ones_find_nobody() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        client = await pool.call()
        pool.relay.stop_listening()
        await pool.until_workers(2)
        with pytest.raises(OSError, match="all attempts to connect"):
            await pool.dial()
        await client.send_all(b"still here")
        assert await receive_exactly(client, 10) == b"still here"
        await client.aclose()


async def test_streams_that_are_cut_at_the_end_are_reset() -> None:
    async with backend(echo) as port:
        async with pool_of({WEB: [endpoint(port)]}) as pool:
            client = await pool.call()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await client.aclose()


async def test_nothing_is_left_behind() -> None:
    descriptors = open_descriptors()
    async with pool_of({}) as pool:
        pids = pool.relay.workers
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    del pool
    gc.collect()
    assert open_descriptors() <= descriptors
