"""The budget of blocking queries, on trio's mock clock."""

from itertools import pairwise

import trio
from trio.testing import MockClock

from meshgate.adapters.consul import GatewayDefinition, Registrar, WatchKey, WatchRegistry
from meshgate.adapters.consul.api import LONGEST_WAIT, Cursor
from meshgate.adapters.consul.blocking_query_pool import RESERVED, ROTATION_WAIT, BlockingQueryPool
from meshgate.adapters.consul.watch import Watch

from .model import Model, sidecar


async def follow(model: Model, pool: BlockingQueryPool, names: list[str], seconds: float) -> dict[str, list[float]]:
    """Watch the services for some time; when each was looked at."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(one, pool, name)
    return {name: model.times(f"connect_instances:{name}") for name in names}


async def one(pool: BlockingQueryPool, name: str) -> None:
    async def ask(cursor: Cursor):  # type: ignore[no-untyped-def]
        async with pool.slot(cursor) as reader:
            return await reader.connect_instances(name, cursor)

    with pool.registered():
        await Watch(
            WatchRegistry(first_wait=LONGEST_WAIT), WatchKey("health", name), ask, lambda _: None, wait=pool.wait
        ).run()


def names(number: int) -> list[str]:
    return [f"s{index:03}" for index in range(number)]


async def test_within_the_budget_each_watch_holds_a_query_for_the_full_wait(autojump_clock: MockClock) -> None:
    model = Model()
    async with BlockingQueryPool(model, budget=RESERVED + 20) as pool:
        looks = await follow(model, pool, names(20), 200)
        assert model.most_held == 20
        assert set(model.waits) == {60.0}
        assert max(len(times) for times in looks.values()) == 5
    assert model.connections == 0


async def test_over_the_budget_watches_take_turns_fairly(autojump_clock: MockClock) -> None:
    model = Model()
    async with BlockingQueryPool(model, budget=RESERVED + 10) as pool:
        looks = await follow(model, pool, names(50), 200)
    assert model.most_held == 10
    assert model.most_connections == 10
    assert set(model.waits) == {ROTATION_WAIT}
    longest = max(later - at for times in looks.values() for at, later in pairwise(times))
    assert longest <= 50 / 10 * ROTATION_WAIT + 1
    counts = [len(times) for times in looks.values()]
    assert max(counts) - min(counts) <= 2


async def test_first_reads_do_not_wait_for_a_turn(autojump_clock: MockClock) -> None:
    model = Model()
    async with BlockingQueryPool(model, budget=RESERVED + 1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(one, pool, "a")
        await trio.sleep(1)
        assert model.held == 1
        nursery.start_soon(one, pool, "b")
        await trio.sleep(0.1)
        assert model.count("connect_instances:b") == 1
        nursery.cancel_scope.cancel()


async def test_when_watches_end_the_rest_hold_their_queries_again(autojump_clock: MockClock) -> None:
    model = Model()
    async with BlockingQueryPool(model, budget=RESERVED + 5) as pool:
        await follow(model, pool, names(10), 20)
        model.waits.clear()
        await follow(model, pool, names(5), 100)
    assert set(model.waits) == {60.0}
    assert model.most_connections == 5


async def test_a_budget_that_is_too_small_still_leaves_one_query(autojump_clock: MockClock) -> None:
    model = Model(connect={"s000": (sidecar("s000"),)})
    async with BlockingQueryPool(model, budget=1) as pool:
        looks = await follow(model, pool, names(3), 60)
    assert model.most_held == 1
    assert min(len(times) for times in looks.values()) >= 8


async def test_a_connection_of_ones_own_counts_in_the_budget(autojump_clock: MockClock) -> None:
    model = Model()
    async with BlockingQueryPool(model, budget=RESERVED + 6) as pool, pool.dedicated(), pool.dedicated():
        await follow(model, pool, names(12), 30)
        assert model.most_connections == 6
        assert model.most_held == 4
        assert pool.capacity_for(0) == 4
    assert model.connections == 0
    async with BlockingQueryPool(model, budget=RESERVED + 6) as pool:
        assert pool.capacity_for(0) == 6


async def test_the_registration_and_what_comes_late_are_within_the_budget(autojump_clock: MockClock) -> None:
    model = Model()
    registrar = Registrar(model, WatchRegistry(), GatewayDefinition())
    async with BlockingQueryPool(model, budget=20) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        nursery.start_soon(registrar.follow_limits)
        await follow(model, pool, names(30), 30)
        async with pool.dedicated(), pool.dedicated():  # Of the servers and the summaries.
            assert model.connections == 20
        nursery.cancel_scope.cancel()


async def test_the_room_is_what_others_leave(autojump_clock: MockClock) -> None:
    async with BlockingQueryPool(Model(), budget=RESERVED + 6) as pool:
        with pool.registered(), pool.registered():
            assert (pool.capacity_for(0), pool.capacity_for(1), pool.capacity_for(2)) == (4, 5, 6)
        async with pool.dedicated(), pool.dedicated(), pool.dedicated():
            with pool.registered():
                assert pool.capacity_for(0) == 2


async def test_a_query_may_be_held_for_less_where_that_is_wanted(autojump_clock: MockClock) -> None:
    async with BlockingQueryPool(Model(), budget=RESERVED + 1) as pool:
        with pool.registered():
            assert pool.wait(7.5) == 7.5
            with pool.registered():
                assert pool.wait(7.5) == ROTATION_WAIT
