"""What Consul is asked about before a stream is placed."""

from typing import TYPE_CHECKING, cast

import trio
from trio.testing import MockClock

from meshgate.app.gateway.learning import UNKNOWN_AT_ONCE, UNKNOWN_PER_SECOND, Learner
from meshgate.core.routes import Route, RouteKind, RouteTable

if TYPE_CHECKING:
    from meshgate.adapters.consul import CatalogWatcher

TD = "td.consul"
HERE = f"default.dc1.internal.{TD}"


class Watcher:
    stale = False

    def __init__(self) -> None:
        self.learned: list[tuple[set[str], str]] = []

    async def lookup(self, services: list[str], namespace: str = "") -> None:
        self.learned.append((set(services), namespace))


def table_of(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", TD, "default", iter(routes))


def learner_of(*routes: Route) -> tuple[Learner, Watcher]:
    watcher = Watcher()
    return Learner(lambda: table_of(*routes), lambda: cast("CatalogWatcher", watcher)), watcher


async def test_the_service_behind_a_route_is_learned_whatever_kind_of_name_asks() -> None:
    db = f"db.default.default.east.external.{TD}"
    learner, watcher = learner_of(
        Route(f"web.{HERE}", RouteKind.SERVICE, "Web", (), stale=True, service="Web"),
        Route(f"v1.api.{HERE}", RouteKind.SUBSET, "v1.api", (), stale=True, service="api"),
        Route(db, RouteKind.PEER_EXPORT, "team/db to peer east", (), stale=True, service="db", namespace="team"),
    )
    for name in (f"WEB.{HERE}", f"v1.api.{HERE}", db):
        await learner.learn(name)
    assert watcher.learned == [({"web"}, ""), ({"api"}, ""), ({"db"}, "")]


async def test_a_name_without_a_route_is_looked_for_where_it_says() -> None:
    learner, watcher = learner_of()
    await learner.learn(f"Web.{HERE}")
    await learner.learn(f"v2.web.team.dc1.internal.{TD}")
    assert watcher.learned == [({"web"}, "default"), ({"web"}, "team")]


async def test_names_of_elsewhere_and_of_nothing_cost_consul_nothing() -> None:
    learner, watcher = learner_of()
    for name in (
        f"web.default.dc2.internal.{TD}",
        "web.default.dc1.internal.other.consul",
        f"web.default.team.dc1.internal-v1.{TD}",
        f"dc1.internal.{TD}",
        f"server.dc1.peering.{TD}",
        "example.com",
        "",
    ):
        await learner.learn(name)
    assert watcher.learned == []


async def test_names_that_nobody_has_cost_consul_little(autojump_clock: MockClock) -> None:
    learner, watcher = learner_of(Route(f"web.{HERE}", RouteKind.SERVICE, "web", (), stale=True, service="web"))
    for number in range(10 * UNKNOWN_AT_ONCE):
        await learner.learn(f"made-up-{number}.{HERE}")
    assert len(watcher.learned) == UNKNOWN_AT_ONCE
    # What is known is asked for all the same.
    await learner.learn(f"web.{HERE}")
    assert watcher.learned[-1] == ({"web"}, "")
    watcher.learned.clear()
    for number in range(100):
        await learner.learn(f"other-{number}.{HERE}")
        await trio.sleep(0.01)
    assert len(watcher.learned) in range(UNKNOWN_PER_SECOND - 2, UNKNOWN_PER_SECOND + 2)


async def test_what_is_followed_closely_is_not_asked_for() -> None:
    learner, watcher = learner_of(Route(f"web.{HERE}", RouteKind.SERVICE, "web", ()))
    await learner.learn(f"web.{HERE}")
    assert watcher.learned == []


async def test_nobody_is_asked_while_consul_is_known_not_to_answer() -> None:
    learner, watcher = learner_of(Route(f"web.{HERE}", RouteKind.SERVICE, "web", (), stale=True, service="web"))
    watcher.stale = True
    await learner.learn(f"web.{HERE}")
    await Learner(table_of, lambda: None).learn(f"web.{HERE}")
    assert watcher.learned == []
