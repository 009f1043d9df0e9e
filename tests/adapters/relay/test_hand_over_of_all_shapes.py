"""Workers are replaced again and again under streams of all shapes: no stream notices, and the accounts are right."""

import contextlib
import gc
import operator
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.messages import HandOver
from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.core.reasons import StreamEnd
from meshgate.core.routes import Endpoint
from tests.harness.shapes import Driver, Endpoints, Names, driving, endpoints, not_as_told
from tests.security.processes import held, left_over

from .streams import TRUST_DOMAIN, WEB, endpoint, open_descriptors, table_of
from .test_pool import Pool, pool_of

SLOW = f"slow.default.dc1.internal.{TRUST_DOMAIN}"


# On a busy machine a stream waits for its name as long as it takes: one that nobody looks up shows by that.
PATIENT = """
import signal, sys
from functools import partial
from meshgate.adapters.relay import messages, worker
from meshgate.adapters.relay.sandbox import Mode
worker.OnDemand = partial(worker.OnDemand, patience=60.0)
for number in messages.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, messages.SIGNALS)
worker.main(int(sys.argv[1]), Mode(sys.argv[2]))
"""


def children() -> set[int]:
    """The relay workers of this process, which may have other children: Consuls that tests share."""
    pids = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return {pid for pid in pids if is_worker(pid)}


def is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"meshgate.adapters.relay" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


class Late:
    """Names that the pool has to ask about, which it is told of after a while."""

    def __init__(self, servers: Endpoints) -> None:
        self.pool: Pool | None = None
        self._numbers = count()
        self._rng = Random("late names")
        self._routes: dict[str, list[Endpoint]] = {
            WEB: [endpoint(servers.port)],
            SLOW: [endpoint(servers.slow_port)],
        }
        self._servers = servers

    @property
    def routes(self) -> dict[str, list[Endpoint]]:
        return self._routes

    def name(self) -> str:
        return f"late-{next(self._numbers)}.default.dc1.internal.{TRUST_DOMAIN}"

    async def look_up(self, name: str) -> None:
        await trio.sleep(self._rng.uniform(0.05, 1.0))
        self._routes[name] = [endpoint(self._servers.port)]
        assert self.pool is not None
        self.pool.relay.install(table_of(self._routes))


@asynccontextmanager
async def under_load(
    workers: int, seed: int, policy: WorkerPolicy | None = None, **options: float
) -> AsyncIterator[tuple[Pool, Driver]]:
    """A pool with the streams; after the block all of them must have come to their end, and be told of rightly."""
    gc.collect()
    before = open_descriptors()
    policy = policy or WorkerPolicy(command=(sys.executable, "-P", "-c", PATIENT))
    async with endpoints() as servers:
        late = Late(servers)
        limits = Limits(hello_timeout=60.0, connect_timeout=30.0, handshake_timeout=0.0)
        async with pool_of(late.routes, workers, limits, policy, lookup=late.look_up, lookup_seconds=30.0) as pool:
            late.pool = pool
            normal = held(pool.relay.workers[0])
            names = Names(WEB, SLOW, late.name)
            address = ("127.0.0.1", pool.port)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_totals, pool)
                async with driving(servers, address, names, seed=seed, **options) as driver:  # type: ignore[arg-type]
                    yield pool, driver
                await until_told(pool, driver)
                nursery.cancel_scope.cancel()
            await check_accounts(pool, driver)
            with trio.move_on_after(20):
                while children() != {*pool.relay.workers}:
                    await trio.sleep(0.02)
            assert children() == {*pool.relay.workers}
            assert len(pool.relay.workers) == workers
            assert [left_over(pid, normal, workers) for pid in pool.relay.workers] == [Counter()] * workers
    gc.collect()
    assert open_descriptors() <= before


async def check_accounts(pool: Pool, driver: Driver) -> None:
    """What the pool tells of the streams is what came to pass, as far as none was cut."""
    counters = await pool.relay.counters()
    ends = {end: number for end, number in counters.ends.items() if number}
    whole = [life for life in driver.lives if not (life.cut or life.untold)]
    maybe = len(driver.lives) - len(whole)
    assert counters.active == 0
    assert (counters.internal_errors, pool.relay.untold) == (0, 0)
    # A worker without descriptors refuses who begins just then.
    assert sum(counters.refused.values()) <= maybe
    assert not_as_told(driver.lives, pool.watcher.ended) == []
    assert len(whole) <= ends.pop(StreamEnd.CLOSED) <= len(driver.lives)
    assert len(whole) <= sum(counters.connections.values()) <= len(driver.lives)
    # A stream without an endpoint is none of the lost ones, and one that had ended was not cut everywhere.
    assert sum(ends.values()) <= maybe
    if not maybe:
        assert counters.accepted == sum(counters.connections.values()) == len(whole)
        assert counters.bytes_received == sum(life.up for life in whole)
        assert counters.bytes_sent == sum(life.down for life in whole)


async def watch_totals(pool: Pool) -> None:
    """Totals never go back, whenever they are asked for."""
    before = [0] * 4
    while True:
        it = await pool.relay.counters()
        now = [sum(it.connections.values()), sum(it.ends.values()), it.bytes_received, it.bytes_sent]
        assert all(map(operator.ge, now, before)), (before, now)
        before = now
        await trio.sleep(0.05)


async def until_told(pool: Pool, driver: Driver) -> None:
    with trio.move_on_after(20):
        told = sum(not (life.cut or life.untold) for life in driver.lives)
        while len(pool.watcher.ended) < told or (await pool.relay.counters()).active:
            await trio.sleep(0.02)


async def children_but(ended: set[int]) -> set[int]:
    """The children, when those that are to end have had the time for it."""
    with trio.move_on_after(20):
        while ended & children():
            await trio.sleep(0.01)
    return children()


async def replace_all(pool: Pool, driver: Driver) -> None:
    """Each worker, one after another; all must be other processes then."""
    before = {*pool.relay.workers}
    for number in range(len(before)):
        moved = await pool.relay.replace(number)
        assert (moved.left, moved.why) == (0, "")
    assert before.isdisjoint(await children_but(before))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("workers", [1, 4])
async def test_no_stream_notices_that_its_worker_is_replaced(workers: int) -> None:
    async with under_load(workers, seed=workers, streams=80, pace=0.3) as (pool, driver):
        for _ in range(2 if workers > 1 else 5):
            await replace_all(pool, driver)
        await driver.moved(1)


@pytest.mark.timeout(900)
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 4])
async def test_no_stream_notices_that_its_worker_is_replaced_twenty_times(workers: int) -> None:
    async with under_load(workers, seed=10 + workers) as (pool, driver):
        for _ in range(20):
            await replace_all(pool, driver)
            await driver.moved(1)


@pytest.mark.timeout(200)
async def test_no_stream_notices_that_workers_share_them() -> None:
    """To and fro between two workers that both take new ones meanwhile."""
    async with under_load(2, seed=7, streams=80, pace=0.3) as (pool, driver):
        before = pool.relay.workers
        one, other = pool.relay._workers
        moved = 0
        for _ in range(5):
            for old, new in ((one, other), (other, one)):
                now = await pool.relay._move(old, new, HandOver(30, stays=True))
                assert now.why == ""
                moved += now.streams
        await driver.moved(1)
        assert moved > 100
        assert pool.relay.workers == before


async def test_the_accounts_of_all_shapes_are_right_without_a_hand_over() -> None:
    async with under_load(2, seed=3, streams=40, pace=0.2) as (_, driver):
        await driver.moved(1)
