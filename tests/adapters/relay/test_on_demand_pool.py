"""The parent looks names up for its workers: one question for all of them, and an answer whatever becomes of it."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import structlog
import trio

from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.core.reasons import Reason

from .streams import (
    TRUST_DOMAIN,
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    named,
    receive_all,
    receive_exactly,
    reset,
    table_of,
)
from .test_pool import UNRECOGNIZED_NAME, Pool, pool_of

HELLO = hello_for(WEB)
UNKNOWN = f"wbe.default.dc1.internal.{TRUST_DOMAIN}"

# A worker whose streams wait until they are told, and that asks as often as it is let.
PATIENT = """
import runpy
from meshgate.adapters.relay.on_demand import OnDemand
OnDemand.__init__.__defaults__ = (60.0, 0.0)
runpy.run_module("meshgate.adapters.relay.worker", run_name="__main__")
"""


class Consul:
    """What the parent asks; says nothing until `answer`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = trio.Event()

    async def lookup(self, name: str) -> None:
        self.asked.append(name)
        await self.answer.wait()


@asynccontextmanager
async def asking_pool(
    lookup: Callable[[str], Awaitable[None]],
    port: int,
    workers: int = 2,
    cold: Collection[str] = (WEB,),
    seconds: float = 60.0,
) -> AsyncIterator[Pool]:
    """A pool whose table has WEB, which is cold. Nothing but a test ends a wait, unless `seconds` are over."""
    policy = WorkerPolicy((sys.executable, "-c", PATIENT))
    async with pool_of({}, workers, policy=policy, lookup=lookup, lookup_seconds=seconds) as pool:
        pool.relay.install(table_of({WEB: [endpoint(port)]}, stale=cold))
        await pool.until_workers(workers)
        yield pool


async def send_hello(pool: Pool, name: str = WEB) -> trio.SocketStream:
    client = await pool.dial()
    await client.send_all(HELLO if name == WEB else hello_for(name))
    return client


async def until_connecting(pool: Pool, count: int) -> set[int]:
    """Wait until so many streams wait, and all of them do; the workers that have them, whose questions are heard."""
    with trio.fail_after(20):
        while True:
            streams = (await pool.relay.connections()).listed
            workers = {stream.worker for stream in streams}
            # That a worker's streams wait may be heard before its question is.
            asked = {worker.number for waiting in pool.relay._asked.values() for worker, _ in waiting}
            if [stream.state for stream in streams] == ["connecting"] * count and workers <= asked:
                return workers
            await trio.sleep(0.02)


async def until_idle(pool: Pool) -> None:
    with trio.fail_after(20):
        while (await pool.relay.counters()).active:
            await trio.sleep(0.02)
    assert pool.relay._asked == {}


async def answer(client: trio.SocketStream, count: int) -> bytes:
    with trio.fail_after(20):
        return await receive_exactly(client, count)


async def test_streams_of_all_workers_make_one_question_and_go_where_its_answer_says() -> None:
    consul = Consul()
    async with (
        backend(named(b"old")) as old,
        backend(named(b"new")) as new,
        asking_pool(consul.lookup, old) as pool,
    ):
        clients: list[trio.SocketStream] = []
        with trio.fail_after(60):
            while await until_connecting(pool, len(clients)) != {0, 1}:
                # At once, so that there are some left for the worker that comes second.
                batch = [await pool.dial() for _ in range(20)]
                for client in batch:
                    await client.send_all(HELLO)
                clients += batch
        assert consul.asked == [WEB]
        pool.relay.install(table_of({WEB: [endpoint(new)]}))
        consul.answer.set()
        for client in clients:
            assert await answer(client, 3) == b"new"
            await client.aclose()
        await until_idle(pool)
        assert consul.asked == [WEB]
        assert pool.watcher.refused == []
        assert (await pool.relay.counters()).on_demand == len(clients)


async def test_unknown_name_is_served_if_it_is_found_and_refused_if_not() -> None:
    async def lookup(name: str) -> None:
        if name == WEB:
            pool.relay.install(table_of({WEB: [endpoint(port)]}))

    async with backend(echo) as port, pool_of({"x.td": []}, lookup=lookup) as pool:
        async with await send_hello(pool) as client:
            assert await answer(client, len(HELLO)) == HELLO
        async with await send_hello(pool, UNKNOWN) as client:
            with trio.fail_after(20):
                assert await receive_all(client) == UNRECOGNIZED_NAME
        assert (await pool.relay.counters()).refused == {Reason.UNKNOWN_SNI: 1}
        await until_idle(pool)


