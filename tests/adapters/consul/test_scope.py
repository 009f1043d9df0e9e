"""Watches by key, and what a start waits for."""

from collections.abc import Awaitable, Callable

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from meshgate.adapters.consul import WatchKey
from meshgate.adapters.consul.scope import InitialSync, KeyedWatches


def expecting(*names: str) -> InitialSync:
    sync = InitialSync()
    for name in names:
        sync.add(WatchKey("source", name))
    return sync


def keyed(
    run: Callable[[str, list[str]], Awaitable[object]], sync: InitialSync | None = None
) -> KeyedWatches[str, list[str]]:
    return KeyedWatches(sync or InitialSync(), lambda key: WatchKey("source", key), lambda key: [key], run)


async def follow(watches: KeyedWatches[str, list[str]]) -> None:
    async with watches.followed():
        await trio.sleep_forever()


async def test_there_is_one_task_for_each_wanted_key_from_the_beginning_of_the_run(nursery: trio.Nursery) -> None:
    running: list[str] = []

    async def run(key: str, thing: list[str]) -> None:
        assert thing == [key]
        running.append(key)
        try:
            await trio.sleep_forever()
        finally:
            running.remove(key)

    watches = keyed(run)
    watches.keep("xa")
    assert running == []
    nursery.start_soon(follow, watches)
    for wanted in ("ab", "bc", "bc", "", "a"):
        watches.keep(wanted)
        await wait_all_tasks_blocked()
        assert sorted(running) == sorted(watches) == sorted(wanted)
    nursery.cancel_scope.cancel()


async def test_a_thing_lives_as_long_as_its_key_is_wanted(nursery: trio.Nursery) -> None:
    async def run(key: str, thing: list[str]) -> None:
        thing.append("followed")

    watches = keyed(run)
    nursery.start_soon(follow, watches)
    watches.keep("a")
    await wait_all_tasks_blocked()
    first = watches["a"]
    watches.keep("ab")
    assert watches["a"] is first
    assert first == ["a", "followed"]
    watches.keep("b")
    watches.keep("ab")
    assert watches["a"] is not first


async def test_a_task_that_is_no_longer_wanted_never_begins(nursery: trio.Nursery) -> None:
    begun: list[str] = []

    async def run(key: str, _: list[str]) -> None:
        begun.append(key)

    watches = keyed(run)
    nursery.start_soon(follow, watches)
    await wait_all_tasks_blocked()
    watches.keep("ab")
    watches.keep("b")
    await wait_all_tasks_blocked()
    assert begun == ["b"]


async def test_a_task_that_ended_is_not_begun_again(nursery: trio.Nursery) -> None:
    begun: list[str] = []

    async def run(key: str, _: list[str]) -> None:
        begun.append(key)

    watches = keyed(run)
    nursery.start_soon(follow, watches)
    for _ in range(3):
        watches.keep("a")
        await wait_all_tasks_blocked()
    assert begun == ["a"]


async def test_the_start_waits_for_each_key_as_long_as_it_is_wanted() -> None:
    async def run(key: str, thing: list[str]) -> None:
        await trio.sleep_forever()

    sync = InitialSync()
    watches = keyed(run, sync)
    watches.keep("ab")
    assert sync.missing == ["a", "b"]
    watches.keep("b")
    assert sync.missing == ["b"]


async def test_a_start_waits_for_all_sources_those_that_come_late_among_them(autojump_clock: MockClock) -> None:
    sync = expecting("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.wait)
        await wait_all_tasks_blocked()
        sync.add(WatchKey("source", "c"))
        sync.mark(WatchKey("source", "a"))
        sync.mark(WatchKey("source", "b"))
        await wait_all_tasks_blocked()
        assert sync.missing == ["c"]
        assert len(nursery.child_tasks) == 1
        sync.mark(WatchKey("source", "c"))
        sync.mark(WatchKey("source", "unknown"))


async def test_after_the_start_nothing_is_expected(autojump_clock: MockClock) -> None:
    sync = expecting("a")
    sync.close()
    sync.add(WatchKey("source", "b"))
    assert sync.missing == []
    await sync.wait()


async def test_a_start_gives_up_what_is_slow_only_when_nothing_else_comes(autojump_clock: MockClock) -> None:
    sync = expecting("slow", *map(str, range(10)))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.wait, 5.0)
        for number in range(10):
            await trio.sleep(4)
            sync.mark(WatchKey("source", str(number)))
            sync.mark(WatchKey("source", "unknown"))
    assert trio.current_time() - start == 40 + 5
    assert sync.missing == ["slow"]


async def test_who_tells_again_and_again_that_he_is_done_prolongs_nothing(autojump_clock: MockClock) -> None:
    sync = expecting("slow", "loud")
    with trio.move_on_after(60) as limit:
        async with trio.open_nursery() as nursery:

            async def tell() -> None:
                while True:
                    sync.mark(WatchKey("source", "loud"))
                    await trio.sleep(1)

            nursery.start_soon(tell)
            await sync.wait(5.0)
            nursery.cancel_scope.cancel()
    assert not limit.cancelled_caught
