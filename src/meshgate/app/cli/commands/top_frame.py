"""What `meshgate top` shows: two looks at the gateway, and the picture of the time between them. Pure values.

Rates are per second. A rate is None in a first look, and where the gateway was replaced meanwhile. How many streams
are open is known per destination only while `/connections` is asked, which very busy gateways are spared.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from meshgate.app.cli.admin_client import ask, decoded
from meshgate.app.cli.commands.answers import Route, Routes, ServerInfo, Stream
from meshgate.app.cli.metrics_client import Metrics
from meshgate.app.settings.setting_types import HostPort
from meshgate.core.sni import GatewaySni, ServiceSni, parse

MOST_STREAMS: Final = 20_000
_SOON_SECONDS: Final = 30 * 86400.0
_SHOWN_PROBLEMS: Final = 3


@dataclass(frozen=True, slots=True)
class Look:
    """All that the gateway says at one moment. `at` is a monotonic time, `now` the Unix time, both in seconds."""

    at: float
    now: float
    info: ServerInfo
    metrics: Metrics
    routes: Routes
    streams: Sequence[Stream] | None

    @classmethod
    def take(cls, bind: HostPort | Path | None, at: float, now: float) -> "Look":
        """Look at the gateway whose admin address is `bind`.

        Raises:
            CommandError: it does not answer, or as something else.
        """
        metrics = Metrics.fetch(bind)
        busy = metrics.total("meshgate_connections_active") > MOST_STREAMS
        return cls(
            at,
            now,
            decoded(ask(bind, "/server_info"), ServerInfo),
            metrics,
            decoded(ask(bind, "/routes"), Routes),
            None if busy else decoded(ask(bind, "/connections"), list[Stream]),
        )


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """A route. `received` and `sent` are bytes per second, from clients and to them; None is what is not known."""

    name: str
    kind: str
    open: int | None
    new: float | None
    received: float | None
    sent: float | None
    total: int
    healthy: int
    endpoints: int


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """Streams that were refused for a reason."""

    reason: str
    total: int
    rate: float | None


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture. `unhealthy` holds a destination, an endpoint and its node each; `watches` ages in seconds."""

    version: str
    state: str
    uptime: float
    datacenter: str
    partition: str
    open: int
    new: float | None
    refused_rate: float | None
    received: float | None
    sent: float | None
    alerts: list[str] = field(default_factory=list)
    destinations: list[DestinationRow] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    unhealthy: list[tuple[str, str, str]] = field(default_factory=list)
    watches: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """All of it, for programs."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def frame(before: Look | None, after: Look) -> Frame:
    """What happened between two looks, and how things stand at the second one."""
    rates = _Rates(before, after)
    metrics = after.metrics
    refused = {labels["reason"]: value for labels, value in metrics.all("meshgate_refused_total")}
    return Frame(
        version=after.info.version,
        state=after.info.state,
        uptime=after.info.uptime_seconds,
        datacenter=after.routes.datacenter,
        partition=after.routes.partition,
        open=round(metrics.total("meshgate_connections_active")),
        new=rates.of("meshgate_connections_total"),
        refused_rate=rates.of("meshgate_refused_total"),
        received=rates.of("meshgate_bytes_total", direction="received"),
        sent=rates.of("meshgate_bytes_total", direction="sent"),
        alerts=_alerts(after),
        destinations=_destinations(after, rates),
        refused=sorted(
            (
                RefusedRow(reason, round(total), rates.of("meshgate_refused_total", reason=reason))
                for reason, total in refused.items()
                if total
            ),
            key=lambda row: (-row.total, row.reason),
        ),
        unhealthy=[
            (destination_of(route, after.routes), str(HostPort(endpoint.address, endpoint.port)), endpoint.node)
            for route in after.routes.routes
            for endpoint in route.endpoints
            if not endpoint.healthy
        ],
        watches={
            labels["watch"]: age for labels, age in sorted_by_label(metrics, "meshgate_watch_age_seconds", "watch")
        },
    )


def destination_of(route: Route, routes: Routes) -> str:
    """The name of a route in the metrics, in lower case: a service, a subset, a datacenter."""
    sni = parse(route.sni.removeprefix("*."), trust_domain=routes.trust_domain)
    if isinstance(sni, ServiceSni):
        return f"{sni.subset}.{sni.service}" if sni.subset else sni.service
    if isinstance(sni, GatewaySni):
        return sni.datacenter
    return route.sni.removesuffix(f".{routes.trust_domain}")


def sorted_by_label(metrics: Metrics, name: str, label: str) -> list[tuple[Mapping[str, str], float]]:
    """The samples of a metric, ordered by a label."""
    return sorted(metrics.all(name), key=lambda sample: sample[0][label])


class _Rates:
    def __init__(self, before: Look | None, after: Look) -> None:
        started = "process_start_time_seconds"
        same = before is not None and before.metrics.value(started) == after.metrics.value(started)
        self._before = before if same else None
        self._after = after
        self._seconds = after.at - before.at if before is not None else 0.0

    def of(self, name: str, **labels: str) -> float | None:
        """How fast a counter grew."""
        if self._before is None or self._seconds <= 0:
            return None
        grown = self._after.metrics.total(name, **labels) - self._before.metrics.total(name, **labels)
        return max(0.0, grown / self._seconds)

    def by_destination(self, name: str, **labels: str) -> "_PerDestination":
        """How fast a counter of destinations grew for each of them, from one walk over its samples."""
        before = None if self._before is None or self._seconds <= 0 else _totals(self._before.metrics, name, labels)
        return _PerDestination(before, _totals(self._after.metrics, name, labels), self._seconds)


@dataclass(frozen=True, slots=True)
class _PerDestination:
    """Totals by kind and destination, before and after so many seconds."""

    before: Mapping[tuple[str, str], float] | None
    after: Mapping[tuple[str, str], float]
    seconds: float

    def total(self, kind: str, name: str) -> int:
        return round(self.after.get((kind, name), 0.0))

    def rate(self, kind: str, name: str) -> float | None:
        if self.before is None:
            return None
        return max(0.0, (self.after.get((kind, name), 0.0) - self.before.get((kind, name), 0.0)) / self.seconds)


def _totals(metrics: Metrics, name: str, wanted: Mapping[str, str]) -> dict[tuple[str, str], float]:
    return {
        (labels["kind"], labels["destination"]): value
        for labels, value in metrics.all(name)
        if wanted.items() <= labels.items()
    }


def _destinations(look: Look, rates: _Rates) -> list[DestinationRow]:
    open_by_route: dict[str, int] = defaultdict(int)
    for stream in look.streams or ():
        if stream.route is not None:
            open_by_route[stream.route] += 1
    # Consul spells a name as it was registered, a route's SNI is lower case.
    spelled = {
        (labels["kind"], labels["destination"].lower()): labels["destination"]
        for labels, _ in look.metrics.all("meshgate_connections_total")
    }
    new = rates.by_destination("meshgate_connections_total")
    received = rates.by_destination("meshgate_destination_bytes_total", direction="received")
    sent = rates.by_destination("meshgate_destination_bytes_total", direction="sent")
    rows = []
    for route in look.routes.routes:
        found = destination_of(route, look.routes)
        name = spelled.get((route.kind, found), found)
        rows.append(
            DestinationRow(
                name=name,
                kind=route.kind,
                open=None if look.streams is None else open_by_route[route.sni],
                new=new.rate(route.kind, name),
                received=received.rate(route.kind, name),
                sent=sent.rate(route.kind, name),
                total=new.total(route.kind, name),
                healthy=route.healthy,
                endpoints=len(route.endpoints),
            )
        )
    # The busiest first; among the idle ones those that could not serve.
    rows.sort(key=lambda row: (-(row.open or 0), -(row.new or 0.0), bool(row.healthy), -row.total, row.kind, row.name))
    return rows


def _alerts(look: Look) -> list[str]:
    metrics = look.metrics
    alerts = []
    if look.info.state != "LIVE":
        words = {"DRAINING": "the gateway drains: no new streams", "PRE_INITIALIZING": "not ready: no streams yet"}
        alerts.append(words.get(look.info.state, look.info.state))
    if metrics.total("meshgate_catalog_stale"):
        alerts.append("the catalog is stale: Consul is not heard, the last known good one is served")
    if metrics.total("meshgate_token_problem"):
        alerts.append("Consul refuses the token, or its file cannot be read")
    for name, what in (
        ("meshgate_ca_root_expiry_timestamp_seconds", "CA root"),
        ("meshgate_ca_intermediate_expiry_timestamp_seconds", "CA intermediate"),
    ):
        expiry = metrics.value(name)
        if expiry is not None and expiry - look.now < _SOON_SECONDS:
            days = (expiry - look.now) / 86400
            alerts.append(f"the {what} has expired" if days <= 0 else f"the {what} expires in {days:.1f} days")
    problems = look.info.problems
    more = len(problems) - _SHOWN_PROBLEMS
    return alerts + problems[:_SHOWN_PROBLEMS] + ([f"and {more} more problems, see /readyz"] if more > 0 else [])
