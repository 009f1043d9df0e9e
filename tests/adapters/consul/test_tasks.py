"""Tasks by key, and what a start waits for."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from meshgate.adapters.consul.tasks import KeyedTasks, Progress


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
    progress = Progress("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.settled)
        await wait_all_tasks_blocked()
        progress.expect("c")
        progress.done("a")
        progress.done("b")
        await wait_all_tasks_blocked()
        assert progress.missing == ["c"]
        assert len(nursery.child_tasks) == 1
        progress.done("c")
        progress.done("unknown")


async def test_after_the_start_nothing_is_expected(autojump_clock: MockClock) -> None:
    progress = Progress("a")
    progress.close()
    progress.expect("b")
    assert progress.missing == []
    await progress.settled()


async def test_a_start_gives_up_what_is_slow_only_when_nothing_else_comes(autojump_clock: MockClock) -> None:
    progress = Progress("slow", *map(str, range(10)))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.settled, 5.0)
        for number in range(10):
            await trio.sleep(4)
            progress.done(str(number))
            progress.done("unknown")
    assert trio.current_time() - start == 40 + 5
    assert progress.missing == ["slow"]


async def test_who_tells_again_and_again_that_he_is_done_prolongs_nothing(autojump_clock: MockClock) -> None:
    progress = Progress("slow", "loud")
    with trio.move_on_after(60) as limit:
        async with trio.open_nursery() as nursery:

            async def tell() -> None:
                while True:
                    progress.done("loud")
                    await trio.sleep(1)

            nursery.start_soon(tell)
            await progress.settled(5.0)
            nursery.cancel_scope.cancel()
    assert not limit.cancelled_caught
