"""What the dashboard asks: the gateway's whole world in one answer.

It is bounded whatever the catalog holds: at most `MAX_ROWS` destinations with `MAX_ENDPOINTS` endpoints each and
`MAX_PLACES` places; what was left out is counted. Only integers, times and Consul's names go in; a stranger's text
comes with the refusals alone.

Rates are per second, between two samples of the relay's numbers, and None where there is one sample only. Samples are
taken when somebody looks and are shared by all who do: nothing is sampled while nobody looks, and however many look,
the workers are asked about twice a second at most. Rates are taken over `WINDOW` seconds, so that single streams do not
make them flicker.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, get_args

import trio

from meshgate import __version__
from meshgate.adapters.admin.http_server import Request, Response, error_response, json_response
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay import CONNECT_BUCKETS, Counters, Destination
from meshgate.app.admin import answers
from meshgate.app.admin.answers import MOST_STREAMS
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.history import history_view
from meshgate.app.admin.views import (
    Facts,
    destination_facts,
    ejection_words,
    ended_view,
    record_words,
    refusal_view,
    streams_words,
    tls_words,
    upgrade_view,
)
from meshgate.core.addresses import host_of, host_port
from meshgate.core.reasons import Reason
from meshgate.core.routes import KINDS, Endpoint, Route, RouteKind, RouteTable

WINDOW: Final = 3.0
FRESH: Final = 0.4
# Seconds after which a sample says nothing about now.
STALE: Final = 15.0
MAX_ROWS: Final = 200
MAX_ENDPOINTS: Final = 20
MAX_PLACES: Final = 12
MAX_CALLERS: Final = 10
MAX_TEXT: Final = 255

Sort = Literal["busy", "name", "health"]

_ORDER: Final = ("services", "servers", "partition", "datacenter", "peer-import", "peer-export")
_MAX_PROBLEMS: Final = 10
_MAX_RECENT: Final = 50
_MAX_ENDED: Final = 30
_SORTS: Final[dict[str, Sort]] = {sort: sort for sort in get_args(Sort)}


@dataclass(frozen=True, slots=True)
class Sample:
    """The relay's totals at `at` (a monotonic time in seconds).

    `callers` has the open streams of each client and their bytes both ways; none where there are too many to list.
    """

    at: float
    counters: Counters = field(default_factory=Counters)
    callers: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Two samples; the same one twice if there is none to compare with."""

    before: Sample
    after: Sample

    def rate(self, now: int, then: int) -> float | None:
        if self.after.at <= self.before.at:
            return None
        return round(max(0, now - then) / (self.after.at - self.before.at), 3)

    def streams(self, keys: Collection[Destination]) -> float | None:
        """Streams that were routed to any of these destinations, each given once."""
        after, before = self.after.counters.connections, self.before.counters.connections
        return self.rate(sum(after.get(key, 0) for key in keys), sum(before.get(key, 0) for key in keys))

    def bytes(self, keys: Iterable[Destination]) -> tuple[float | None, float | None]:
        """Bytes of the streams to these destinations, each given once: from clients, and to them."""
        after, before = self.after.counters.carried, self.before.counters.carried
        pairs = [(after.get(key, (0, 0)), before.get(key, (0, 0))) for key in keys]
        return (
            self.rate(sum(now[0] for now, _ in pairs), sum(then[0] for _, then in pairs)),
            self.rate(sum(now[1] for now, _ in pairs), sum(then[1] for _, then in pairs)),
        )


