"""Failing endpoints are shunned for a growing time, tried by one stream, and never all of them."""

from hypothesis import given
from hypothesis import strategies as st

from meshgate.core.ejection import FIRST_SECONDS, LONGEST_SECONDS, TRIAL_SECONDS, Ejections

from .samples import endpoint

A, B, C, D = (endpoint(f"10.0.0.{number}") for number in range(1, 5))


def test_endpoint_that_never_failed_is_not_shunned() -> None:
    assert Ejections().shunned([A, B], 0.0) == ()


def test_first_failure_shuns_at_once_and_for_a_short_time() -> None:
    ejections = Ejections()
    ejections.failed(A, 100.0)
    assert ejections.shunned([A, B], 100.0) == (0,)
    assert ejections.shunned([B, A], 100.0 + FIRST_SECONDS - 0.01) == (1,)
    assert ejections.shunned([A, B], 100.0 + FIRST_SECONDS) == ()


def test_each_failure_in_a_row_doubles_the_time_up_to_a_limit() -> None:
    ejections, now, times = Ejections(), 0.0, []
    for _ in range(12):
        ejections.failed(A, now)
        start = now
        while ejections.shunned([A, B], now):
            now += 0.5
        times.append(now - start)
    assert times[:4] == [1.0, 2.0, 4.0, 8.0]
    assert times[-1] == LONGEST_SECONDS


def test_success_forgets_all_failures() -> None:
    ejections = Ejections()
    for _ in range(5):
        ejections.failed(A, 0.0)
    ejections.succeeded(A)
    ejections.succeeded(B)
    assert len(ejections) == 0
    assert ejections.shunned([A, B], 0.0) == ()


def test_after_its_time_one_stream_tries_it_and_the_others_wait_for_the_outcome() -> None:
    ejections = Ejections()
    ejections.failed(A, 0.0)
    ejections.trying(B, 1.0)
    assert ejections.shunned([A, B], 1.0) == ()
    ejections.trying(A, 1.0)
    assert ejections.shunned([A, B], 1.1) == (0,)
    assert ejections.shunned([A, B], 1.0 + TRIAL_SECONDS) == ()
    ejections.failed(A, 1.2)
    assert ejections.shunned([A, B], 3.1) == (0,)
    assert ejections.shunned([A, B], 3.2) == ()


def test_only_endpoint_is_never_shunned() -> None:
    ejections = Ejections()
    ejections.failed(A, 0.0)
    assert ejections.shunned([A], 0.0) == ()


def test_of_many_that_fail_the_worst_half_is_shunned() -> None:
    ejections = Ejections()
    for failing, times in ((A, 1), (B, 3), (C, 2), (D, 1)):
        for _ in range(times):
            ejections.failed(failing, 0.0)
    assert ejections.shunned([A, B, C, D], 0.0) == (1, 2)


def test_endpoints_that_left_the_table_are_forgotten() -> None:
    ejections = Ejections()
    ejections.failed(A, 0.0)
    ejections.failed(B, 0.0)
    ejections.keep_only({(B.address, B.port)})
    assert ejections.shunned([A, B], 0.0) == (1,)


@given(st.lists(st.sampled_from([A, B, C, D])), st.integers(1, 4))
def test_somebody_is_always_left(failures: list[object], count: int) -> None:
    ejections, candidates = Ejections(), [A, B, C, D][:count]
    for failing in failures:
        ejections.failed(failing, 0.0)  # type: ignore[arg-type]
    assert len(ejections.shunned(candidates, 0.0)) <= max(count // 2, count > 1)
    assert len(ejections.shunned(candidates, 0.0)) < count
