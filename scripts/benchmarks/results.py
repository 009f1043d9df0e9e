"""What was measured: a number for each item, peer, metric and round. Medians, spreads, ratios, and the goals."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from .items import Item, Metric

OURS = "meshgate"
FLOOR = "direct"
ENVOY = "envoy"


@dataclass(slots=True)
class Measurement:
    """All numbers of one work item: by peer, by metric, one for each round."""

    title: str
    metrics: tuple[Metric, ...]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, peer: str, numbers: Mapping[str, float]) -> None:
        """Note what a round gave."""
        for key, value in numbers.items():
            self.values.setdefault(peer, {}).setdefault(key, []).append(value)

    def of(self, peer: str, metric: str) -> list[float]:
        """The rounds of a peer; empty where there are none."""
        return self.values.get(peer, {}).get(metric, [])


@dataclass(slots=True)
class Results:
    """A whole run. `machine` says where and when, `peers` has the titles, `items` the numbers."""

    machine: dict[str, str]
    peers: dict[str, str]
    items: dict[str, Measurement] = field(default_factory=dict)

    def measurement(self, item: Item) -> Measurement:
        """Where an item's numbers go."""
        return self.items.setdefault(item.name, Measurement(item.title, item.metrics))

    def ratio(self, item: str, metric: str, peer: str, against: str | None = None) -> float | None:
        """Ours divided by the peer's; None where one is missing.

        Rounds that were done side by side are compared with each other and the median ratio is taken, so that what
        disturbed a round disturbs both of its sides. `against` is the item that has the peer's number.
        """
        if item not in self.items or (against or item) not in self.items:
            return None
        ours, theirs = self.items[item].of(OURS, metric), self.items[against or item].of(peer, metric)
        if not ours or not theirs or not all(theirs):
            return None
        if len(ours) == len(theirs):
            return median(mine / other for mine, other in zip(ours, theirs, strict=True))
        return median(ours) / median(theirs)

    def rivals(self, item: str) -> list[str]:
        """The other products that took part in an item."""
        return (
            [peer for peer in self.items[item].values if peer != FLOOR and not peer.startswith(OURS)]
            if item in self.items
            else []
        )

    def save(self, file: Path) -> None:
        """Write everything, and the goals, as JSON."""
        data = {**asdict(self), "goals": [asdict(verdict) for verdict in judge(self)]}
        file.write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Results":
        """Read what `save` wrote."""
        data = json.loads(file.read_text())
        items = {
            name: Measurement(item["title"], tuple(Metric(**metric) for metric in item["metrics"]), item["values"])
            for name, item in data["items"].items()
        }
        return cls(data["machine"], data["peers"], items)


@dataclass(frozen=True, slots=True)
class Goal:
    """The most that a ratio may be, against Envoy and against the best of the others. Less is better in all of them.

    `item` is the work item; `against` the one that has the others' numbers, where that is another one. `most` is what
    our own number may be at most.
    """

    title: str
    item: str
    metric: str
    envoy: float | None = None
    best: float | None = None
    against: str | None = None
    most: float | None = None


GOALS = (
    Goal("CPU per mTLS handshake and round trip, 2 clients", "handshake-2", "cpu_us", 0.75, 1.4),
    Goal("CPU per 64 B round trip, 1 connection", "roundtrip-1", "cpu_us", 0.9, 1.25),
    Goal("CPU per 64 B round trip, 32 connections", "roundtrip-32", "cpu_us", 0.70, 1.1),
    Goal("CPU per connection", "connection-16", "cpu_us", 0.55, 1.2),
    Goal("a connection beside 9,000 idle ones, to one beside 100", "scale-9000", "ratio", most=1.05),
    *(Goal(f"CPU per GB, one way, streams: {n}", f"upload-{n}", "cpu_s_per_gb", 0.6, 0.6) for n in (1, 4, 32)),
    *(Goal(f"CPU per GB, both ways, streams: {n}", f"bothways-{n}", "cpu_s_per_gb", 0.6, 0.6) for n in (1, 4, 32)),
    Goal("p50 of a round trip, 32 connections", "roundtrip-32", "p50_us", 0.85, 1.1),
    Goal("p99 of a round trip, 32 connections", "roundtrip-32", "p99_us", 0.85, 1.1),
    Goal("a connection beside 5,000 hostile hellos a second", "flood-5000", "p90_ms", most=20),
    Goal("reading a hello, median of the corpus", "hello-read", "corpus_us", most=5),
    Goal("memory per idle connection", "idle-5000", "kb_per_stream", 0.10, 0.4),
    Goal("memory of the whole product at rest, 2 workers", "product-100", "mb", 0.9, None, "rest-100"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and what was measured. A ratio is None where its peer was not measured; `best_peer` is who is best."""

    goal: Goal
    ours: float
    envoy: float | None
    best: float | None
    best_peer: str | None


def judge(results: Results) -> list[Verdict]:
    """The goals whose items were measured."""
    verdicts = []
    for goal in GOALS:
        ours = results.items[goal.item].of(OURS, goal.metric) if goal.item in results.items else []
        if ours:
            ratios = _ratios(results, goal)
            # The best of the others is the one against which we look worst.
            best_peer = max(ratios, key=lambda peer: ratios[peer], default=None)
            best = None if best_peer is None else ratios[best_peer]
            verdicts.append(Verdict(goal, median(ours), ratios.get(ENVOY), best, best_peer))
    return verdicts


def _ratios(results: Results, goal: Goal) -> dict[str, float]:
    peers: Iterable[str] = results.rivals(goal.against or goal.item)
    ratios = {peer: results.ratio(goal.item, goal.metric, peer, goal.against) for peer in peers}
    return {peer: ratio for peer, ratio in ratios.items() if ratio is not None}
