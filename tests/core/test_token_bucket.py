"""How often something may be done: never more than said in any stretch of time, and all that was said at once."""

import pytest
from hypothesis import given, strategies as st

from meshgate.core.token_bucket import ClientBuckets, TokenBucket

RATES = st.floats(0.05, 1000)
BURSTS = st.integers(1, 200)
STARTS = st.floats(0, 1e7)
STEPS = st.lists(st.floats(0, 3) | st.just(0.0), max_size=300)


@given(RATES, BURSTS, STARTS, STEPS)
def test_in_no_stretch_of_time_more_than_at_once_and_by_the_rate(
    rate: float, burst: int, start: float, steps: list[float]
) -> None:
    allowance, now, taken = TokenBucket(rate, burst), start, []
    for step in steps:
        now += step
        if allowance.take(now):
            taken.append(now)
    # That none was taken in between is the worst case: the others are inside of longer stretches.
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-3


@given(RATES, BURSTS, STARTS)
def test_at_first_so_many_at_once_and_not_one_more(rate: float, burst: int, start: float) -> None:
    allowance = TokenBucket(rate, burst)
    assert [allowance.take(start) for _ in range(burst + 3)] == [True] * burst + [False] * 3


@given(RATES, BURSTS, STARTS, st.integers(0, 300))
def test_who_waits_gets_back_what_was_taken_and_no_more_than_the_whole(
    rate: float, burst: int, start: float, waited: int
) -> None:
    allowance = TokenBucket(rate, burst)
    while allowance.take(start):
        pass
    now = start + (waited + 0.5) / rate
    assert sum(allowance.take(now) for _ in range(burst + 3)) == min(burst, waited)


def test_refusals_cost_nothing() -> None:
    allowance = TokenBucket(1.0, 1)
    assert allowance.take(0.0)
    assert not any(allowance.take(0.5) for _ in range(1000))
    assert allowance.take(1.0)


@pytest.mark.parametrize("burst", [1, 7, 100])
def test_in_the_long_run_it_is_the_rate(burst: int) -> None:
    allowance = TokenBucket(16.0, burst)
    assert sum(allowance.take(tick / 64) for tick in range(64 * 60)) == pytest.approx(60 * 16 + burst, abs=1)


def test_a_client_takes_nothing_of_what_others_have() -> None:
    buckets = ClientBuckets((1.0, 2), (100.0, 1000))
    assert [buckets.take("a", 0.0) for _ in range(100)] == [True] * 2 + [False] * 98
    assert [buckets.take("b", 0.0) for _ in range(3)] == [True, True, False]
    assert buckets.take("a", 1.0)
    assert not buckets.take("a", 1.0)


def test_all_clients_together_have_no_more_than_is_said() -> None:
    buckets = ClientBuckets((1.0, 2), (10.0, 30))
    assert sum(buckets.take(f"{number}", 0.0) for number in range(1000)) == 30


def test_of_too_many_clients_the_one_that_has_not_asked_for_longest_is_forgotten() -> None:
    buckets = ClientBuckets((1e-6, 1), (100.0, 1000), most=2)
    assert [buckets.take(client, 0.0) for client in "abab"] == [True, True, False, False]
    assert buckets.take("c", 0.0)  # That was a's place.
    assert not buckets.take("b", 0.0)
    assert buckets.take("a", 0.0)
    assert len(buckets._buckets) == 2
