"""A worker or its parent ends, or the gateway drains, while streams wait for the lookup of their name."""

import os
import signal
import subprocess
import sys

import trio

from meshgate.app.gateway.draining import drain_relay
from meshgate.core.reasons import Reason

from .streams import WEB, backend, echo, receive_all
from .test_endpoints import INTERNAL_ERROR
from .test_on_demand_pool import (
    HELLO,
    PATIENT,
    Consul,
    answer,
    asking_pool,
    send_hello,
    until_connecting,
    until_idle,
)
from .test_orphans import end_of, until_gone


async def test_worker_that_dies_while_its_streams_wait_is_replaced_and_the_next_one_asks_the_same() -> None:
    """The question is under way still when it is put a second time from the same place."""
    consul = Consul()
    async with backend(echo) as port, asking_pool(consul.lookup, port, workers=1) as pool:
        lost = await send_hello(pool)
        await until_connecting(pool, 1)
        (first,) = pool.relay.workers
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(20):
            assert await end_of(lost) in ("eof", "reset")
        await lost.aclose()
        with trio.fail_after(20):
            while pool.relay.workers in ([], [first]):
                await trio.sleep(0.02)
        client = await send_hello(pool)
        await until_connecting(pool, 1)
        assert consul.asked == [WEB]
        consul.answer.set()
        assert await answer(client, len(HELLO)) == HELLO
        await client.aclose()
        await until_idle(pool)
        async with await send_hello(pool) as client:
            assert await answer(client, len(HELLO)) == HELLO


async def test_answer_for_a_worker_that_is_gone_goes_nowhere() -> None:
    consul = Consul()
    async with backend(echo) as port, asking_pool(consul.lookup, port, workers=1) as pool:
        lost = await send_hello(pool)
        await until_connecting(pool, 1)
        pool.policy.command = (sys.executable, "-c", "import time; time.sleep(60)")
        os.kill(pool.relay.workers[0], signal.SIGKILL)
        with trio.fail_after(20):
            assert await end_of(lost) in ("eof", "reset")
        await lost.aclose()
        consul.answer.set()
        with trio.fail_after(20):
            while pool.relay._asked:
                await trio.sleep(0.01)


async def test_streams_that_wait_when_the_gateway_drains_are_served() -> None:
    consul = Consul()
    async with backend(echo) as port, asking_pool(consul.lookup, port) as pool:
        clients = [await send_hello(pool) for _ in range(5)]
        await until_connecting(pool, 5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_relay, pool.relay, lambda: False, 60.0)
            with trio.fail_after(20):
                while pool.relay.addresses:
                    await trio.sleep(0.01)
            await until_connecting(pool, 5)
            consul.answer.set()
            with trio.fail_after(20):
                for client in clients:
                    assert await answer(client, len(HELLO)) == HELLO
                    await client.aclose()
        await until_idle(pool)


async def test_pool_that_ends_while_streams_wait_tells_them() -> None:
    consul = Consul()
    async with backend(echo) as port:
        async with asking_pool(consul.lookup, port) as pool:
            clients = [await send_hello(pool) for _ in range(5)]
            await until_connecting(pool, 5)
        for client in clients:
            assert await receive_all(client) == INTERNAL_ERROR
            await client.aclose()
    assert [refused.reason for refused in pool.watcher.refused] == [Reason.DRAINING] * 5
    assert pool.relay.workers == []


PARENT = f"""
import sys, trio
from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.worker_process import WorkerPolicy
from tests.adapters.relay.streams import WEB, Watcher, endpoint, table_of

POLICY = WorkerPolicy((sys.executable, "-c", {PATIENT!r}))

async def lookup(name):
    print(name, flush=True)
    await trio.sleep_forever()

async def main():
    limits = Limits(hello_timeout=60.0)
    pool = RelayPool(1, limits, Watcher(), 60.0, lookup=lookup, lookup_seconds=60.0, policy=POLICY)
    _, port = pool.bind("default", "127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.install(table_of({{WEB: [endpoint(int(sys.argv[1]))]}}, stale=[WEB]))
        pool.listen()
        while not (await pool._ask(streams=False)).reports:
            await trio.sleep(0.02)
        print(port, pool.workers[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_when_the_parent_is_gone_who_waits_is_placed_and_nobody_waits() -> None:
    def start(port: int) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", PARENT, str(port)], stdout=subprocess.PIPE, text=True)

    async with backend(echo) as backend_port:
        process = await trio.to_thread.run_sync(start, backend_port)
        assert process.stdout is not None
        with process:
            try:
                line = await trio.to_thread.run_sync(process.stdout.readline)
                port, worker = (int(word) for word in line.split())
                waits, late = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
                await late.send_all(HELLO[:50])
                await waits.send_all(HELLO)
                assert (await trio.to_thread.run_sync(process.stdout.readline)).strip() == WEB
            finally:
                process.kill()
            assert await answer(waits, len(HELLO)) == HELLO
            # Its hello is complete only now, and there is nobody to ask any more.
            await late.send_all(HELLO[50:])
            assert await answer(late, len(HELLO)) == HELLO
            for client in (waits, late):
                await client.aclose()
            await until_gone(worker, 20)
