"""Weighted round robin: exact over a cycle, spread within it, and never twice the same for one stream."""

from collections import Counter
from itertools import pairwise
from math import gcd

import pytest
from hypothesis import given, strategies as st

from meshgate.core.load_balancer import Rotation

WEIGHTS = st.lists(st.integers(1, 128), min_size=1, max_size=8)


def cycle(weights: list[int], start: int = 0) -> list[int]:
    """One whole cycle of picks."""
    rotation = Rotation(weights)
    picks = [rotation.pick(start + turn) for turn in range(sum(weights) // gcd(*weights))]
    return [pick for pick in picks if pick is not None]


@given(WEIGHTS, st.integers(0, 2**40))
def test_every_cycle_gives_each_exactly_its_weight(weights: list[int], start: int) -> None:
    divisor = gcd(*weights)
    assert Counter(cycle(weights, start)) == {at: weight // divisor for at, weight in enumerate(weights)}


@given(st.integers(1, 40), st.integers(1, 128))
def test_equal_weights_take_turns(count: int, weight: int) -> None:
    assert sorted(cycle([weight] * count)) == list(range(count))


@pytest.mark.parametrize("weights", [[10, 7], [2, 1], [128, 127], [100, 100, 100, 1], [64, 32, 32], [5, 5, 1]])
def test_no_endpoint_gets_its_share_in_one_go(weights: list[int]) -> None:
    picks = cycle(weights)
    runs = [1]
    for before, after in pairwise(picks + picks):
        runs.append(runs[-1] + 1 if before == after else 1)
    assert max(runs) <= 3


@given(WEIGHTS, st.integers(0, 2**40), st.sets(st.integers(0, 7)))
def test_what_was_tried_is_not_picked_again(weights: list[int], turn: int, tried: set[int]) -> None:
    left = set(range(len(weights))) - tried
    pick = Rotation(weights).pick(turn, tried)
    assert pick in left if left else pick is None


@given(WEIGHTS, st.integers(0, 2**40))
def test_trying_on_meets_everyone_once(weights: list[int], turn: int) -> None:
    rotation = Rotation(weights)
    met: list[int] = []
    while (position := rotation.pick(turn, met)) is not None:
        met.append(position)
    assert met[0] == rotation.pick(turn)
    assert sorted(met) == list(range(len(weights)))


def test_nobody_is_picked_from_nobody() -> None:
    assert Rotation([]).pick(0) is None
    assert Rotation([]).pick(12345, {0}) is None


def test_weights_of_nothing_pick_nobody() -> None:
    assert Rotation([0, 0]).pick(3) is None


def test_drawing_spreads_by_weight_and_passes_tried_ones_over() -> None:
    rotation = Rotation([1, 3])
    drawn = [rotation.draw(number / 100) for number in range(100)]
    assert (drawn.count(0), drawn.count(1)) == (25, 75)
    assert rotation.draw(0.0, (0,)) == 1
    assert rotation.draw(0.99, (0, 1)) is None
    assert Rotation([]).draw(0.5) is None
