"""What came to pass: faults, deaths, streams, violations; and the judgement whether a broken stream had a cause.

A break after the greeting needs the death of something that carried this very stream: the connection that the caller
had with its gateway, or the one that a gateway had with the endpoint, must be among those that the dead process held.
They are read from the kernel while the process is stopped, right before it is killed. Only where a stream breaks
before its second connection is known, and where a fault makes gateways refuse, a span of time is what explains it.
"""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeAlias

# A TCP connection on this machine: the port that dialled, the port that was dialled.
Leg: TypeAlias = tuple[int, int]


@dataclass
class Route:
    """The way of one stream, as far as its caller knows it.

    `near` is the gateway that it dialled, `far` the datacenter whose gateways come after that one, if any do.
    """

    service: str
    mode: str
    near: str
    far: str | None
    opened: float = field(default_factory=time.monotonic)
    legs: set[Leg] = field(default_factory=set)
    incarnation: str = ""


@dataclass
class Death:
    """Something ended that carried streams: none of them may break for it before `earliest`."""

    cause: str
    earliest: float
    legs: Collection[Leg] = ()
    incarnation: str = ""


@dataclass
class Disturbance:
    """A span in which new streams may be refused, by name of a gateway, of a service or `behind` a datacenter."""

    cause: str
    about: frozenset[str]
    start: float
    end: float = float("inf")

    def close(self, grace: float = 1.0) -> None:
        """It is over, up to what is under way."""
        self.end = time.monotonic() + grace


@dataclass
class Ledger:
    """All counts of a run."""

    started: float = field(default_factory=time.monotonic)
    opened: int = 0
    in_order: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    breaks: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    hostile: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def note(self, text: str) -> None:
        """Something that a reader of a violation will want to know."""
        self.events.append(f"{self.age:7.1f} s  {text}")

    def violation(self, text: str) -> None:
        """An invariant did not hold."""
        self.violations.append(f"at {self.age:.1f} s: {text}")
        self.note(f"VIOLATION {text}")

    def death(self, cause: str, legs: Collection[Leg] = (), *, incarnation: str = "", after: float = 0.0) -> Death:
        """Something is about to die, in `after` seconds at the earliest; its streams may break from then on."""
        death = Death(cause, time.monotonic() + after, legs, incarnation)
        self.deaths.append(death)
        return death

    def disturb(self, cause: str, *about: str, seconds: float | None = None) -> Disturbance:
        """From now on, for `seconds` or until closed, new streams may be refused."""
        now = time.monotonic()
        disturbance = Disturbance(cause, frozenset(about), now, now + seconds if seconds is not None else float("inf"))
        self.disturbances.append(disturbance)
        return disturbance

    def broke(self, route: Route, why: str) -> None:
        """A stream that had been greeted ended otherwise than in order."""
        cause = self._cause_of_death(route)
        if cause is None:
            self.violation(f"a stream broke without a cause: {route}: {why}")
        self.breaks[cause or "UNEXPLAINED"] += 1

    def refused(self, route: Route, why: str) -> None:
        """A stream did not come as far as its greeting."""
        cause = self._cause_of_death(route) or self._disturbance(route)
        if cause is None:
            self.violation(f"a stream was refused without a cause: {route}: {why}")
        self.refusals[cause or "UNEXPLAINED"] += 1

    def _cause_of_death(self, route: Route) -> str | None:
        now = time.monotonic()
        for death in reversed(self.deaths):
            if route.opened <= death.earliest + 0.5 and death.earliest <= now:
                if route.incarnation and route.incarnation == death.incarnation:
                    return death.cause
                if not route.legs.isdisjoint(death.legs):
                    return death.cause
        return None

    def _disturbance(self, route: Route) -> str | None:
        now = time.monotonic()
        about = {route.near, route.service, f"behind {route.far}"}
        for disturbance in reversed(self.disturbances):
            if disturbance.about & about and disturbance.start <= now and disturbance.end >= route.opened:
                return disturbance.cause
        return None
