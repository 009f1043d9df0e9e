"""The dashboard's files and the values that it shows."""

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

import meshgate.adapters.admin
from meshgate.adapters.admin.http_server import Request, Response
from meshgate.adapters.admin.static_files import FOLDER, static_routes
from meshgate.adapters.relay import Counters
from meshgate.app.admin import answers
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.dashboard import (
    MAX_CALLERS,
    MAX_ENDPOINTS,
    MAX_PLACES,
    MAX_ROWS,
    Sample,
    Span,
    callers_view,
    destinations_view,
    places_view,
    refused_view,
    totals_view,
)
from meshgate.core.hello import Offer
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Alert, Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

PAGE = Path(meshgate.adapters.admin.__file__).parent / "page"
SERVICE = RouteKind.SERVICE


def answer(path: str) -> Response:
    response = static_routes()["GET", path](Request("GET", path, {}, {}))
    assert isinstance(response, Response)
    return response


def route(name: str, *healthy: bool, kind: RouteKind = SERVICE, port: int = 1) -> Route:
    endpoints = tuple(Endpoint("10.0.0.1", port + at, ok, 1, "n", name, "") for at, ok in enumerate(healthy))
    return Route(f"{name}.td".lower(), kind, name, endpoints, suffix=kind is RouteKind.DATACENTER)


def table(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", "td", "default", iter(routes))


def sample(at: float, **numbers: Any) -> Sample:
    return Sample(at, Counters(**numbers))


NOW = Span(Sample(10.0), Sample(10.0))


def nothing_met(_address: Address) -> EndpointFacts:
    return EndpointFacts()


def test_page_and_its_files_are_served_with_a_policy_that_lets_nothing_else_run() -> None:
    paths = {path for _, path in static_routes()}
    assert {"/", f"{FOLDER}/main.js", f"{FOLDER}/style.css", f"{FOLDER}/icon.svg"} <= paths
    for path in paths:
        response = answer(path)
        headers = dict(response.headers)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["x-frame-options"] == "DENY"
    assert answer("/").content_type == "text/html; charset=utf-8"
    assert answer(f"{FOLDER}/main.js").content_type == "text/javascript; charset=utf-8"


def test_page_has_nothing_inline_and_asks_for_nothing_that_is_not_served() -> None:
    page = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    served = {path.removeprefix("/") for _, path in static_routes()}
    wanted = set(re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page))
    assert wanted
    assert wanted <= served
    scripts = [path.read_text() for path in PAGE.glob("*.js")]
    imported = {f"dashboard/{name}" for script in scripts for name in re.findall(r'from "\./([^"]+)"', script)}
    assert imported <= served
    for text in (page, *scripts):
        assert not re.search(r"https?://(?!www\.w3\.org/)", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)


def test_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 80_000


def test_rates_are_unknown_at_first_and_then_those_between_the_samples() -> None:
    key = (SERVICE, "web")
    before = sample(10.0, bytes_received=100, connections={key: 4}, refused={Reason.NO_SNI: 1}, connect_counts=[1, 0])
    after = sample(
        12.0,
        active=3,
        open={key: 3},
        bytes_received=500,
        bytes_sent=7,
        connections={key: 10},
        refused={Reason.NO_SNI: 2},
        connect_counts=[1, 5],
        carried={key: (400, 6)},
    )
    assert totals_view(Span(after, after)).streams_rate is None
    assert to_builtins(totals_view(Span(before, after))) == {
        "open": 3,
        "streams": 10,
        "refused": 2,
        "received": 500,
        "sent": 7,
        "streams_rate": 3.0,
        "refused_rate": 0.5,
        "received_rate": 200.0,
        "sent_rate": 3.5,
        "connects": [0, 5],
    }
    assert refused_view(Span(before, after)) == [answers.Refused(Reason.NO_SNI, 2, 0.5)]
    (row,) = destinations_view(table(route("web", True)), Span(before, after), nothing_met).rows
    assert (row.open, row.facts.streams, row.rate, row.received_rate, row.sent_rate) == (
        3,
        10,
        3.0,
        200.0,
        3.0,
    )