class Sampler:
    """Takes samples of the relay's totals and open streams, and keeps the last few."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._samples: deque[Sample] = deque()
        self._taking = trio.Lock()

    async def span(self) -> Span:
        """The present sample, and the earlier one by which rates are taken."""
        async with self._taking:
            now = trio.current_time()
            if not self._samples or now - self._samples[-1].at >= FRESH:
                while self._samples and now - self._samples[0].at > STALE:
                    self._samples.popleft()
                self._samples.append(await self._take())
            while len(self._samples) > 2 and self._samples[-1].at - self._samples[1].at >= WINDOW:
                self._samples.popleft()
            return Span(self._samples[0], self._samples[-1])

    async def _take(self) -> Sample:
        counters = await self._gateway.counters()
        callers: dict[str, tuple[int, int]] = {}
        if counters.active <= MOST_STREAMS:
            for stream in (await self._gateway.connections()).listed:
                client = host_of(stream.client)
                open_, carried = callers.get(client, (0, 0))
                callers[client] = open_ + 1, carried + stream.bytes_received + stream.bytes_sent
        return Sample(trio.current_time(), counters, callers)


class DashboardPage:
    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._sampler = Sampler(gateway)

    async def answer(self, request: Request) -> Response:
        """The state. `filter` and `sort` choose which destinations are in it."""
        sort = _SORTS.get(request.query.get("sort", "busy"))
        if sort is None:
            return error_response(400, f"sort is one of {', '.join(_SORTS)}")
        gateway = self._gateway
        span, names = await self._sampler.span(), await gateway.caller_names()
        table, wanted = gateway.table(), request.query.get("filter", "")
        ended, losses = gateway.ended_streams()[:_MAX_ENDED], gateway.worker_losses()[:_MAX_ENDED]
        make = partial(
            answers.DashboardState,
            gateway=self._identity(),
            problems=gateway.problems()[:_MAX_PROBLEMS],
            totals=totals_view(span),
            connect_bounds=list(CONNECT_BUCKETS),
            callers=callers_view(span, names),
            refused=self._refusals(span, names),
            ended=ended_view(gateway.started, span.after.counters, ended, (), losses, names),
            consul=self._consul(),
        )
        # Thousands of destinations take tens of milliseconds, which others should not wait for.
        return await trio.to_thread.run_sync(
            lambda: json_response(
                make(
                    places=places_view(table, span),
                    destinations=destinations_view(table, span, gateway.endpoint_facts, wanted=wanted, sort=sort),
                )
            )
        )

    async def history(self, _request: Request) -> Response:
        minutes = list(self._gateway.history.minutes)
        return await trio.to_thread.run_sync(lambda: json_response(history_view(minutes)))

    def _identity(self) -> answers.Identity:
        gateway, settings, table = self._gateway, self._gateway.settings, self._gateway.table()
        return answers.Identity(
            service=settings.service,
            id=settings.proxy_id,
            datacenter=table.datacenter,
            partition=table.partition,
            trust_domain=table.trust_domain,
            version=__version__,
            now=time.time(),
            started=gateway.started,
            uptime_seconds=gateway.uptime,
            state="draining" if gateway.draining else "ready" if gateway.ready else "starting",
            listening=gateway.listening,
            catalog_known=gateway.catalog_known,
            stale=gateway.catalog_stale,
            catalog_seconds=gateway.catalog_age,
            from_disk_seconds=gateway.from_disk,
            limit=gateway.limits.max_connections,
            listeners=[answers.Listener(bind.name, host_port(bind.address, bind.port)) for bind in gateway.listeners()],
            workers=[answers.Worker(pid or None, active) for pid, active in gateway.workers()],
            last_upgrade=upgrade_view(gateway.last_upgrade),
        )

    def _refusals(self, span: Span, names: Callable[[str], str]) -> answers.Refusals:
        recent = [refusal_view(*each, names) for each in self._gateway.recent_refusals()[:_MAX_RECENT]]
        for each in recent:
            each.sni, each.detail = each.sni and each.sni[:MAX_TEXT], each.detail[:MAX_TEXT]
        return answers.Refusals(refused_view(span), recent)

    def _consul(self) -> answers.Consul:
        gateway, now = self._gateway, trio.current_time()
        kinds: dict[str, list[WatchState]] = defaultdict(list)
        for state in gateway.watches():
            kinds[state.key.kind].append(state)
        return answers.Consul(
            gateway.consul_found,
            [_watches(kind, states, now) for kind, states in sorted(kinds.items())],
            dict(sorted(gateway.consul_errors().items())),
            *gateway.ca_expiries(),
        )


def _watches(kind: str, states: list[WatchState], now: float) -> answers.WatchesOfKind:
    failing = [state for state in states if state.error]
    return answers.WatchesOfKind(
        kind=kind,
        count=len(states),
        failing=len(failing),
        age_seconds=round(max(state.age(now) for state in states), 1),
        error=failing[0].error[:MAX_TEXT] if failing else None,
    )


def totals_view(span: Span) -> answers.Totals:
    after, before = span.after.counters, span.before.counters
    refused = sum(after.refused.values())
    return answers.Totals(
        open=after.active,
        streams=_streams(after),
        refused=refused,
        received=after.bytes_received,
        sent=after.bytes_sent,
        streams_rate=span.rate(_streams(after), _streams(before)),
        refused_rate=span.rate(refused, sum(before.refused.values())),
        received_rate=span.rate(after.bytes_received, before.bytes_received),
        sent_rate=span.rate(after.bytes_sent, before.bytes_sent),
        connects=[now - then for now, then in zip(after.connect_counts, before.connect_counts, strict=True)],
    )


def callers_view(span: Span, names: Callable[[str], str]) -> answers.Callers:
    """The clients whose open streams carry most, as far as the workers were asked."""
    before, after = span.before.callers, span.after.callers
    # Of streams that ended meanwhile nothing is known, so a rate is the least that it can be.
    found = [
        (span.rate(carried, before.get(client, (0, 0))[1]), open_, client) for client, (open_, carried) in after.items()
    ]
    found.sort(key=lambda each: (-(each[0] or 0), -each[1], each[2]))
    shown = found[:MAX_CALLERS]
    return answers.Callers(
        len(found), [answers.Caller(client, names(client) or None, open_, rate) for rate, open_, client in shown]
    )


def refused_view(span: Span) -> list[answers.Refused]:
    """Reasons for which streams were refused, the most frequent first."""
    before = span.before.counters.refused
    rows = [
        answers.Refused(Reason(reason), total, span.rate(total, before.get(reason, 0)))
        for reason, total in span.after.counters.refused.items()
        if total
    ]
    return sorted(rows, key=lambda row: (-row.total, row.reason))


def destinations_view(
    table: RouteTable, span: Span, facts: Facts, *, wanted: str = "", sort: Sort = "busy"
) -> answers.Destinations:
    """The routes whose SNI, destination or kind holds `wanted` in any case, `MAX_ROWS` of them at most."""
    needle = wanted.strip().lower()
    found = [
        route
        for route in table
        if needle in route.sni or needle in route.destination.lower() or needle in route.kind.value
    ]
    found.sort(key=lambda route: _rank(route, span, sort))
    became = destination_facts(span.after.counters)
    rows = [_row(route, span, facts, became((route.kind, route.destination))) for route in found[:MAX_ROWS]]
    return answers.Destinations(len(table), len(found), rows)


def places_view(table: RouteTable, span: Span) -> answers.Places:
    routes: dict[tuple[str, str], list[Route]] = defaultdict(list)
    for route in table:
        meaning = KINDS[route.kind]
        routes[meaning.place, route.destination if meaning.to_gateways else ""].append(route)
    places = [_place(kind, name, members, span) for (kind, name), members in routes.items()]
    # The busiest of a kind stay when there are too many; what is shown keeps its order from poll to poll.
    places.sort(key=lambda place: -place.streams)
    shown = sorted(places[:MAX_PLACES], key=lambda place: (_ORDER.index(place.kind), place.name))
    return answers.Places(shown, len(places) - len(shown))


def _streams(counters: Counters) -> int:
    return sum(counters.connections.values())


def _place(kind: str, name: str, routes: Sequence[Route], span: Span) -> answers.Place:
    keys = {(route.kind, route.destination) for route in routes}
    received, sent = span.bytes(keys)
    # A subset's endpoints are those of its service.
    counted = [route for route in routes if route.kind is not RouteKind.SUBSET] or routes
    # A server has several names, so names do not tell the endpoints of these apart.
    endpoints = {
        (route.destination if kind == "services" else "", endpoint.address, endpoint.port): endpoint.healthy
        for route in counted
        for endpoint in route.endpoints
    }
    return answers.Place(
        kind=kind,
        name=name,
        destinations=len({route.destination for route in counted}),
        endpoints=len(endpoints),
        healthy=sum(endpoints.values()),
        down=sum(not route.candidates for route in counted),
        open=sum(span.after.counters.open.get(key, 0) for key in keys),
        streams=sum(span.after.counters.connections.get(key, 0) for key in keys),
        rate=span.streams(keys),
        received_rate=received,
        sent_rate=sent,
    )


def _row(route: Route, span: Span, facts: Facts, became: answers.DestinationFacts) -> answers.Destination:
    key = (route.kind, route.destination)
    received, sent = span.bytes((key,))
    listed = [_met(endpoint, facts) for endpoint in route.endpoints]
    # Who is unhealthy is what one looks for, and who fails.
    listed.sort(key=lambda each: (each.healthy, each.met.ejected is None, -each.met.failures))
    return answers.Destination(
        sni=route.sni,
        kind=route.kind,
        name=route.destination,
        healthy=_healthy(route),
        endpoints=len(route.endpoints),
        served=bool(route.candidates),
        open=became.open,
        rate=span.streams((key,)),
        received_rate=received,
        sent_rate=sent,
        facts=became,
        words=[words for words in (streams_words(became), tls_words(span.after.counters, key)) if words],
        listed=listed[:MAX_ENDPOINTS],
    )


def _met(it: Endpoint, facts: Facts) -> answers.Met:
    cause = it.cause[:MAX_TEXT] or None
    met = facts((it.address, it.port))
    out = f"no stream {ejection_words(met.ejected)}" if met.ejected else ""
    record = record_words(met)
    return answers.Met(it.address, it.port, it.healthy, cause, it.weight, it.node, it.instance, met, out, record)


def _healthy(route: Route) -> int:
    return sum(endpoint.healthy for endpoint in route.endpoints)


def _rank(route: Route, span: Span, sort: Sort) -> tuple[float, float, str, str]:
    name = (route.destination.lower(), route.sni)
    if sort == "name":
        return (0, 0, *name)
    streams = -span.after.counters.connections.get((route.kind, route.destination), 0)
    if sort == "health":
        return (_healthy(route) / len(route.endpoints) if route.endpoints else 0.0, streams, *name)
    # By what only grows, so that rows do not jump about while somebody reads them.
    return (streams, 0, *name)
