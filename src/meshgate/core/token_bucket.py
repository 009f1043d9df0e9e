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


class ClientBuckets:
    """A bucket for each client, and one for all of them, so that no client takes what is there for the others.

    Of more than `most` clients the one that has not asked for longest is forgotten, which gives it a full bucket again:
    it is the bucket for all that holds against so many.
    """

    __slots__ = ("_all", "_buckets", "_each", "_most")

    def __init__(self, each: tuple[float, int], together: tuple[float, int], most: int = 4096) -> None:
        self._each = each
        self._all = TokenBucket(*together)
        self._most = most
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, client: str, now: float) -> bool:
        """Whether a client may do it now; if so, it counts as done."""
        bucket = self._buckets.pop(client, None) or TokenBucket(*self._each)
        if len(self._buckets) >= self._most:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[client] = bucket
        return bucket.take(now) and self._all.take(now)
