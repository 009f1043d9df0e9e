"""What the dashboard shows, made of plain values: destinations and where they are, with rates between two samples.

Rates are per second and None in a first sample. An answer is bounded whatever the catalog holds: at most `MAX_ROWS`
destinations with `MAX_ENDPOINTS` endpoints each and `MAX_PLACES` places; what was left out is counted. Only integers,
times and Consul's names go in; a stranger's text comes with the refusals alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from meshgate.core.reasons import Reason
from meshgate.core.routes import KINDS, Endpoint, Route, RouteKind, RouteTable

from .views import endpoint_view, safe_text

MAX_ROWS: Final = 200
MAX_ENDPOINTS: Final = 20
MAX_PLACES: Final = 12
MAX_TEXT: Final = 255

Sort = Literal["busy", "name", "health"]
Key = tuple[RouteKind, str]
"""What a routed stream counts for: the kind and the destination of its route."""

_ORDER: Final = ("services", "servers", "partition", "datacenter", "peer-import", "peer-export")


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway's numbers at `at` (a monotonic time in seconds).

    All but `active` and `open` count since the start. `carried` has bytes from clients and to them. `open` has the open
    streams by the SNI of their route; None is what a very busy gateway is not asked.
    """

    at: float
    active: int = 0
    received: int = 0
    sent: int = 0
    connections: Mapping[Key, int] = field(default_factory=dict)
    refused: Mapping[Reason, int] = field(default_factory=dict)
    connect_counts: Sequence[int] = ()
    carried: Mapping[Key, tuple[int, int]] = field(default_factory=dict)
    open: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Two samples, the earlier one None if there is none to compare with."""

    before: Sample | None
    after: Sample

    def rate(self, now: int, then: int) -> float | None:
        """How fast a counter grew."""
        if self.before is None or self.after.at <= self.before.at:
            return None
        return round(max(0, now - then) / (self.after.at - self.before.at), 3)

    def streams(self, keys: Iterable[Key]) -> float | None:
        """Streams that were routed to any of these destinations, each given once."""
        after, before = self.after.connections, self.before.connections if self.before else {}
        listed = tuple(keys)
        return self.rate(sum(after.get(key, 0) for key in listed), sum(before.get(key, 0) for key in listed))

    def bytes(self, keys: Iterable[Key]) -> tuple[float | None, float | None]:
        """Bytes of the streams to these destinations, each given once: from clients, and to them."""
        after, before = self.after.carried, self.before.carried if self.before else {}
        pairs = [(after.get(key, (0, 0)), before.get(key, (0, 0))) for key in keys]
        return (
            self.rate(sum(now[0] for now, _ in pairs), sum(then[0] for _, then in pairs)),
            self.rate(sum(now[1] for now, _ in pairs), sum(then[1] for _, then in pairs)),
        )


def totals_view(span: Span) -> dict[str, Any]:
    """The gateway as a whole."""
    after, before = span.after, span.before or span.after
    refused = sum(after.refused.values())
    connects = [now - then for now, then in zip(after.connect_counts, before.connect_counts, strict=True)]
    return {
        "open": after.active,
        "streams": _streams(after),
        "refused": refused,
        "received": after.received,
        "sent": after.sent,
        "streams_rate": span.rate(_streams(after), _streams(before)),
        "refused_rate": span.rate(refused, sum(before.refused.values())),
        "received_rate": span.rate(after.received, before.received),
        "sent_rate": span.rate(after.sent, before.sent),
        "connects": connects,
    }


def refused_view(span: Span) -> list[dict[str, Any]]:
    """Reasons for which streams were refused, the most frequent first."""
    before = span.before.refused if span.before else {}
    rows = [
        {"reason": Reason(reason).value, "total": total, "rate": span.rate(total, before.get(reason, 0))}
        for reason, total in span.after.refused.items()
        if total
    ]
    return sorted(rows, key=lambda row: (-row["total"], row["reason"]))


def destinations_view(table: RouteTable, span: Span, *, wanted: str = "", sort: Sort = "busy") -> dict[str, Any]:
    """The routes whose SNI, destination or kind holds `wanted` in any case, `MAX_ROWS` of them at most."""
    needle = wanted.strip().lower()
    found = [
        route
        for route in table
        if needle in route.sni or needle in route.destination.lower() or needle in route.kind.value
    ]

    found.sort(key=lambda route: _rank(route, span, sort))
    return {
        "total": len(table),
        "matching": len(found),
        "rows": [_row(route, span) for route in found[:MAX_ROWS]],
    }


def places_view(table: RouteTable, span: Span) -> dict[str, Any]:
    """Where streams go from here: own services, Consul's servers, partitions, other datacenters, peers."""
    routes: dict[tuple[str, str], list[Route]] = defaultdict(list)
    for route in table:
        meaning = KINDS[route.kind]
        routes[meaning.place, route.destination if meaning.to_gateways else ""].append(route)
    places = [_place(kind, name, members, span) for (kind, name), members in routes.items()]
    # The busiest of a kind stay when there are too many; what is shown keeps its order from poll to poll.
    places.sort(key=lambda place: -place["streams"])
    shown = places[:MAX_PLACES]
    shown.sort(key=lambda place: (_ORDER.index(place["kind"]), place["name"]))
    return {"shown": shown, "left_out": len(places) - len(shown)}


def _streams(sample: Sample) -> int:
    return sum(sample.connections.values())


def _place(kind: str, name: str, routes: Sequence[Route], span: Span) -> dict[str, Any]:
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
    return {
        "kind": kind,
        "name": safe_text(name),
        "destinations": len({route.destination for route in counted}),
        "endpoints": len(endpoints),
        "healthy": sum(endpoints.values()),
        "down": sum(not route.candidates for route in counted),
        "open": None if span.after.open is None else sum(span.after.open.get(route.sni, 0) for route in routes),
        "streams": sum(span.after.connections.get(key, 0) for key in keys),
        "rate": span.streams(keys),
        "received_rate": received,
        "sent_rate": sent,
    }


def _row(route: Route, span: Span) -> dict[str, Any]:
    key = (route.kind, route.destination)
    received, sent = span.bytes((key,))
    # Who is unhealthy is what one looks for.
    endpoints = sorted(route.endpoints, key=lambda endpoint: endpoint.healthy)
    return {
        "sni": safe_text(route.sni),
        "kind": route.kind.value,
        "name": safe_text(route.destination),
        "healthy": _healthy(route),
        "endpoints": len(route.endpoints),
        "served": bool(route.candidates),
        "open": None if span.after.open is None else span.after.open.get(route.sni, 0),
        "streams": span.after.connections.get(key, 0),
        "rate": span.streams((key,)),
        "received_rate": received,
        "sent_rate": sent,
        "listed": [_endpoint(endpoint) for endpoint in endpoints[:MAX_ENDPOINTS]],
    }


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return endpoint_view(endpoint) | {"cause": safe_text(endpoint.cause[:MAX_TEXT])}


def _healthy(route: Route) -> int:
    return sum(endpoint.healthy for endpoint in route.endpoints)


def _rank(route: Route, span: Span, sort: Sort) -> tuple[float, float, str, str]:
    name = (route.destination.lower(), route.sni)
    if sort == "name":
        return (0, 0, *name)
    streams = -span.after.connections.get((route.kind, route.destination), 0)
    if sort == "health":
        return (_healthy(route) / len(route.endpoints) if route.endpoints else 0.0, streams, *name)
    # By what only grows, so that rows do not jump about while somebody reads them.
    return (streams, 0, *name)
