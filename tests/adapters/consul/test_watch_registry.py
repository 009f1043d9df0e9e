"""When watches try again after failures, and what is told of them, on trio's mock clock."""

from contextlib import ExitStack
from itertools import pairwise

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import WatchKey, WatchRegistry
from meshgate.adapters.consul.api import (
    LONGEST_WAIT,
    BadRequestError,
    ConsulError,
    Cursor,
    NotFoundError,
    NotReadyError,
    Page,
    RateLimitedError,
    ServerError,
)
from meshgate.adapters.consul.watch import FIRST_WAIT, Watch

from .script import DENIED, UNREACHABLE, Script, run


async def test_waits_after_failures_grow_at_random_to_half_a_minute_and_start_anew(autojump_clock: MockClock) -> None:
    pauses: list[list[float]] = []
    for _ in range(30):
        script = Script([ServerError("500", "500")])
        await run(script, 300)
        pauses.append([later - at for at, later in pairwise(script.times)])
    for number, bound in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30]):
        drawn = [one[number] for one in pauses if len(one) > number]
        assert max(drawn) <= bound + 0.001
        assert max(drawn) > bound / 2
        assert min(drawn) < bound / 2
    script = Script([*[ServerError("500", "500")] * 6, Page("a", 5), ServerError("500", "500"), Page("a", 5)])
    await run(script, 120)
    first_pause_again = script.times[8] - script.times[7]
    assert first_pause_again <= 0.5 + 0.001


@pytest.mark.parametrize(
    "error",
    [
        RateLimitedError("429", "429"),
        BadRequestError("400", "400"),
        NotFoundError("404", "404"),
        ServerError("Federation states are currently disabled until all servers support it", "disabled"),
    ],
)
async def test_what_soon_again_cannot_help_is_asked_slowly(autojump_clock: MockClock, error: ConsulError) -> None:
    script = Script([error])
    await run(script, 200)
    for at, later in pairwise(script.times):
        assert 10 <= later - at <= 30


async def test_a_refused_token_is_tried_again_soon_and_then_slowly(autojump_clock: MockClock) -> None:
    script = Script([DENIED])
    await run(script, 300)
    pauses = [later - at for at, later in pairwise(script.times)]
    assert pauses[0] <= 1.001
    assert pauses[1] <= 2.001
    assert all(15 <= pause <= 30.001 for pause in pauses[6:])


async def test_a_token_that_a_starting_agent_does_not_know_yet_is_tried_again_soon(autojump_clock: MockClock) -> None:
    script = Script([*[UNREACHABLE] * 8, DENIED, DENIED, Page("a", 5)])
    await run(script, 200)
    assert script.times[9] - script.times[8] <= 1
    assert script.times[10] - script.times[9] <= 2


async def test_what_is_not_ready_is_asked_about_once_a_second(autojump_clock: MockClock) -> None:
    script = Script([NotReadyError("no trust domain", "not_ready")])
    await run(script, 60)
    assert 38 <= len(script.asked) <= 122


