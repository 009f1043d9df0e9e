"""Weighted round robin without state: the n-th stream's endpoint is a function of n.

Every cycle of as many picks as the weights add up to gives each endpoint exactly its weight, in an order that spreads
an endpoint's picks over the cycle. The caller counts; nothing here changes after it is built.
"""

from bisect import bisect_right
from collections.abc import Container, Sequence
from itertools import accumulate
from math import gcd


class Rotation:
    """Picks positions 0..n-1 by weight.

    Positions are walked with a stride near the golden section of the cycle, which has no divisor in common with the
    cycle: each slot comes up once per cycle, and neighbours in time are far apart in the list.
    """

    __slots__ = ("_bounds", "_cycle", "_stride")

    def __init__(self, weights: Sequence[int]) -> None:
        divisor = gcd(*weights) or 1
        self._bounds = list(accumulate(weight // divisor for weight in weights))
        self._cycle = self._bounds[-1] if self._bounds else 0
        self._stride = _coprime_near(self._cycle)

    def __len__(self) -> int:
        return len(self._bounds)

    def pick(self, turn: int, tried: Container[int] = ()) -> int | None:
        """The position for the `turn`-th pick, or the next one after it that is not in `tried`; None if all are."""
        if not self._cycle:
            return None
        first = bisect_right(self._bounds, turn * self._stride % self._cycle)
        for step in range(len(self._bounds)):
            position = (first + step) % len(self._bounds)
            if position not in tried:
                return position
        return None


def _coprime_near(cycle: int) -> int:
    stride = max(1, round(cycle * 0.618))
    while gcd(stride, cycle) > 1:
        stride += 1
    return stride