def test_counters_that_went_back_give_no_negative_rate() -> None:
    before, after = sample(1.0, bytes_received=10), sample(2.0, bytes_received=5)
    assert totals_view(Span(before, after)).received_rate == 0


def test_destinations_are_filtered_by_name_sni_and_kind() -> None:
    routes = table(route("Web", True), route("dc2", True, kind=RouteKind.DATACENTER), route("mail", True))

    def found(wanted: str) -> list[str]:
        return [row.name for row in destinations_view(routes, NOW, nothing_met, wanted=wanted, sort="name").rows]

    assert found(" WEB ") == ["Web"]
    assert found("datacenter") == ["dc2"]
    assert found("mail.td") == ["mail"]
    assert found("x") == []
    assert destinations_view(routes, NOW, nothing_met, wanted="x").total == 3


@pytest.mark.parametrize(
    ("sort", "names"), [("busy", ["b", "a", "c"]), ("name", ["a", "b", "c"]), ("health", ["c", "a", "b"])]
)
def test_destinations_are_ordered_as_asked(sort: str, names: list[str]) -> None:
    routes = table(route("a", True, False), route("b", True), route("c", False))
    only = sample(1.0, connections={(SERVICE, "b"): 2, (SERVICE, "a"): 1})
    span = Span(only, only)
    assert [row.name for row in destinations_view(routes, span, nothing_met, sort=sort).rows] == names  # type: ignore[arg-type]


def test_answer_is_bounded_and_says_what_it_leaves_out() -> None:
    many = [route(f"s{number}", *[True] * 30) for number in range(MAX_ROWS + 5)]
    view = destinations_view(table(*many), NOW, nothing_met)
    assert (view.total, view.matching, len(view.rows)) == (MAX_ROWS + 5, MAX_ROWS + 5, MAX_ROWS)
    assert (view.rows[0].endpoints, len(view.rows[0].listed)) == (30, MAX_ENDPOINTS)
    datacenters = [route(f"dc{number}", True, kind=RouteKind.DATACENTER) for number in range(MAX_PLACES + 3)]
    places = places_view(table(*datacenters), NOW)
    assert (len(places.shown), places.left_out) == (MAX_PLACES, 3)


def test_unhealthy_endpoints_are_listed_first() -> None:
    (row,) = destinations_view(table(route("web", True, True, False)), NOW, nothing_met).rows
    assert [endpoint.healthy for endpoint in row.listed] == [False, True, True]


def test_what_is_known_of_streams_without_their_keys_is_in_the_row() -> None:
    numbers, key = Counters(), (SERVICE, "web")
    (row,) = destinations_view(table(route("web", True)), Span(Sample(1.0), Sample(1.0, numbers)), nothing_met).rows
    assert row.words == []
    assert (row.facts.answered, row.facts.unanswered) == (0, 0)
    assert (row.facts.first_byte_p50, row.facts.first_byte_p99) == (None, None)
    for seconds in (*[0.004] * 5, *[0.04] * 4, 60.0):
        numbers.count_first_byte(key, ("10.0.0.1", 1), seconds)
    numbers.count_unanswered(key, ("10.0.0.1", 1))
    for offer, count in ((Offer("TLSv1.3", resumption=True), 3), (Offer("TLSv1.2", resumption=False), 1)):
        for _ in range(count):
            numbers.count_hello(key, offer)
    numbers.count_alert(key, "client", Alert.UNKNOWN_CA)
    for _ in range(2):
        numbers.count_alert(key, "endpoint", Alert.PROTOCOL_VERSION)
    (row,) = destinations_view(table(route("web", True)), Span(Sample(1.0), Sample(1.0, numbers)), nothing_met).rows
    assert (row.facts.answered, row.facts.unanswered) == (10, 1)
    assert (row.facts.first_byte_p50, row.facts.first_byte_p99) == (0.005, None)
    assert row.words == [
        "11 streams since the start, 9.09% ended without a byte from an endpoint, half had their first byte within 5ms",
        (
            "clients offer TLSv1.2 25%, TLSv1.3 75%; 75% offer to resume a session; "
            "alerts in the clear: 2 protocol_version from endpoints, 1 unknown_ca from clients"
        ),
    ]


