"""Endpoints that fail are ejected at the first failure and probed, later and later, until a connection stands."""

from meshgate.core.outlier_detection import FIRST_PROBE_SECONDS, LONGEST_WAIT_SECONDS, OutlierDetector

A, B = ("10.0.0.1", 443), ("10.0.0.2", 443)


def test_nothing_is_ejected_or_probed_before_something_fails() -> None:
    detector = OutlierDetector()
    assert (detector.ejected, detector.next_probe(), detector.due(1e9)) == ({}, float("inf"), [])
    assert not detector.succeeded(A)


def test_first_failure_ejects_and_later_ones_do_not_put_the_probe_off() -> None:
    detector = OutlierDetector()
    assert detector.failed(A, 100.0)
    assert not detector.failed(A, 100.9)
    assert detector.ejected == {A: 2}
    assert detector.next_probe() == 100.0 + FIRST_PROBE_SECONDS
    assert detector.due(100.9) == []
    assert detector.due(101.0) == [A]


def test_waits_between_probes_double_up_to_a_limit() -> None:
    detector, now, waits = OutlierDetector(), 0.0, []
    detector.failed(A, now)
    for _ in range(10):
        waits.append(detector.next_probe() - now)
        now = detector.next_probe()
        assert detector.due(now) == [A]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert set(waits[5:]) == {LONGEST_WAIT_SECONDS}


def test_a_connection_that_stands_ends_the_ejection_and_all_is_forgotten() -> None:
    detector = OutlierDetector()
    for _ in range(5):
        detector.failed(A, 0.0)
    assert detector.succeeded(A)
    assert not detector.succeeded(A)
    assert detector.failed(A, 50.0)
    assert (detector.ejected, detector.next_probe()) == ({A: 1}, 50.0 + FIRST_PROBE_SECONDS)


def test_endpoints_that_get_no_traffic_any_more_are_forgotten() -> None:
    detector = OutlierDetector()
    detector.failed(A, 0.0)
    detector.failed(B, 0.0)
    detector.keep_only({B})
    assert detector.ejected == {B: 1}


def test_an_ejection_of_somebody_else_is_taken_over_and_soon_probed() -> None:
    detector = OutlierDetector()
    detector.remember(A, 5, 100.0, since=7.0, why="refused")
    assert detector.ejected == {A: 5}
    assert detector.due(100.0 + FIRST_PROBE_SECONDS) == [A]
    ejection = detector.ejections[A]
    assert (ejection.failures, ejection.since, ejection.why) == (6, 7.0, "refused")
    assert detector.succeeded(A)