async def test_lookup_that_hangs_is_not_waited_for() -> None:
    consul = Consul()
    async with backend(echo) as port, asking_pool(consul.lookup, port, seconds=0.2) as pool:
        for count in range(1, 4):
            async with await send_hello(pool) as client:
                assert await answer(client, len(HELLO)) == HELLO
            assert consul.asked == [WEB] * count
        await until_idle(pool)


async def test_lookup_that_fails_is_logged_and_the_stream_placed_by_what_is_known() -> None:
    async def lookup(name: str) -> None:
        raise ValueError(f"no sense in {name}")

    with structlog.testing.capture_logs() as logs:
        async with backend(echo) as port, asking_pool(lookup, port) as pool:
            workers = pool.relay.workers
            for _ in range(3):
                async with await send_hello(pool) as client:
                    assert await answer(client, len(HELLO)) == HELLO
            assert pool.relay.workers == workers
            await until_idle(pool)
    assert [(entry["sni"], entry["log_level"]) for entry in logs if "internal error" in entry["event"]] == [
        (WEB, "error")
    ] * 3


async def test_lookup_that_fails_each_time_does_not_fill_the_log() -> None:
    async def lookup(name: str) -> None:
        raise ValueError(name)

    with structlog.testing.capture_logs() as logs:
        async with backend(echo) as port, asking_pool(lookup, port) as pool:
            for _ in range(40):
                async with await send_hello(pool) as client:
                    assert await answer(client, len(HELLO)) == HELLO
    assert 0 < len([entry for entry in logs if "internal error" in entry["event"]]) < 30


async def test_clients_that_come_and_go_make_one_question() -> None:
    consul = Consul()
    async with backend(echo) as port, asking_pool(consul.lookup, port, workers=1) as pool:
        for _ in range(50):
            reset(await send_hello(pool))
        kept = await send_hello(pool)
        await until_connecting(pool, 1)
        assert consul.asked == [WEB]
        consul.answer.set()
        assert await answer(kept, len(HELLO)) == HELLO
        await kept.aclose()
        await until_idle(pool)


async def test_answer_that_was_made_before_somebody_asked_is_none_to_him() -> None:
    """A stranger asks for the very name, and the service is registered while Consul's answer is on its way."""
    asked: list[str] = []
    answers = [trio.Event(), trio.Event()]

    async def learn(name: str) -> None:
        asked.append(name)
        await answers[len(asked) - 1].wait()
        if len(asked) == 2:
            pool.relay.install(table_of({WEB: [endpoint(port)]}))

    async with backend(echo) as port, pool_of({"x.td": []}, 1, lookup=learn, lookup_seconds=60.0) as pool:
        with trio.socket.socket() as stranger:
            await stranger.bind(("127.0.0.7", 0))
            await stranger.connect(("127.0.0.1", pool.port))
            await stranger.send(HELLO)
            await until_connecting(pool, 1)
            async with await send_hello(pool) as client:
                with trio.fail_after(20):
                    while len(pool.relay._asked.get(WEB, ())) < 2:
                        await trio.sleep(0.01)
                answers[0].set()
                with trio.fail_after(20):
                    assert await stranger.recv(100) == UNRECOGNIZED_NAME
                answers[1].set()
                assert await answer(client, len(HELLO)) == HELLO
        assert asked == [WEB, WEB]
        await until_idle(pool)


async def test_lookup_that_is_given_up_says_nothing_of_a_name_without_a_route() -> None:
    """Consul is slow. The stream waits on, and is served when the route comes by another way."""
    consul = Consul()
    async with backend(echo) as port, pool_of({"x.td": []}, 1, lookup=consul.lookup, lookup_seconds=0.05) as pool:
        async with await send_hello(pool) as client:
            with trio.fail_after(20):
                while not consul.asked or pool.relay._asked:
                    await trio.sleep(0.01)
            # The worker hears of it in this order: whatever the parent had to say of the lookup, and then the route.
            pool.relay.install(table_of({WEB: [endpoint(port)]}))
            assert await answer(client, len(HELLO)) == HELLO
        assert (await pool.relay.counters()).refused == {}
        await until_idle(pool)
