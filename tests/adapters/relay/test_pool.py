"""Worker processes: they share the work, die without taking others along, and are replaced."""

import gc
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from meshgate.adapters.relay import Counters, Limits, worker_process as process_module
from meshgate.adapters.relay.messages import StatsReport
from meshgate.adapters.relay.pool import PoolLeft, RelayPool, _HandOver
from meshgate.adapters.relay.worker_process import WorkerEnd, WorkerPolicy
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, RouteKind

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

    @property
    def settled(self) -> int:
        """Streams that are known one by one, should their worker be lost; none where nobody wants records."""
        return sum(len(worker._settled) for worker in self.relay._everybody)

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
            while len((await self.relay._ask(streams=False)).reports) < count:
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
    policy.answer = 5.0  # A busy machine may take its time, and a client that has said no more than its hello.
    limits = limits or Limits(handshake_timeout=0.0)
    relay = RelayPool(workers, limits, watcher, drain_seconds=5.0, policy=policy, **lookups)
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
        streams = (await pool.relay.connections()).listed
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


class Heard:
    """A pool whose workers say what they are made to."""

    def __init__(self) -> None:
        self.relay = RelayPool(2, Limits(), Watcher(), 5.0)
        self.relay.install(table_of({WEB: [endpoint(1)]}))
        for worker in self.relay._workers:
            worker._outbox, _ = trio.open_memory_channel(100)
        self.asked = 0

    def say(self, number: int, counters: Counters, *, answers: bool = False) -> None:
        told = StatsReport(counters, [], [], 0, question=self.asked if answers else 0)
        self.relay._workers[number]._take(told, 100, 1.0)

    async def counters(self, say: Callable[[], None]) -> Counters:
        """Those that are told where the workers say that when they are asked."""
        found: list[Counters] = []

        async def ask() -> None:
            found.append(await self.relay.counters())

        self.asked += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            say()
        return found[0]


@pytest.fixture
def heard() -> Iterator[Heard]:
    it = Heard()
    yield it
    it.relay._counts.close()


KEY = (RouteKind.SERVICE, "web")


async def test_totals_are_what_workers_have_told_and_open_streams_those_of_who_answers(
    heard: Heard, autojump_clock: trio.testing.MockClock
) -> None:
    def say() -> None:
        for number in (0, 1):
            counters = Counters(accepted=1, active=1, bytes_received=100, carried={KEY: (100, 0)}, open={KEY: 1})
            heard.say(number, counters, answers=True)
        heard.say(0, Counters(accepted=1, bytes_received=3, carried={KEY: (3, 0)}))

    def say_half() -> None:
        heard.say(0, Counters(bytes_received=10, bytes_sent=8, carried={KEY: (10, 8)}, open={KEY: 1}), answers=True)

    counters = await heard.counters(say)
    assert (counters.accepted, counters.bytes_received, counters.carried) == (3, 203, {KEY: (203, 0)})
    assert counters.open == {KEY: 2}
    # The other one is too busy to answer, and then lost with what it has.
    counters = await heard.counters(say_half)
    assert (counters.bytes_received, counters.bytes_sent, counters.carried) == (213, 8, {KEY: (213, 8)})
    assert counters.open == {KEY: 1}
    heard.relay.lost(heard.relay._workers[1], WorkerEnd.KILLED, 1, [])
    assert heard.relay.totals.carried == {KEY: (213, 8)}


async def test_open_streams_are_those_of_before_while_streams_go_from_one_worker_to_another(
    heard: Heard, autojump_clock: trio.testing.MockClock
) -> None:
    def say() -> None:
        heard.say(0, Counters(active=1, carried={KEY: (100, 0)}, open={KEY: 1}), answers=True)
        heard.say(1, Counters(accepted=5), answers=True)

    # Also the first ones that are ever asked for, as those behind an upgrade may be.
    heard.say(0, Counters(accepted=4, active=1))
    heard.relay._hand_over = it = _HandOver(*heard.relay._workers)
    assert (await heard.relay.counters()).accepted == 4
    it.hear(it.old, None)
    it.hear(it.new, None)
    heard.relay._hand_over = None
    heard.asked += 1
    counters = await heard.counters(say)
    assert (counters.carried, counters.open) == ({KEY: (100, 0)}, {KEY: 1})

    def say_and_begin() -> None:
        heard.say(0, Counters(accepted=5, active=2, open={KEY: 2}), answers=True)
        heard.say(1, Counters(), answers=True)
        heard.relay._hand_overs += 1

    counters = await heard.counters(say_and_begin)
    assert (counters.accepted, counters.carried, counters.open) == (14, {KEY: (100, 0)}, {KEY: 1})


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
        by_worker = Counter(stream.worker for stream in (await pool.relay.connections()).listed)
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


async def test_bytes_that_were_told_do_not_go_back_from_one_parent_to_the_next() -> None:
    """Open streams may have carried them, and the next parent may not hear of these for a while."""
    before = RelayPool(0, Limits(), Watcher(), drain_seconds=1.0)
    carried = {(RouteKind.SERVICE, "web"): (7, 9)}
    before._totals = Counters(bytes_received=7, bytes_sent=9, carried=carried)
    left = msgspec.msgpack.decode(msgspec.msgpack.encode(before.left()), type=PoolLeft)
    told = await RelayPool(0, Limits(), Watcher(), drain_seconds=1.0, left=left).counters()
    assert (told.bytes_received, told.bytes_sent, told.carried) == (7, 9, carried)
    before._counts.close()


async def test_worker_whose_streams_are_not_listed_is_named() -> None:
    policy = WorkerPolicy(silent=60.0)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, policy=policy) as pool:
        clients = [await pool.call() for _ in range(30)]
        streams, silent = await pool.relay.connections()
        assert (len(streams), silent) == (len(clients), [])
        stopped = pool.relay.workers[1]
        os.kill(stopped, signal.SIGSTOP)
        try:
            policy.silent = 2.0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(set_soon, policy, 60.0)
                streams, silent = await pool.relay.connections()
            assert ({stream.worker for stream in streams} - {0}, silent) == (set(), [1])
        finally:
            os.kill(stopped, signal.SIGCONT)
        for client in clients:
            await client.aclose()


async def set_soon(policy: WorkerPolicy, silent: float) -> None:
    """For what begins from now on: a worker that is silent for so long is killed."""
    await trio.sleep(0.1)
    policy.silent = silent


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
