"""How often something may be done: so many times a second in the long run, and a number of times at once."""


class TokenBucket:
    """Full at first. Times are in seconds, on whatever clock the caller has."""

    __slots__ = ("_burst", "_per_second", "_taken", "_taken_at")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._taken = 0.0
        self._taken_at = float("-inf")

    def take(self, now: float, times: int = 1) -> bool:
        """Whether it may be done now, so many times; if so, it counts as done."""
        # Counted, not timed: sums of times are off by so much that one less might be had than the burst.
        taken = max(0.0, self._taken - (now - self._taken_at) * self._per_second)
        if taken + times > self._burst:
            return False
        self._taken, self._taken_at = taken + times, now
        return True