async def test_a_replaced_token_is_tried_at_once(autojump_clock: MockClock) -> None:
    version = 1
    script = Script([*[DENIED] * 8, Page("a", 5)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.watch(WatchRegistry(token_version=lambda: version)).run)
        while len(script.asked) < 8:
            await trio.sleep(1)
        refused = trio.current_time()
        version = 2
        while not script.values:
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - refused <= 1.2


async def test_after_an_outage_all_watches_return_with_the_first(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    down = False

    async def ask(cursor: Cursor) -> Page[str]:
        with trio.move_on_after(cursor.wait if cursor.blocks else 0):
            while not down:
                await trio.sleep(0.1)
        if down:
            raise UNREACHABLE
        return Page("a", 5)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(Watch(registry, WatchKey("kind", str(number)), ask, lambda _: None).run)
        await trio.sleep(5)
        down = True
        await trio.sleep(300)
        assert all(state.failures for state in registry.states())
        down = False
        while all(state.failures for state in registry.states()):
            await trio.sleep(0.01)
        first = trio.current_time()
        while any(state.failures for state in registry.states()):
            await trio.sleep(0.01)
        assert trio.current_time() - first <= 0.5
        nursery.cancel_scope.cancel()


async def test_one_connection_of_many_that_fails_is_no_outage(autojump_clock: MockClock) -> None:
    """Consul 1.8 resets connections beyond its limit: those must not hurry because another one works."""
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    good = [Script([Page("a", 5)], hold=lambda cursor: cursor.blocks) for _ in range(5)]
    flapping = Script([UNREACHABLE, Page("a", 5)] * 100)
    failing = Script([UNREACHABLE])
    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            for number, script in enumerate((*good, flapping, failing)):
                nursery.start_soon(script.watch(registry, str(number)).run)
    assert len(failing.asked) < 60


async def test_a_poll_does_not_sit_out_its_interval_after_an_outage(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    poll = Script([Page("a"), Page("b")])
    other = Script([*[UNREACHABLE] * 3, Page("x", 5)], hold=lambda cursor: cursor.blocks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: poll.watch(registry, interval=1000.0).run())
        nursery.start_soon(other.watch(registry, "other").run)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert poll.values == ["a", "b"]


async def test_the_state_tells_how_the_watch_is_doing(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    script = Script([Page("a", 5), DENIED, DENIED, DENIED, Page("b", 7)], hold=lambda cursor: cursor.blocks)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.watch(registry).run)
        await trio.sleep(1)
        (state,) = registry.states()
        assert (state.key, state.index, state.error, state.failures) == (WatchKey("kind", "it"), 5, "", 0)
        assert state.age(trio.current_time()) == pytest.approx(1)
        while state.failures < 3:
            await trio.sleep(0.1)
        assert (state.status, state.error, state.index) == ("403", "not permitted: Permission denied", 5)
        assert state.failing_since == pytest.approx(start + 60)
        assert state.last_success == pytest.approx(start, abs=0.1)
        await trio.sleep(30)
        assert (state.status, state.error, state.index, state.failing_since) == ("", "", 7, None)
        nursery.cancel_scope.cancel()
    assert registry.states() == []


async def test_the_age_of_a_watch_that_never_succeeded_counts_from_its_start(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Script([DENIED]).watch(registry).run)
        await trio.sleep(50)
        assert registry.states()[0].age(trio.current_time()) == pytest.approx(50)
        nursery.cancel_scope.cancel()


async def test_a_failure_is_logged_once_for_each_change_of_error_and_once_when_it_ends(
    autojump_clock: MockClock,
) -> None:
    script = Script([Page("a", 1), DENIED, DENIED, DENIED, UNREACHABLE, UNREACHABLE, Page("a", 1)])
    script.hold = lambda cursor: cursor.blocks and len(script.asked) > 6
    with capture_logs() as logs:
        await run(script, 200)
    assert [(entry["log_level"], entry.get("error")) for entry in logs] == [
        ("warning", "not permitted: Permission denied"),
        ("warning", "cannot reach Consul"),
        ("info", None),
    ]


async def test_an_outage_of_all_watches_is_one_line_and_so_is_its_end(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    with capture_logs() as logs, trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                script = Script([UNREACHABLE, Page("a", 1)], hold=lambda cursor: cursor.blocks)
                nursery.start_soon(script.watch(registry, name=str(number)).run)
    assert [entry["log_level"] for entry in logs if entry["log_level"] != "debug"] == ["warning", "info"]


async def test_while_an_outage_of_many_watches_lasts_one_line_repeats_it(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    with capture_logs() as logs, trio.move_on_after(3000):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(Script([Page("a", 1), UNREACHABLE]).watch(registry, name=str(number)).run)
    first, *again = [entry for entry in logs if entry["log_level"] == "warning"]
    assert first["event"] == "Consul watch fails, retrying; what is known stays in use"
    assert {entry["event"] for entry in again} == {"Consul still fails, retrying; what is known stays in use"}
    assert {(entry["error"], entry["watches"]) for entry in again} == {("cannot reach Consul", 10)}
    ages = [entry["failing_for"] for entry in again]
    assert all(60 <= later - before < 100 for before, later in pairwise([0, *ages]) if later <= 600)
    assert all(600 <= later - before < 640 for before, later in pairwise(ages) if later > 700)
    assert 9 <= len(ages) <= 14


async def test_a_watch_that_fails_from_the_start_does_not_say_that_anything_is_known(
    autojump_clock: MockClock,
) -> None:
    with capture_logs() as logs:
        await run(Script([UNREACHABLE]), 3)
        await run(Script([Page("a", 1), UNREACHABLE]), 3)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "cannot read from Consul yet, retrying",
        "Consul watch fails, retrying; what is known stays in use",
    ]


async def test_what_is_only_swept_neither_hides_nor_makes_an_outage(autojump_clock: MockClock) -> None:
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    for number in range(20):
        registry.register(WatchKey("health", f"swept{number}")).swept = True
    script = Script([UNREACHABLE, UNREACHABLE, Page("a", 1)])
    script.hold = lambda cursor: cursor.blocks
    recovered = trio.Event()

    async def wait() -> None:
        await registry.recovery()
        recovered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(script.watch(registry).run)
        with trio.fail_after(60):
            await recovered.wait()
        nursery.cancel_scope.cancel()


async def test_queries_are_held_longer_the_longer_the_process_runs_and_many_for_seconds(
    autojump_clock: MockClock,
) -> None:
    """What a process leaves behind with Consul 1.8 is gone soon after it, so restarts do not use up its connections."""
    registry = WatchRegistry()
    waits = []
    for _ in range(5):
        waits.append(registry.longest_wait())
        await trio.sleep(60)
    assert waits == [FIRST_WAIT, 15, 30, 45, 60]
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(registry.asking())
        assert registry.longest_wait() == 10
        registry.streaming = True
        assert registry.longest_wait() == 300
    script = Script([Page("a", 5), Page("b", 6)], hold=lambda cursor: cursor.blocks)
    waits = []

    async def ask(cursor: Cursor) -> Page[str]:
        waits.append(cursor.wait)
        return await script.ask(cursor)

    with trio.move_on_after(30):
        await Watch(registry, WatchKey("kind", "it"), ask, lambda _: None, wait=lambda: 7).run()
    assert set(waits) == {7}


async def test_watches_of_another_program_go_on_failing_and_are_asked_anew(autojump_clock: MockClock) -> None:
    key, other = WatchKey("roots", "roots"), WatchKey("services", "names")
    before = WatchRegistry()
    with before.registered(key) as failing, before.registered(other) as works:
        before.succeeded(failing)
        await trio.sleep(10)
        before.failed(failing, UNREACHABLE)
        before.succeeded(works)
        await trio.sleep(20)
        left = before.left()
    await trio.sleep(1)
    registry = WatchRegistry()
    registry.remember(left)
    now = trio.current_time()
    state = registry.register(key)
    assert state.age(now) == pytest.approx(30)
    assert state.failing_since == pytest.approx(now - 20)
    assert (state.error, state.status, state.failures) == (str(UNREACHABLE), UNREACHABLE.status, 1)
    assert not registry.answered(key)
    assert registry.register(other).age(now) == pytest.approx(20)
    assert registry.register(WatchKey("new")).age(now) == 0
    # Its first answer ends the failure, of which nothing is left for another one.
    registry.succeeded(state)
    assert (state.error, state.failing_since) == ("", None)
    assert registry.register(key).error == ""
