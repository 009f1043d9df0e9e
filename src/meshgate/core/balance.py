"""How streams are spread over endpoints: the policies, and weighted round robin without state.

Weighted round robin makes the n-th stream's endpoint a function of n.

Every cycle of as many picks as the weights add up to gives each endpoint exactly its weight, in an order that spreads
an endpoint's picks over the cycle. The caller counts; nothing here changes after it is built.
"""

from bisect import bisect_right
from collections.abc import Container, Sequence
from enum import StrEnum
from itertools import accumulate
from math import gcd


class Policy(StrEnum):
    """The policies of a service-resolver's `LoadBalancer` that a mesh gateway follows; the names are Consul's.

    `least_request` looks at a few endpoints at random and takes the one with the fewest streams for its weight. The
    hashing policies need what a gateway cannot see; Consul's own gateway ignores them too.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_REQUEST = "least_request"
    RANDOM = "random"


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
        return self._from(bisect_right(self._bounds, turn * self._stride % self._cycle), tried)

    def draw(self, number: float, tried: Container[int] = ()) -> int | None:
        """The position that a random number from [0, 1) falls on, by weight; tried ones as in `pick`."""
        if not self._cycle:
            return None
        return self._from(bisect_right(self._bounds, int(number * self._cycle)), tried)

    def _from(self, first: int, tried: Container[int]) -> int | None:
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
