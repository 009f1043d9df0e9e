"""Endpoints that fail are left alone for a while, and then tried with one stream before they get traffic again.

Envoy ejects a host after five failures in a row for 30 s and more (outlier detection). Here the first failure counts,
because a stream that met it has been placed elsewhere and the next one should not pay again; so the first ejection is
short, and each further failure doubles it. What always holds: at most half of a route's endpoints are shunned, or one
where there are fewer than two, and never all of several; Consul's own checks stay the judge of health.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .routes import Endpoint

FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 30.0
# How long the one stream that tries an endpoint again may keep others away from it.
TRIAL_SECONDS: Final = 5.0

Address = tuple[str, int]


@dataclass(slots=True)
class _Record:
    """`failures` in a row; shunned `until` then; after that, while `trial_until` lies ahead, one stream tries it."""

    failures: int
    until: float
    trial_until: float = 0.0


class Ejections:
    """Which endpoints have failed of late. Times are in seconds on the caller's clock, which never goes back."""

    def __init__(self) -> None:
        self._records: dict[Address, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """A connection to the endpoint could not be had."""
        address = (endpoint.address, endpoint.port)
        record = self._records.setdefault(address, _Record(0, 0.0))
        record.failures += 1
        record.until = now + min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(record.failures - 1, 10))
        record.trial_until = 0.0

    def succeeded(self, endpoint: Endpoint) -> None:
        """A connection to the endpoint stands: whatever was held against it is forgotten."""
        self._records.pop((endpoint.address, endpoint.port), None)

    def trying(self, endpoint: Endpoint, now: float) -> None:
        """A stream is on its way to the endpoint; if that was shunned before, this stream alone tries it."""
        record = self._records.get((endpoint.address, endpoint.port))
        if record is not None:
            record.trial_until = now + TRIAL_SECONDS

    def shunned(self, candidates: Sequence[Endpoint], now: float) -> tuple[int, ...]:
        """The positions of the endpoints to leave alone; those that have failed most often first, half at most."""
        failing = []
        for position, endpoint in enumerate(candidates):
            record = self._records.get((endpoint.address, endpoint.port))
            if record is not None and max(record.until, record.trial_until) > now:
                failing.append((-record.failures, position))
        most = max(1, len(candidates) // 2) if len(candidates) > 1 else 0
        return tuple(position for _, position in sorted(failing)[:most])

    def keep_only(self, addresses: set[Address]) -> None:
        """Forget endpoints that are no longer in the table."""
        self._records = {address: record for address, record in self._records.items() if address in addresses}
