"""The watch loop and its pace, on trio's mock clock."""

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul import WatchKey, WatchRegistry
from meshgate.adapters.consul.api import Cursor, InvalidAnswerError, Page
from meshgate.adapters.consul.watch import Watch

from .script import UNREACHABLE, Script, run


async def test_each_answer_is_the_place_to_go_on_from(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 5), Page("b", 8), Page("c", 8)])
    await run(script, 1.2)
    assert script.cursors == [0, 5, 8, 8]
    assert all(cursor.wait == 60.0 for _, cursor in script.asked)
    assert script.values == ["a", "b", "c"]


async def test_an_index_that_goes_backwards_starts_over(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 50), Page("b", 4), Page("c", 6), Page("d", 0)])
    await run(script, 2.2)
    assert script.cursors[:5] == [0, 50, 0, 6, 0]


async def test_an_index_of_zero_counts_as_one(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 0)])
    await run(script, 0.2)
    assert script.cursors == [0, 1]


async def test_a_hash_is_the_place_to_go_on_from_where_there_is_no_index(autojump_clock: MockClock) -> None:
    script = Script([Page("a", content_hash="x"), Page("b", content_hash="y"), Page("c")])
    await run(script, 1.2)
    assert [cursor.content_hash for _, cursor in script.asked] == ["", "x", "y", ""]
    assert script.cursors == [0, 0, 0, 0]


async def test_only_a_changed_value_is_handed_on(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 5), Page("a", 6), Page("b", 7), Page("b", 8), Page("a", 9)])
    await run(script, 5)
    assert script.values == ["a", "b", "a"]


async def test_answers_that_never_block_are_slowed_to_two_a_second(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 5)])
    await run(script, 60)
    assert script.times[:5] == [0, 0, 0.5, 1.0, 1.5]
    assert len(script.asked) <= 122


async def test_a_change_after_quiet_is_handed_on_without_a_wait(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 5), Page("a", 5), Page("b", 6), Page("b", 6)], hold=lambda cursor: cursor.index == 5)
    await run(script, 150)
    assert script.times[:4] == [0, 0, 60, 120]
    assert script.values == ["a", "b"]


async def test_a_poll_asks_once_an_interval(autojump_clock: MockClock) -> None:
    script = Script([Page("a"), Page("b")])
    await run(script, 95, interval=30.0)
    assert script.times == [0, 30, 60, 90]
    assert script.values == ["a", "b"]


async def test_failures_keep_the_value_and_the_next_query_does_not_block(autojump_clock: MockClock) -> None:
    script = Script([Page("a", 5), UNREACHABLE, UNREACHABLE, Page("a", 5), Page("b", 6)])
    await run(script, 20)
    assert script.cursors[:5] == [0, 5, 0, 0, 5]
    assert script.values == ["a", "b"]
    assert script.errors == ["cannot reach Consul"] * 2


async def test_a_list_is_asked_for_anew_when_the_token_is_replaced(autojump_clock: MockClock) -> None:
    version = 1
    registry = WatchRegistry(token_version=lambda: version, first_wait=60)
    minding, other = (Script([Page("a", 5), Page("b", 6)], hold=lambda cursor: cursor.blocks) for _ in range(2))
    async with trio.open_nursery() as nursery:
        watch = Watch(registry, WatchKey("kind", "list"), minding.ask, minding.values.append, minds_token=True)
        nursery.start_soon(watch.run)
        nursery.start_soon(other.watch(registry).run)
        await trio.sleep(20)
        version = 2
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert minding.values == ["a", "b"]
    assert minding.cursors == [0, 5, 0, 6]
    assert other.values == ["a"]


async def test_a_token_that_is_replaced_between_two_queries_has_the_next_one_ask_anew(
    autojump_clock: MockClock,
) -> None:
    version = 1
    registry = WatchRegistry(token_version=lambda: version, first_wait=60)
    script = Script([Page("a", 5), Page("a", 6), Page("b", 6)], hold=lambda cursor: cursor.index == 6)
    watch = Watch(
        registry, WatchKey("kind", "list"), script.ask, script.values.append, minds_token=True, pace=lambda: 20.0
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(5)
        assert script.cursors == [0, 5]
        version = 2
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert script.cursors == [0, 5, 0]
    assert script.values == ["a", "b"]


async def test_an_error_that_is_none_of_consul_ends_the_watch(autojump_clock: MockClock) -> None:
    async def broken(_: Cursor) -> Page[str]:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        await Watch(WatchRegistry(), WatchKey("kind", "it"), broken, lambda _: None).run()


async def test_cancelling_goes_through_a_request_and_a_pause(autojump_clock: MockClock) -> None:
    for script in (Script([Page("a", 1)], hold=lambda _: True), Script([InvalidAnswerError("x", "invalid")])):
        with trio.move_on_after(0.1) as scope:
            await script.watch(WatchRegistry()).run()
        assert scope.cancelled_caught