def test_callers_are_listed_by_what_their_open_streams_carry_now_a_few_of_them() -> None:
    before = Sample(1.0, callers={"10.0.0.1": (1, 100), "10.0.0.2": (5, 1000)})
    many = {f"10.0.1.{number}": (1, 0) for number in range(MAX_CALLERS)}
    after = Sample(2.0, callers={"10.0.0.1": (1, 900), "10.0.0.2": (5, 1000), "10.0.0.3": (2, 50), **many})
    names = {"10.0.0.2": "web on n2"}
    view = callers_view(Span(before, after), lambda host: names.get(host, ""))
    assert (view.total, len(view.rows)) == (MAX_CALLERS + 3, MAX_CALLERS)
    assert to_builtins(view.rows[:3]) == [
        {"client": "10.0.0.1", "caller": None, "open": 1, "rate": 800.0},
        {"client": "10.0.0.3", "caller": None, "open": 2, "rate": 50.0},
        {"client": "10.0.0.2", "caller": "web on n2", "open": 5, "rate": 0.0},
    ]
    (first, *_) = callers_view(Span(after, after), lambda _: "").rows
    assert (first.client, first.rate) == ("10.0.0.2", None)


def test_endpoints_that_fail_come_before_the_others_with_what_was_met_of_them() -> None:
    met = {
        ("10.0.0.1", 2): EndpointFacts(streams=5, failures=1, last_failure=1e9, last_error="connection refused"),
        ("10.0.0.1", 3): EndpointFacts(
            streams=9,
            unanswered=2,
            failures=7,
            first_byte_seconds=0.012346,
            last_success=1e9 + 5,
            ejected=Ejection(7, 1e9, "timed out"),
        ),
    }
    facts = lambda address: met.get(address, EndpointFacts())  # noqa: E731
    (row,) = destinations_view(table(route("web", True, True, True)), NOW, facts).rows
    assert [endpoint.port for endpoint in row.listed] == [3, 2, 1]
    assert [endpoint.met for endpoint in row.listed] == [*reversed(met.values()), EndpointFacts()]
    assert [bool(endpoint.out) for endpoint in row.listed] == [True, False, False]
    assert row.listed[0].out.endswith(": 7 failed connections in a row, the first: timed out")
    assert [endpoint.record.split(", ")[0] for endpoint in row.listed] == ["11 streams", "5 streams", ""]


def test_places_sum_up_what_belongs_together() -> None:
    routes = table(
        route("web", True, False),
        route("mail", False, port=9),
        route("v2.web", True, kind=RouteKind.SUBSET),
        route("dc2", True, kind=RouteKind.DATACENTER),
        route("n1.server.dc1", True, kind=RouteKind.SERVER),
        route("server.dc1", True, kind=RouteKind.SERVER),
    )
    connections = {(SERVICE, "web"): 5, (RouteKind.SUBSET, "v2.web"): 2}
    after = sample(2.0, open={(SERVICE, "web"): 1}, connections=connections)
    services, servers, dc2 = places_view(routes, Span(Sample(1.0), after)).shown
    assert (services.kind, services.destinations, services.endpoints) == ("services", 2, 3)
    assert (services.healthy, services.down, services.streams, services.rate) == (1, 1, 7, 7.0)
    assert services.open == 1
    # Both names are of one server.
    assert (servers.kind, servers.destinations, servers.endpoints) == ("servers", 2, 1)
    assert (dc2.kind, dc2.name, dc2.open) == ("datacenter", "dc2", 0)


def test_every_kind_of_route_has_its_place() -> None:
    routes = table(*(route(f"x{kind.value}", True, kind=kind) for kind in RouteKind))
    assert sum(place.destinations for place in places_view(routes, NOW).shown) >= len(RouteKind) - 1
