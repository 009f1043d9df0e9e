"""What came to pass: faults, deaths, streams, violations; and the judgement whether a broken stream had a cause.

A break after the greeting needs the death of something that carried this very stream: the connection that the caller
had with its gateway, or the one that a gateway had with the endpoint, must be among those that the dead process held.
They are read from the kernel while the process is stopped, right before it is killed. A stream that is refused before
its greeting, when its caller does not know the second connection yet, needs a disturbance of what it was on its way to:
most of them excuse only streams that had been begun when it happened, some last for a while.
"""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

# A TCP connection by its two ends, each `address:port`.
Leg: TypeAlias = frozenset[str]


@dataclass
class Route:
    """The way of one stream, as far as its caller knows it.

    `near` is the gateway that it dialled, in `home`; `far` the datacenter whose gateways come after it, if any do.
    """

    service: str
    mode: str
    near: str
    home: str
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
    """A span in which new streams may be refused, and with `alert` only by that one.

    `about` are names of gateways, of services, `behind` a datacenter, `from` a datacenter to those behind another.
    """

    cause: str
    about: frozenset[str]
    start: float
    end: float = float("inf")
    alert: str | None = None

    def close(self) -> None:
        """It is over: whoever begins a stream from now on must be served."""
        self.end = time.monotonic()


@dataclass
class Verdict:
    """A stream without a cause so far. `broke` says that it had been greeted."""

    route: Route
    why: str
    broke: bool
    alert: str | None = None
    at: float = field(default_factory=time.monotonic)


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
    events_file: Path | None = None
    deaths: list[Death] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    pending: list[Verdict] = field(default_factory=list)
    # Seconds at most between what Consul listed and a table that says the same; how often Consul itself was behind.
    follow_seconds: float = 0.0
    consul_behind: int = 0

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def note(self, text: str) -> None:
        """Something that a reader of a violation will want to know."""
        line = f"{self.age:7.1f} s  {text}"
        self.events.append(line)
        if self.events_file is not None:
            with self.events_file.open("a") as file:
                file.write(f"{line}\n")

    def violation(self, text: str) -> None:
        """An invariant did not hold."""
        self.violations.append(f"at {self.age:.1f} s: {text}")
        self.note(f"VIOLATION {text}")

    def death(self, cause: str, legs: Collection[Leg] = (), *, incarnation: str = "", after: float = 0.0) -> Death:
        """Something is about to die, in `after` seconds at the earliest; its streams may break from then on."""
        death = Death(cause, time.monotonic() + after, legs, incarnation)
        self.deaths.append(death)
        return death

    def disturb(self, cause: str, *about: str) -> Disturbance:
        """From now on, until closed, new streams may be refused."""
        disturbance = Disturbance(cause, frozenset(about), time.monotonic())
        self.disturbances.append(disturbance)
        return disturbance

    def shock(self, cause: str, *about: str) -> None:
        """Streams that have been begun may be refused, and no later ones."""
        self.disturb(cause, *about).close()

    def broke(self, route: Route, why: str) -> None:
        """A stream that had been greeted ended otherwise than in order."""
        self._judge(Verdict(route, why, broke=True))

    def refused(self, route: Route, why: str, alert: str | None = None) -> None:
        """A stream did not come as far as its greeting."""
        self._judge(Verdict(route, why, broke=False, alert=alert))

    def settle(self, patience: float = 0.0) -> None:
        """Judges what is older than `patience`: what explains a refusal may become known a little after it."""
        due = [verdict for verdict in self.pending if verdict.at <= time.monotonic() - patience]
        self.pending = [verdict for verdict in self.pending if verdict not in due]
        for verdict in due:
            self._judge(verdict, last=True)

    def _judge(self, verdict: Verdict, *, last: bool = False) -> None:
        cause = self._cause_of_death(verdict)
        if cause is None and not verdict.broke:
            cause = self._disturbance(verdict)
        if cause is None and not last:
            self.pending.append(verdict)
            self.note(f"no cause yet: {verdict.route}: {verdict.why}")
            return
        if cause is None:
            what = "broke" if verdict.broke else "was refused"
            ago = time.monotonic() - verdict.at
            self.violation(f"a stream {what} without a cause, {ago:.1f} s ago: {verdict.route}: {verdict.why}")
        counts = self.breaks if verdict.broke else self.refusals
        counts[cause or "UNEXPLAINED"] += 1

    def _cause_of_death(self, verdict: Verdict) -> str | None:
        route = verdict.route
        for death in reversed(self.deaths):
            if route.opened <= death.earliest + 0.5 and death.earliest <= verdict.at:
                if route.incarnation and route.incarnation == death.incarnation:
                    return death.cause
                ends = {frozenset((end,)) for leg in route.legs for end in leg}
                if not (route.legs | ends).isdisjoint(death.legs):
                    return death.cause
        return None

    def _disturbance(self, verdict: Verdict) -> str | None:
        route = verdict.route
        about = {route.near, route.service, f"behind {route.far}", f"from {route.home} behind {route.far}"}
        for disturbance in reversed(self.disturbances):
            if (
                disturbance.about & about
                and disturbance.start <= verdict.at
                and disturbance.end >= route.opened
                and disturbance.alert in (None, verdict.alert)
            ):
                return disturbance.cause
        return None
