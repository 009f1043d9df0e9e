"""Tasks by key, and what a start waits for."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from meshgate.adapters.consul.initial_sync import InitialSync, KeyedTasks


async def test_there_is_one_task_for_each_wanted_key(nursery: trio.Nursery) -> None:
    running: list[str] = []

    async def run(key: str) -> None:
        running.append(key)
        try:
            await trio.sleep_forever()
        finally:
            running.remove(key)

    tasks: KeyedTasks[str] = KeyedTasks(nursery)
    for wanted in ("ab", "bc", "bc", "", "a"):
        tasks.keep(wanted, run)
        await wait_all_tasks_blocked()
        assert sorted(running) == sorted(wanted)


async def test_a_task_that_is_no_longer_wanted_never_begins(nursery: trio.Nursery) -> None:
    begun: list[str] = []

    async def run(key: str) -> None:
        begun.append(key)

    tasks: KeyedTasks[str] = KeyedTasks(nursery)
    tasks.keep("ab", run)
    tasks.keep("b", run)
    await wait_all_tasks_blocked()
    assert begun == ["b"]


async def test_a_task_that_ended_is_not_begun_again(nursery: trio.Nursery) -> None:
    begun: list[str] = []

    async def run(key: str) -> None:
        begun.append(key)

    tasks: KeyedTasks[str] = KeyedTasks(nursery)
    for _ in range(3):
        tasks.keep("a", run)
        await wait_all_tasks_blocked()
    assert begun == ["a"]


async def test_a_start_waits_for_all_sources_those_that_come_late_among_them(autojump_clock: MockClock) -> None:
    sync = InitialSync("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.wait)
        await wait_all_tasks_blocked()
        sync.add("c")
        sync.mark("a")
        sync.mark("b")
        await wait_all_tasks_blocked()
        assert sync.missing == ["c"]
        assert len(nursery.child_tasks) == 1
        sync.mark("c")
        sync.mark("unknown")


async def test_after_the_start_nothing_is_expected(autojump_clock: MockClock) -> None:
    sync = InitialSync("a")
    sync.close()
    sync.add("b")
    assert sync.missing == []
    await sync.wait()


async def test_a_start_gives_up_what_is_slow_only_when_nothing_else_comes(autojump_clock: MockClock) -> None:
    sync = InitialSync("slow", *map(str, range(10)))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.wait, 5.0)
        for number in range(10):
            await trio.sleep(4)
            sync.mark(str(number))
            sync.mark("unknown")
    assert trio.current_time() - start == 40 + 5
    assert sync.missing == ["slow"]


async def test_who_tells_again_and_again_that_he_is_done_prolongs_nothing(autojump_clock: MockClock) -> None:
    sync = InitialSync("slow", "loud")
    with trio.move_on_after(60) as limit:
        async with trio.open_nursery() as nursery:

            async def tell() -> None:
                while True:
                    sync.mark("loud")
                    await trio.sleep(1)

            nursery.start_soon(tell)
            await sync.wait(5.0)
            nursery.cancel_scope.cancel()
    assert not limit.cancelled_caught
