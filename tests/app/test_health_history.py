import trio
from trio.testing import MockClock

from meshgate.app.gateway.table_keeper import HealthHistory, Since
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable, difference


def route_of(*healthy: bool, cause: str = "check x is critical") -> Route:
    endpoints = [
        Endpoint("10.0.0.1", number, well, 1, "n1", f"web-{number}", "" if well else cause)
        for number, well in enumerate(healthy)
    ]
    return Route("web.td", RouteKind.SERVICE, "web", tuple(endpoints))


def table_of(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", "td", "default", iter(routes))


async def test_an_endpoint_is_unhealthy_since_it_was_first_seen_so(autojump_clock: MockClock) -> None:
    history, table = HealthHistory(), table_of()
    start = trio.current_time()
    seen = [
        route_of(True, False),
        route_of(False, False),
        route_of(False, False, cause="another"),
        route_of(True, False),
    ]
    for number, route in enumerate(seen):
        before, table = table, table_of(route)
        history.note(difference(before, table))
        web0, web1 = route.endpoints
        # The first was seen healthy before; of the second nobody knows since when.
        expected = Since(start + 10, seen=True) if number in (1, 2) else None
        assert history.since(route, web0) == expected
        assert history.since(route, web1) == Since(start, seen=False)
        await trio.sleep(10)


async def test_what_is_no_route_any_more_is_forgotten(autojump_clock: MockClock) -> None:
    history = HealthHistory()
    route = route_of(False)
    history.note(difference(table_of(), table_of(route)))
    history.note(difference(table_of(route), table_of()))
    assert history.since(route, route.endpoints[0]) is None
    assert history._routes == {}
