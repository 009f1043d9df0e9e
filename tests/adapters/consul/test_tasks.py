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
