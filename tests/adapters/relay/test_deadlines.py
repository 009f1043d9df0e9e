"""The wheel fires what is due, late by at most a tick, and keeps nothing of what was disarmed."""

from dataclasses import dataclass

from hypothesis import given, strategies as st

from meshgate.adapters.relay.reactor import TICK, Deadlines


@dataclass(eq=False)
class Thing:
    tick: int = 0

    def on_deadline(self) -> None: ...

    def on_defect(self) -> None: ...


def test_nothing_armed_means_no_next_look() -> None:
    deadlines = Deadlines()
    assert deadlines.next() == float("inf")
    assert deadlines.expire(1e9) == []


def test_moved_deadline_fires_once_at_its_new_time() -> None:
    deadlines, thing = Deadlines(), Thing()
    deadlines.arm(thing, 1.0)
    deadlines.arm(thing, 5.0)
    assert deadlines.expire(4.9) == []
    assert deadlines.expire(5.01 + TICK) == [thing]
    assert deadlines.expire(100.0) == []


def test_disarmed_thing_does_not_fire_and_disarming_twice_is_harmless() -> None:
    deadlines, thing = Deadlines(), Thing()
    deadlines.arm(thing, 1.0)
    deadlines.disarm(thing)
    deadlines.disarm(thing)
    assert deadlines.expire(10.0) == []


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50), st.lists(st.floats(0, 1001), max_size=20))
def test_each_fires_never_early_and_at_most_a_tick_late(times: list[float], looks: list[float]) -> None:
    deadlines = Deadlines()
    due = {id(thing := Thing()): (time, thing) for time in times}
    for time, thing in due.values():
        deadlines.arm(thing, time)
    for now in [*sorted(looks), 2000.0]:
        fired = {id(thing) for thing in deadlines.expire(now)}
        for key in fired:
            assert due.pop(key)[0] <= now
        assert all(time > now - TICK - 1e-6 for time, _ in due.values())
    assert not due
