"""What Consul is asked about before a stream is placed, and which services are told to be in use."""

from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio.testing import MockClock

import meshgate.adapters.relay.on_demand as of_workers
from meshgate.adapters.relay.counters import Counters
from meshgate.app.gateway.on_demand_discovery import (
    _REMEMBERED,
    LOOK,
    OF_A_CLIENT,
    OF_ALL_CLIENTS,
    OF_PEOPLE,
    PACE,
    OnDemandDiscovery,
)
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable
from meshgate.core.sni import PeeredServiceSni

if TYPE_CHECKING:
    from meshgate.adapters.consul import CatalogWatcher

TD = "td.consul"
HERE = f"default.dc1.internal.{TD}"


class Watcher:
    stale = False

    def __init__(self) -> None:
        self.asked: list[tuple[set[str], str]] = []
        self.peered: list[str] = []
        self.in_use: list[set[str]] = []
        self.hurried = 0

    async def lookup(self, services: list[str], namespace: str = "") -> None:
        self.asked.append((set(services), namespace))

    async def lookup_peered(self, name: PeeredServiceSni) -> None:
        self.peered.append(str(name))

    def hurry_names(self) -> None:
        self.hurried += 1

    def used(self, services: set[str]) -> None:
        self.in_use.append(services)


def table_of(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", TD, "default", iter(routes))


def discovery_of(*routes: Route) -> tuple[OnDemandDiscovery, Watcher]:
    watcher = Watcher()
    return OnDemandDiscovery(lambda: table_of(*routes), lambda: cast("CatalogWatcher", watcher), at_once), watcher


async def at_once() -> None:
    """Consul has answered before."""


async def test_the_service_behind_a_route_is_learned_whatever_kind_of_name_asks() -> None:
    db = f"db.default.default.east.external.{TD}"
    discovery, watcher = discovery_of(
        Route(f"web.{HERE}", RouteKind.SERVICE, "Web", (), stale=True, service="Web"),
        Route(f"v1.api.{HERE}", RouteKind.SUBSET, "v1.api", (), stale=True, service="api"),
        Route(db, RouteKind.PEER_EXPORT, "team/db to peer east", (), stale=True, service="db", namespace="team"),
    )
    for name in (f"WEB.{HERE}", f"v1.api.{HERE}", db):
        await discovery.lookup(name)
    assert watcher.asked == [({"web"}, ""), ({"api"}, ""), ({"db"}, "")]


async def test_a_name_without_a_route_is_looked_for_where_it_says() -> None:
    discovery, watcher = discovery_of()
    await discovery.lookup(f"Web.{HERE}")
    await discovery.lookup(f"v2.web.team.dc1.internal.{TD}")
    assert watcher.asked == [({"web"}, "default"), ({"web"}, "team")]


async def test_names_of_peers_and_those_that_they_know_are_looked_for_as_such() -> None:
    discovery, watcher = discovery_of()
    names = [f"db.default.default.east.external.{TD}", "web.default.default.us.external.1234.consul"]
    for name in names:
        await discovery.lookup(name.upper())
    await discovery.lookup(f"db.default.other.east.external.{TD}")
    assert (watcher.peered, watcher.asked) == (names, [])


async def test_names_of_elsewhere_and_of_nothing_cost_consul_nothing() -> None:
    discovery, watcher = discovery_of()
    for name in (
        f"web.default.dc2.internal.{TD}",
        "web.default.dc1.internal.other.consul",
        f"web.default.team.dc1.internal-v1.{TD}",
        f"dc1.internal.{TD}",
        f"server.dc1.peering.{TD}",
        "example.com",
        "",
    ):
        await discovery.lookup(name)
    assert watcher.asked == []


STALE = Route(f"web.{HERE}", RouteKind.SERVICE, "web", (), stale=True, service="web")


async def test_a_client_may_ask_for_few_names_that_nobody_has_and_takes_nothing_from_others(
    autojump_clock: MockClock,
) -> None:
    discovery, watcher = discovery_of(STALE)
    rate, burst = OF_A_CLIENT
    stranger = [discovery.may_ask(f"made-up-{number}.{HERE}", "192.0.2.1") for number in range(10 * burst)]
    assert stranger == [True] * burst + [False] * 9 * burst
    # Who may not ask is served by the names' watch, which hurries.
    assert watcher.hurried == 9 * burst
    assert discovery.may_ask(f"new.{HERE}", "192.0.2.2")
    # What has a route is asked for whoever wants it.
    assert discovery.may_ask(f"web.{HERE}", "")
    assert discovery.may_ask(f"web.{HERE}", "192.0.2.1")
    await trio.sleep(10 / rate)
    assert [discovery.may_ask(f"other-{number}.{HERE}", "192.0.2.1") for number in range(12)].count(True) in (10, 11)


def test_the_parent_is_told_when_somebody_wants_more_than_it_allows() -> None:
    for own, workers in ((OF_A_CLIENT, of_workers.OF_A_CLIENT), (OF_ALL_CLIENTS, of_workers.OF_A_WORKER)):
        assert own[0] < workers[0]
        assert own[1] < workers[1]


async def test_clients_of_many_addresses_ask_for_little_in_all(autojump_clock: MockClock) -> None:
    discovery, _ = discovery_of()
    clients = (f"2001db8{number:09x}" for number in range(10_000))
    assert sum(discovery.may_ask(f"made-up.{HERE}", client) for client in clients) == OF_ALL_CLIENTS[1]


async def test_people_have_an_allowance_of_their_own(autojump_clock: MockClock) -> None:
    discovery, watcher = discovery_of(STALE)
    for number in range(10 * OF_PEOPLE[1]):
        await discovery.look_up(f"made-up-{number}.{HERE}")
    assert len(watcher.asked) == OF_PEOPLE[1]
    assert discovery.may_ask(f"new.{HERE}", "192.0.2.2")
    await discovery.look_up(f"web.{HERE}")
    assert watcher.asked[-1] == ({"web"}, "")


async def test_a_name_is_not_asked_for_at_once_again_and_who_asks_waits_for_his_turn(autojump_clock: MockClock) -> None:
    discovery, watcher = discovery_of()
    began = trio.current_time()
    for _ in range(3):
        await discovery.lookup(f"made-up.{HERE}")
    assert len(watcher.asked) == 3
    assert trio.current_time() - began == pytest.approx(2 * PACE)
    for number in range(_REMEMBERED + 10):
        await discovery.lookup(f"made-up-{number}.{HERE}")
    assert len(discovery._asked) == _REMEMBERED


async def test_route_that_comes_while_a_name_waits_for_its_turn_makes_a_question_needless(
    autojump_clock: MockClock,
) -> None:
    routes: list[Route] = []
    watcher = Watcher()
    discovery = OnDemandDiscovery(lambda: table_of(*routes), lambda: cast("CatalogWatcher", watcher), at_once)
    await discovery.lookup(f"web.{HERE}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discovery.lookup, f"web.{HERE}")
        await trio.testing.wait_all_tasks_blocked()
        routes.append(STALE)
    assert watcher.asked == [({"web"}, "default")]


async def test_what_is_followed_closely_is_not_asked_for() -> None:
    discovery, watcher = discovery_of(Route(f"web.{HERE}", RouteKind.SERVICE, "web", ()))
    await discovery.lookup(f"web.{HERE}")
    assert watcher.asked == []


async def test_a_version_that_has_just_taken_over_gives_no_answer_before_consul_has_given_it_one() -> None:
    watchers: list[Watcher | None] = [None]
    answered = trio.Event()
    known = Route(f"web.{HERE}", RouteKind.SERVICE, "web", (), stale=True, service="web")
    discovery = OnDemandDiscovery(
        lambda: table_of(known), lambda: cast("CatalogWatcher | None", watchers[-1]), answered.wait
    )
    # The old places are better than none.
    await discovery.lookup(f"web.{HERE}")
    # Nobody could have this one.
    await discovery.lookup("elsewhere.example")
    over = False

    async def look_up() -> None:
        nonlocal over
        await discovery.lookup(f"new.{HERE}")
        over = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_up)
        await trio.testing.wait_all_tasks_blocked()
        assert not over
        watchers.append(watcher := Watcher())
        answered.set()
    assert watcher.asked == [({"new"}, "default")]


async def test_nobody_is_asked_while_consul_is_known_not_to_answer() -> None:
    discovery, watcher = discovery_of(Route(f"web.{HERE}", RouteKind.SERVICE, "web", (), stale=True, service="web"))
    watcher.stale = True
    await discovery.lookup(f"web.{HERE}")
    nobody = OnDemandDiscovery(table_of, lambda: None, at_once)
    await nobody.lookup(f"web.{HERE}")
    for _ in range(OF_A_CLIENT[1]):
        assert nobody.may_ask(f"web.{HERE}", "192.0.2.1")
    assert not nobody.may_ask(f"web.{HERE}", "192.0.2.1")
    assert watcher.asked == []


# --- which services are in use ---------------------------------------------------------------------------------------

KINDS = (
    Route("1", RouteKind.SERVICE, "web.v2", (), service="web.v2"),
    Route("2", RouteKind.SUBSET, "v1.api.internal", (), service="API.internal"),
    Route("3", RouteKind.SERVICE, "db", (), service="db"),
    Route("4", RouteKind.SERVICE, "team/web", (), service="web", namespace="team"),
    Route("5", RouteKind.PEER_EXPORT, "team/store to peer east", (), service="store", namespace="team"),
    Route("6", RouteKind.DATACENTER, "dc2", ()),
)


async def test_services_are_named_when_streams_were_sent_to_them_or_could_not_be(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    discovery, watcher = discovery_of(*KINDS)
    counters = Counters()
    nursery.start_soon(discovery.tell_use, lambda: counters)
    await trio.sleep(3 * LOOK)
    assert watcher.in_use == []
    counters.count_routed((RouteKind.SERVICE, "web.v2"))
    counters.count_routed((RouteKind.SUBSET, "v1.api.internal"))
    await trio.sleep(2 * LOOK)
    assert watcher.in_use == [{"web.v2", "api.internal"}]
    counters.count_routed((RouteKind.SERVICE, "web.v2"))
    await trio.sleep(2 * LOOK)
    assert watcher.in_use[1:] == [{"web.v2"}]
    counters.failed[(RouteKind.SERVICE, "db", Reason.CONNECT_FAILED)] = 1
    await trio.sleep(2 * LOOK)
    assert watcher.in_use[2:] == [{"db"}]
    await trio.sleep(10 * LOOK)
    assert len(watcher.in_use) == 3
    nursery.cancel_scope.cancel()


async def test_services_of_namespaces_and_those_exported_to_peers_are_named_without_either(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    discovery, watcher = discovery_of(*KINDS)
    counters = Counters()
    nursery.start_soon(discovery.tell_use, lambda: counters)
    counters.count_routed((RouteKind.SERVICE, "team/web"))
    counters.count_routed((RouteKind.PEER_EXPORT, "team/store to peer east"))
    counters.count_routed((RouteKind.DATACENTER, "dc2"))
    counters.count_routed((RouteKind.SERVICE, "gone meanwhile"))
    await trio.sleep(2 * LOOK)
    assert watcher.in_use == [{"web", "store"}]
    nursery.cancel_scope.cancel()
