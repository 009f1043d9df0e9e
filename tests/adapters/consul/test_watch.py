"""The watch loop, its waits and its pace, on trio's mock clock."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import (
    BadRequestError,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    InvalidAnswerError,
    NotFoundError,
    NotReadyError,
    Page,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    WatchHub,
)
from meshgate.adapters.consul.watch import Watch

UNREACHABLE = ConsulUnreachableError("cannot reach Consul", "unreachable")
DENIED = PermissionDeniedError("Permission denied")

Step = Page[str] | ConsulError


@dataclass
class Script:
    """Answers by a script, at once; the last step repeats. Records when it was asked and with what."""

    steps: list[Step]
    asked: list[tuple[float, Cursor]] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hold: Callable[[Cursor], bool] = lambda cursor: False

    async def ask(self, cursor: Cursor) -> Page[str]:
        self.asked.append((trio.current_time(), cursor))
        await trio.sleep(cursor.wait if self.hold(cursor) else 0)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, ConsulError):
            raise step
        return step

    def watch(self, hub: WatchHub, name: str = "it", **options: float) -> Watch[str]:
        return Watch(hub, "kind", name, self.ask, self.values.append, on_error=lambda e: self.errors.append(str(e)), **options)

    @property
    def times(self) -> list[float]:
        start = self.asked[0][0]
        return [round(at - start, 3) for at, _ in self.asked]

    @property
    def cursors(self) -> list[int]:
        return [cursor.index for _, cursor in self.asked]


async def run(script: Script, seconds: float, hub: WatchHub | None = None, **options: float) -> None:
    with trio.move_on_after(seconds):
        await script.watch(hub or WatchHub(), **options).run()


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


async def test_waits_after_failures_grow_at_random_to_half_a_minute_and_start_anew(autojump_clock: MockClock) -> None:
    pauses: list[list[float]] = []
    for _ in range(30):
        script = Script([ServerError("500", "500")])
        await run(script, 300)
        pauses.append([later - at for at, later in zip(script.times, script.times[1:], strict=False)])
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
        ServerError("Federation states are currently disabled until all servers support it", "500"),
    ],
)
async def test_what_soon_again_cannot_help_is_asked_slowly(autojump_clock: MockClock, error: ConsulError) -> None:
    script = Script([error])
    await run(script, 200)
    for at, later in zip(script.times, script.times[1:], strict=False):
        assert 10 <= later - at <= 30


async def test_a_refused_token_is_tried_again_soon_and_then_slowly(autojump_clock: MockClock) -> None:
    script = Script([DENIED])
    await run(script, 300)
    pauses = [later - at for at, later in zip(script.times, script.times[1:], strict=False)]
    assert pauses[0] <= 1.001
    assert pauses[1] <= 2.001
    assert all(15 <= pause <= 30.001 for pause in pauses[6:])


async def test_what_is_not_ready_is_asked_about_once_a_second(autojump_clock: MockClock) -> None:
    script = Script([NotReadyError("no trust domain", "not_ready")])
    await run(script, 60)
    assert 38 <= len(script.asked) <= 122


async def test_a_replaced_token_is_tried_at_once(autojump_clock: MockClock) -> None:
    version = 1
    script = Script([*[DENIED] * 8, Page("a", 5)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.watch(WatchHub(token_version=lambda: version)).run)
        while len(script.asked) < 8:
            await trio.sleep(1)
        refused = trio.current_time()
        version = 2
        while not script.values:
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - refused <= 1.2


async def test_after_an_outage_all_watches_return_with_the_first(autojump_clock: MockClock) -> None:
    hub = WatchHub()
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
            nursery.start_soon(Watch(hub, "kind", str(number), ask, lambda _: None).run)
        await trio.sleep(5)
        down = True
        await trio.sleep(300)
        assert all(state.failures for state in hub.states())
        down = False
        while all(state.failures for state in hub.states()):
            await trio.sleep(0.01)
        first = trio.current_time()
        while any(state.failures for state in hub.states()):
            await trio.sleep(0.01)
        assert trio.current_time() - first <= 0.5
        nursery.cancel_scope.cancel()


async def test_one_connection_of_many_that_fails_is_no_outage(autojump_clock: MockClock) -> None:
    """Consul 1.8 resets connections beyond its limit: those must not hurry because another one works."""
    hub = WatchHub()
    good = [Script([Page("a", 5)], hold=lambda cursor: cursor.blocks) for _ in range(5)]
    flapping = Script([UNREACHABLE, Page("a", 5)] * 100)
    failing = Script([UNREACHABLE])
    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            for script in (*good, flapping, failing):
                nursery.start_soon(script.watch(hub).run)
    assert len(failing.asked) < 60


async def test_a_poll_does_not_sit_out_its_interval_after_an_outage(autojump_clock: MockClock) -> None:
    hub = WatchHub()
    poll = Script([Page("a"), Page("b")])
    other = Script([*[UNREACHABLE] * 3, Page("x", 5)], hold=lambda cursor: cursor.blocks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: poll.watch(hub, interval=1000.0).run())
        nursery.start_soon(other.watch(hub).run)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert poll.values == ["a", "b"]


async def test_the_state_tells_how_the_watch_is_doing(autojump_clock: MockClock) -> None:
    hub = WatchHub()
    script = Script([Page("a", 5), DENIED, DENIED, DENIED, Page("b", 7)], hold=lambda cursor: cursor.blocks)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.watch(hub).run)
        await trio.sleep(1)
        (state,) = hub.states()
        assert (state.kind, state.name, state.index, state.error, state.failures) == ("kind", "it", 5, "", 0)
        assert state.age(trio.current_time()) == pytest.approx(1)
        while state.failures < 3:
            await trio.sleep(0.1)
        assert (state.status, state.error, state.index) == ("403", "not permitted: Permission denied", 5)
        assert state.failing_since == pytest.approx(start + 60)
        assert state.last_success == pytest.approx(start, abs=0.1)
        await trio.sleep(30)
        assert (state.status, state.error, state.index, state.failing_since) == ("", "", 7, None)
        nursery.cancel_scope.cancel()
    assert hub.states() == []


async def test_the_age_of_a_watch_that_never_succeeded_counts_from_its_start(autojump_clock: MockClock) -> None:
    hub = WatchHub()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Script([DENIED]).watch(hub).run)
        await trio.sleep(50)
        assert hub.states()[0].age(trio.current_time()) == pytest.approx(50)
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
    hub = WatchHub()
    with capture_logs() as logs, trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                script = Script([UNREACHABLE, Page("a", 1)], hold=lambda cursor: cursor.blocks)
                nursery.start_soon(script.watch(hub, name=str(number)).run)
    assert [entry["log_level"] for entry in logs if entry["log_level"] != "debug"] == ["warning", "info"]


async def test_an_error_that_is_none_of_consul_ends_the_watch(autojump_clock: MockClock) -> None:
    async def broken(_: Cursor) -> Page[str]:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        await Watch(WatchHub(), "kind", "it", broken, lambda _: None).run()


async def test_cancelling_goes_through_a_request_and_a_pause(autojump_clock: MockClock) -> None:
    for script in (Script([Page("a", 1)], hold=lambda _: True), Script([InvalidAnswerError("x", "invalid")])):
        with trio.move_on_after(0.1) as scope:
            await script.watch(WatchHub()).run()
        assert scope.cancelled_caught
