"""Endpoints whose connections fail: ejected at once, then probed until one stands.

Envoy ejects a host after five failures in a row for 30 s and more, and lets a request try it again. Here the first
failure counts, because the stream that met it went elsewhere and the next one should not pay again. An ejected endpoint
is tried by a connection of the gateway's own, never by a stream: soon at first, then after waits that double.

How many of a route's endpoints may be left alone is the load balancer's to say; Consul's checks stay the judge of
health.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

FIRST_PROBE_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 30.0

Address = tuple[str, int]


@dataclass(slots=True)
class Ejection:
    """`failures` in a row, those of probes included; `since` is Unix time, `why` the first failure, "" if not known."""

    failures: int
    probe_at: float
    since: float
    why: str


class OutlierDetector:
    """What all workers have met. Times are in seconds on the caller's clock, which never goes back."""

    def __init__(self) -> None:
        self.ejections: dict[Address, Ejection] = {}

    @property
    def ejected(self) -> dict[Address, int]:
        """The endpoints that are ejected, and their failures in a row."""
        return {address: each.failures for address, each in self.ejections.items()}

    def failed(self, address: Address, now: float, *, since: float = 0.0, why: str = "") -> bool:
        """Note that a stream could not connect, when (`since` is Unix time) and `why`; whether this ejects it."""
        known = self.ejections.get(address)
        if known is None:
            self.ejections[address] = Ejection(1, now + FIRST_PROBE_SECONDS, since, why)
            return True
        # A stream that had no other endpoint left: it must not put off the probe that would end the ejection.
        known.failures += 1
        return False

    def remember(self, address: Address, failures: int, now: float, *, since: float, why: str) -> None:
        """Take over an ejection that somebody else has made; it is soon probed."""
        self.ejections[address] = Ejection(failures, now + FIRST_PROBE_SECONDS, since, why)

    def succeeded(self, address: Address) -> bool:
        """Note that a connection stands; whether this ends an ejection."""
        return self.ejections.pop(address, None) is not None

    def next_probe(self) -> float:
        """When to ask for `due` again; infinity while nothing is ejected."""
        return min((each.probe_at for each in self.ejections.values()), default=float("inf"))

    def due(self, now: float) -> list[Address]:
        """The endpoints to probe now. Each is due again later, unless `succeeded` comes first."""
        found = []
        for address, each in self.ejections.items():
            if each.probe_at <= now:
                found.append(address)
                each.failures += 1
                each.probe_at = now + min(LONGEST_WAIT_SECONDS, FIRST_PROBE_SECONDS * 2 ** min(each.failures - 1, 10))
        return found

    def keep_only(self, addresses: Container[Address]) -> None:
        """Forget endpoints that get no traffic any more: if they come back, Consul has found them healthy."""
        self.ejections = {address: each for address, each in self.ejections.items() if address in addresses}
